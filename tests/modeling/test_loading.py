import json
import logging
import shutil

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel
from transformers.utils import logging as transformers_logging

from selfvit import SelfViTForDINO, SelfViTForImageClassification, SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly


@pytest.fixture
def changed(tiny_checkpoint, tmp_path):
    """Return a function that copies the checkpoint and changes its weights."""

    def copy(change):
        folder = tmp_path / "changed"
        shutil.copytree(tiny_checkpoint, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


@pytest.mark.parametrize("model_class", [SelfViTModel, SelfViTForDINO])
def test_a_complete_checkpoint_loads_bit_exactly(model_class, tiny_checkpoint):
    model = load_strictly(model_class, tiny_checkpoint)
    stored = load_file(tiny_checkpoint / "model.safetensors")
    prefix = "vit." if model_class is SelfViTModel else ""
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[prefix + name]), name


def test_network_student_loads_the_weights_of_the_student(tiny_checkpoint):
    model = load_strictly(SelfViTModel, tiny_checkpoint, network="student")
    stored = load_file(tiny_checkpoint / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored["student.vit." + name]), name


def test_a_missing_student_is_an_error(tiny_checkpoint, tmp_path):
    SelfViTModel.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    assert load_strictly(SelfViTModel, tmp_path) is not None
    with pytest.raises(ValueError, match="has no student network; use network='teacher'"):
        load_strictly(SelfViTModel, tmp_path, network="student")


def test_missing_weights_are_named(changed):
    folder = changed(lambda weights: weights.pop("vit.layers.1.mlp.fc1.weight"))
    with pytest.raises(ValueError, match=r"missing in the checkpoint: layers\.1\.mlp\.fc1\.weight"):
        load_strictly(SelfViTModel, folder)


def test_new_weights_may_be_missing(tiny_checkpoint):
    model = load_strictly(
        SelfViTForImageClassification, tiny_checkpoint, num_labels=3, new=(r"^classifier\.",)
    )
    assert model.classifier.weight.shape == (3, 32)
    with pytest.raises(ValueError, match=r"missing in the checkpoint: classifier\.bias"):
        load_strictly(SelfViTForImageClassification, tiny_checkpoint, num_labels=3)


def test_unknown_weights_are_named(changed):
    folder = changed(lambda weights: weights.update({"vit.extra.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"unknown to the model: (vit\.)?extra\.weight"):
        load_strictly(SelfViTModel, folder)


def test_weights_of_another_shape_are_named_with_both_shapes(changed):
    folder = changed(lambda weights: weights.update({"vit.layernorm.bias": torch.zeros(7)}))
    with pytest.raises(
        ValueError, match=r"another shape: layernorm\.bias \(7,\) instead of \(32,\)"
    ):
        load_strictly(SelfViTModel, folder)


def test_a_truncated_file_is_an_error(tiny_checkpoint, tmp_path):
    folder = tmp_path / "truncated"
    shutil.copytree(tiny_checkpoint, folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_strictly(SelfViTModel, folder)


def test_another_model_type_is_refused(tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'vit' checkpoint; selfvit loads its own"):
        load_strictly(SelfViTModel, tmp_path)


def test_the_error_for_a_folder_without_a_checkpoint_lists_its_files(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no config\.json. It contains notes\.txt"):
        load_strictly(SelfViTModel, tmp_path)


def test_a_folder_without_weights_is_an_error(tiny_checkpoint, tmp_path):
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_strictly(SelfViTModel, tmp_path)


def test_a_broken_config_is_an_error(tiny_checkpoint, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "config.json").write_text('{"model_type": "selfvit", "hidden_size"')
    with pytest.raises((OSError, ValueError), match="JSON"):
        load_strictly(SelfViTModel, folder)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "patch_size": 7}))
    with pytest.raises(StrictDataclassError, match="multiple of patch_size"):
        load_strictly(SelfViTModel, folder)


@pytest.mark.parametrize("name", ["./out", "/nowhere/out", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder '{name}'"):
        load_strictly(SelfViTModel, name)


def test_a_file_is_not_a_checkpoint(tiny_checkpoint):
    with pytest.raises(FileNotFoundError, match="is a file"):
        load_strictly(SelfViTModel, tiny_checkpoint / "config.json")


def test_nothing_is_printed_and_no_global_state_changes(changed, capfd):
    folder = changed(lambda weights: weights.pop("vit.layernorm.bias"))
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    with pytest.raises(ValueError):
        load_strictly(SelfViTModel, folder)
    logging.getLogger("transformers").handlers[0].flush()
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bar
    assert transformers_logging.set_tqdm_hook(None) is None
