"""Errors for checkpoints that do not open name the file and the fix."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from selfvit import SelfViTBackbone, SelfViTForDINO, SelfViTForImageClassification, SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.momentum_teacher import MomentumTeacher
from tests.objectives import OBJECTIVES, tiny_config, tiny_dino_config

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module", params=OBJECTIVES, ids=lambda entry: entry.name)
def objective(request):
    return request.param


@pytest.fixture(scope="module")
def saved(objective, tmp_path_factory):
    """Return a folder with the same model in one file of weights and in shards."""
    torch.manual_seed(0)
    model = objective.model_class(objective.config())
    folder = tmp_path_factory.mktemp(objective.name)
    model.save_pretrained(folder / "one")
    size = sum(value.nbytes for value in model.state_dict().values())
    model.save_pretrained(folder / "shards", max_shard_size=int(size / 2.5))
    assert (folder / "shards" / SHARD).is_file(), sorted(folder.glob("shards/*"))
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """Return a function that copies one of the folders."""

    def copy(name):
        shutil.copytree(saved / name, tmp_path / "damaged")
        return tmp_path / "damaged"

    return copy


def openers_of(objective):
    return {
        "AutoModel": AutoModel.from_pretrained,
        "AutoModelForPreTraining": AutoModelForPreTraining.from_pretrained,
        "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
        "class": objective.model_class.from_pretrained,
        "backbone": SelfViTBackbone.from_pretrained,
        "strictly": partial(load_strictly, objective.model_class),
        "encoder strictly": partial(load_strictly, SelfViTModel),
    }


def assert_all_refuse(objective, folder, kind, *words):
    for name, opener in openers_of(objective).items():
        with pytest.raises(kind) as error:
            opener(folder)
        for word in words:
            assert word in str(error.value), name


# Large models


def test_shards_contain_the_same_weights_as_one_file(objective, saved):
    for name, opener in openers_of(objective).items():
        if name == "AutoModelForImageClassification":
            continue  # its classifier is new
        one, shards = opener(saved / "one").state_dict(), opener(saved / "shards").state_dict()
        assert list(one) == list(shards)
        assert all(torch.equal(one[key], shards[key]) for key in one), name


def test_the_student_opens_from_shards(objective, saved):
    if not issubclass(objective.model_class, MomentumTeacher):
        for opener in (SelfViTModel.from_pretrained, partial(load_strictly, SelfViTModel)):
            with pytest.raises(ValueError, match="student.*use network=.teacher."):
                opener(saved / "shards", network="student")
        return
    expected = objective.model_class.from_pretrained(saved / "one").student.vit.state_dict()
    for opener in (
        AutoModel.from_pretrained,
        SelfViTModel.from_pretrained,
        partial(load_strictly, SelfViTModel),
    ):
        found = opener(saved / "shards", network="student").state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


# Files of weights


def test_a_folder_without_weights_is_an_error(objective, damaged):
    folder = damaged("one")
    (folder / "model.safetensors").unlink()
    words = (
        str(folder),
        "no model.safetensors",
        "config.json",
        "Copy or download the complete folder",
    )
    assert_all_refuse(objective, folder, FileNotFoundError, *words)


@pytest.mark.parametrize("left", [0.5, 40, 4, 0], ids=["half", "header", "length", "nothing"])
def test_a_truncated_file_of_weights_is_named(left, objective, damaged):
    folder = damaged("one")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: left if isinstance(left, int) else len(content) // 2])
    words = (str(file), "cannot be read", "damaged or incomplete", "Copy or download it again")
    assert_all_refuse(objective, folder, ValueError, *words)
    with pytest.raises(ValueError, match="cannot be read"):
        load_strictly(SelfViTModel, folder, network="student")


def test_a_truncated_shard_is_named(objective, damaged):
    folder = damaged("shards")
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: len(content) - 1])
    words = (str(folder / SHARD), "cannot be read", "Copy or download it again")
    assert_all_refuse(objective, folder, ValueError, *words)


def test_a_missing_shard_is_named(objective, damaged):
    folder = damaged("shards")
    (folder / SHARD).unlink()
    words = (str(folder / SHARD), "model.safetensors.index.json names it", "are missing")
    assert_all_refuse(objective, folder, FileNotFoundError, *words)


def test_a_truncated_index_of_shards_is_named(objective, damaged):
    folder = damaged("shards")
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text()[:300])
    assert_all_refuse(objective, folder, ValueError, str(file), "cannot be read")


def test_a_pipeline_shows_the_same_error(tiny_checkpoint, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read.*Copy or download it again"):
        pipeline("image-feature-extraction", model=str(folder))


def test_other_errors_pass_unchanged(saved):
    with pytest.raises(OSError, match=r"pytorch_model\.bin"):
        SelfViTModel.from_pretrained(saved / "one", use_safetensors=False)


# Objectives


def rewrite(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def with_unknown_objective(tmp_path):
    """Return a checkpoint with an objective that this selfvit does not know."""
    SelfViTForDINO(tiny_config(dino_config=tiny_dino_config())).save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        architectures=["SelfViTForSimCLR"],
        dino_config=None,
        simclr_config={"temperature": 0.1, "model_type": "selfvit_simclr"},
    )
    return tmp_path


def assert_refused_as_objective(entry, folder, *words):
    """Check that an objective's class refuses a checkpoint, with these words in the error."""
    for opener in (
        AutoModelForPreTraining.from_pretrained,
        partial(load_strictly, entry.model_class),
    ):
        with pytest.raises(ValueError) as error:
            opener(folder)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize("entry", OBJECTIVES, ids=lambda entry: entry.name)
def test_an_unknown_objective_suggests_an_upgrade(entry, with_unknown_objective):
    assert_refused_as_objective(
        entry,
        with_unknown_objective,
        f"{str(with_unknown_objective)!r} contains a SelfViTForSimCLR according to its config.json",
        "install a newer version of selfvit",
        "AutoModel opens its encoder",
    )


def test_the_encoder_of_an_unknown_objective_opens(with_unknown_objective):
    assert type(AutoModel.from_pretrained(with_unknown_objective)) is SelfViTModel


@pytest.mark.parametrize(
    "saved_class", [SelfViTModel, SelfViTForImageClassification, SelfViTBackbone]
)
@pytest.mark.parametrize("entry", OBJECTIVES, ids=lambda entry: entry.name)
def test_an_encoder_does_not_open_as_an_objective(entry, saved_class, tmp_path):
    # Its configuration may still have the settings of the objective that it came from. Heads,
    # students and decoders used to be initialized at random.
    saved_class(entry.config()).save_pretrained(tmp_path)
    assert_refused_as_objective(
        entry,
        tmp_path,
        f"{str(tmp_path)!r} contains a {saved_class.__name__}",
        "Open it with AutoModel",
        f"selfvit train RECIPE --init-from {tmp_path}",
    )


def test_an_objective_starts_from_an_encoder_with_an_explicit_config(objective, tmp_path):
    encoder = SelfViTModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model = objective.model_class.from_pretrained(tmp_path, config=objective.config())
    assert torch.equal(model.vit.layernorm.weight, encoder.layernorm.weight)


def test_a_class_ignores_trust_remote_code(objective, saved):
    model = objective.model_class.from_pretrained(saved / "one", trust_remote_code=True)
    assert type(model) is objective.model_class


def test_a_subfolder_opens(saved):
    parent, name = saved, "one"
    assert type(load_strictly(SelfViTModel, parent, subfolder=name)) is SelfViTModel
    with pytest.raises(FileNotFoundError, match="has no folder 'three'"):
        load_strictly(SelfViTModel, parent, subfolder="three")


def test_a_missing_objective_config_names_the_argument_to_pass(objective):
    field = objective.model_class.objective_field
    with pytest.raises(ValueError, match=rf"needs config\.{field}; pass {field}=\w+Config\(\)"):
        objective.model_class(tiny_config())
