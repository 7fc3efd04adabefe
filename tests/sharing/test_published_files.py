"""What of a folder is published, and which folders are not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining

from selfvit import SelfViTBackbone, SelfViTModel
from selfvit.modeling.checkpoints.remote_code import code_files
from selfvit.sharing.published_files import choose_files

from ..objectives import tiny_config
from .conftest import write_checkpoint

SENT = [
    "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.yaml",
]  # fmt: skip


def names_sent(folder: Path) -> list[str]:
    """Return what is to be sent, but for the code, all of which has to be there."""
    sent, code = choose_files(folder).sent, {path.name for path in code_files(folder)}
    assert code and code <= set(sent)
    return [name for name in sent if name not in code]


def test_states_logs_and_unknown_files_stay_at_home(checkpoint):
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
        "photo.png~",
        "secret.py",
    ):
        (checkpoint / name).write_text("private")
    assert names_sent(checkpoint) == SENT
    assert choose_files(checkpoint).left_out == [
        ".unfinished-result/", "checkpoints/", "log.jsonl", "logs/", "old.safetensors",
        "photo.png~", "secret.py", "skipped.csv", "trainer_state.json", "vectors/",
    ]  # fmt: skip


def test_figures_pictures_and_what_the_card_shows_go_along(checkpoint):
    more = ["conversion.json", "metrics.json", "pca.png"]
    (checkpoint / "pictures").mkdir()
    for name in [*more, "pictures/attention.png", "pictures/my_cat.png"]:
        (checkpoint / name).write_text("{}")
    assert names_sent(checkpoint) == sorted([*SENT, *more, "pictures/attention.png"])
    included = choose_files(checkpoint, include=["pictures/*"]).sent
    assert "pictures/my_cat.png" in included


@pytest.mark.parametrize("model_class", [SelfViTModel, SelfViTBackbone])
def test_an_encoder_by_itself_is_a_checkpoint(model_class, tmp_path):
    write_checkpoint(tmp_path / "encoder", model_class(tiny_config()))
    assert choose_files(tmp_path / "encoder").architecture == model_class.__name__


def test_shards_go_with_their_index(checkpoints, tmp_path):
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


def test_a_file_cut_short_is_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors' cannot be read.*damaged"):
        choose_files(checkpoint)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_weights_of_another_model_are_refused(change, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    if change == "missing":
        del tensors["vit.layernorm.weight"]
    elif change == "left over":
        tensors["vit.pooler.weight"] = torch.zeros(3)
    else:
        tensors["vit.layernorm.weight"] = torch.zeros(3)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not those of the SelfViTForDINO.*1 tensors differ, vit"):
        choose_files(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", "has no README.md, the model card"),
        ("config.json", "the run in .* is not finished.*--resume true"),
        ("model.safetensors", "has a config.json but no model.safetensors"),
        ("preprocessor_config.json", "no image processor can be opened"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(name, message, checkpoint):
    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        choose_files(checkpoint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A model", "no metadata between two lines of ---"),
        ("---\nlicense: [mit\n---\n", "README.md' is not valid"),
        ("---\n- mit\n---\n", "no metadata"),
    ],
)
def test_a_card_whose_metadata_cannot_be_read_is_refused(text, message, checkpoint):
    (checkpoint / "README.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        choose_files(checkpoint)


def test_a_checkpoint_of_another_library_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "dinov2"}))
    with pytest.raises(ValueError, match="is a 'dinov2' checkpoint"):
        choose_files(checkpoint)


def test_a_folder_that_is_not_there_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder 'me/model'"):
        choose_files(Path("me/model"))
