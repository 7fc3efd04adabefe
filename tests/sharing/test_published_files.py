"""Choice of the files to publish, and rejection of incomplete checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining

from selfvit import SelfViTBackbone, SelfViTModel
from selfvit.modeling.checkpoints.remote_code import code_files
from selfvit.sharing.published_files import choose_files, strip_local_paths

from ..objectives import tiny_config
from .conftest import write_checkpoint

SENT = [
    "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.yaml",
]  # fmt: skip


def names_sent(folder: Path) -> list[str]:
    """Return the files to publish except the model code, which must be complete."""
    sent, code = choose_files(folder).sent, {path.name for path in code_files(folder)}
    assert code and code <= set(sent)
    return [name for name in sent if name not in code]


def test_optimizer_states_logs_and_unknown_files_are_not_published(checkpoint):
    (checkpoint / "checkpoints" / "step-00000010").mkdir(parents=True)
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "checkpoints" / "step-00000010")
    for name in ("logs/events.out", ".unfinished-result/config.json", "vectors/skipped.csv"):
        (checkpoint / name).parent.mkdir()
        (checkpoint / name).write_text("private")
    for name in (
        "log.jsonl",
        "skipped.csv",
        "trainer_state.json",
        "old.safetensors",
        "photo.png",
        "photo.png~",
        "secret.py",
        "customers.json",
    ):
        (checkpoint / name).write_text("private")
    assert names_sent(checkpoint) == SENT
    assert choose_files(checkpoint).left_out == [
        ".unfinished-result/", "checkpoints/", "customers.json", "log.jsonl", "logs/",
        "old.safetensors", "photo.png", "photo.png~", "secret.py", "skipped.csv",
        "trainer_state.json", "vectors/",
    ]  # fmt: skip


def test_results_licenses_and_pictures_of_the_card_are_published(checkpoint):
    more = ["LICENSE.md", "conversion.json", "environment.json", "report.json"]
    (checkpoint / "pictures").mkdir()
    for name in [*more, "pictures/attention.png", "pictures/my_cat.png"]:
        (checkpoint / name).write_text("{}")
    assert names_sent(checkpoint) == sorted([*SENT, *more, "pictures/attention.png"])
    included = choose_files(checkpoint, include=["pictures/*"]).sent
    assert "pictures/my_cat.png" in included


@pytest.mark.parametrize("model_class", [SelfViTModel, SelfViTBackbone])
def test_an_encoder_alone_is_a_checkpoint(model_class, tmp_path):
    write_checkpoint(tmp_path / "encoder", model_class(tiny_config()))
    assert choose_files(tmp_path / "encoder").architecture == model_class.__name__


def test_shards_are_published_with_their_index(checkpoints, tmp_path):
    model = AutoModelForPreTraining.from_pretrained(checkpoints["dino"])
    folder = write_checkpoint(tmp_path / "sharded", model, max_shard_size="60KB")
    shards = sorted(path.name for path in folder.glob("model-*"))
    sent = names_sent(folder)
    assert [name for name in sent if name.startswith("model")] == [
        *shards,
        "model.safetensors.index.json",
    ]
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shards[1]}.*are missing"):
        choose_files(folder)


def test_a_truncated_file_is_rejected(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors' cannot be read.*damaged"):
        choose_files(checkpoint)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_weights_of_another_model_are_rejected(change, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    if change == "missing":
        del tensors["vit.layernorm.weight"]
    elif change == "left over":
        tensors["vit.pooler.weight"] = torch.zeros(3)
    else:
        tensors["vit.layernorm.weight"] = torch.zeros(3)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match="must be those of the SelfViTForDINO.*1 tensors differ, for example vit"
    ):
        choose_files(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", r"must have a model card \(README.md\)"),
        ("config.json", "the run in .* must be finished.*--resume`"),
        ("model.safetensors", "has a config.json but no model.safetensors"),
        ("preprocessor_config.json", "must have an image processor"),
    ],
)
def test_an_incomplete_folder_is_rejected(name, message, checkpoint):
    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        choose_files(checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A model", "no mapping between two lines of ---"),
        ("---\nlicense: [mit\n---\n", "README.md' must be valid YAML"),
        ("---\n- mit\n---\n", "no mapping"),
    ],
)
def test_a_card_with_invalid_metadata_is_rejected(text, message, checkpoint):
    (checkpoint / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        choose_files(checkpoint)


def test_a_checkpoint_of_another_library_is_rejected(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "dinov2"}))
    with pytest.raises(ValueError, match="is a 'dinov2' checkpoint"):
        choose_files(checkpoint)


def test_a_missing_folder_is_not_interpreted_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'me/model' must be a folder"):
        choose_files(Path("me/model"))


@pytest.mark.parametrize("sections", [("training", "training"), ("data", "start")])
def test_local_paths_of_a_run_are_reduced_to_their_last_part(sections):
    first, second = sections
    run: dict = {"recipe": "dino", first: {}, second: {}}
    run[first]["data"] = "/home/me/photos"
    run[second]["init_from"] = "user/dino@main"
    expected = {**run, first: {**run[first], "data": "photos"}}
    assert yaml.safe_load(strip_local_paths(yaml.safe_dump(run))) == expected
    run[first]["data"] = ["/home/me/photos/a.tar", "user/data", "/home/me/photos/b.tar"]
    expected[first] |= {"data": ["a.tar", "user/data", "b.tar"]}  # lists were published unchanged
    assert yaml.safe_load(strip_local_paths(yaml.safe_dump(run))) == expected
    assert strip_local_paths("recipe: dino\n") == "recipe: dino\n"
