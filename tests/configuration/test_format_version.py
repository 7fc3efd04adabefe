"""Format version of checkpoints."""

import json

import pytest
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from selfvit import (
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForImageClassification,
    SelfViTModel,
    __version__,
)
from selfvit.configuration.format_version import FORMAT_VERSION
from selfvit.conversion.audit.audit import audit
from selfvit.modeling.checkpoints.loading import load_strictly
from tests.objectives import tiny_config, tiny_dino_config


@pytest.fixture
def checkpoint(tmp_path):
    SelfViTForDINO(tiny_config(dino_config=tiny_dino_config())).save_pretrained(tmp_path)
    return tmp_path


def rewrite(checkpoint, **changes):
    file = checkpoint / "config.json"
    stored = {**json.loads(file.read_text()), **changes}
    stored = {name: value for name, value in stored.items() if value != "left out"}
    file.write_text(json.dumps(stored))


def test_a_checkpoint_stores_format_and_package_version(checkpoint):
    stored = json.loads((checkpoint / "config.json").read_text())
    assert stored["format_version"] == FORMAT_VERSION == 1
    assert stored["selfvit_version"] == __version__


def test_a_checkpoint_without_a_format_version_opens(checkpoint):
    rewrite(checkpoint, format_version="left out", selfvit_version="left out")
    assert type(AutoModel.from_pretrained(checkpoint)) is SelfViTModel
    assert type(load_strictly(SelfViTForDINO, checkpoint)) is SelfViTForDINO


def test_saving_again_stores_the_current_version(checkpoint, tmp_path):
    rewrite(checkpoint, selfvit_version="0.0.1")
    AutoModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again" / "config.json").read_text())
    assert stored["selfvit_version"] == __version__


def test_a_configuration_can_be_built_from_config_json(checkpoint):
    stored = json.loads((checkpoint / "config.json").read_text())
    assert SelfViTConfig(**stored).to_diff_dict() == stored
    with pytest.raises(ValueError, match=r"format_version \(2\) is newer"):
        SelfViTConfig(**{**stored, "format_version": 2})


OPENERS = {
    "AutoConfig": AutoConfig.from_pretrained,
    "SelfViTConfig": SelfViTConfig.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForPreTraining": AutoModelForPreTraining.from_pretrained,
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
    "SelfViTModel": SelfViTModel.from_pretrained,
    "SelfViTForDINO": SelfViTForDINO.from_pretrained,
    "SelfViTForImageClassification": SelfViTForImageClassification.from_pretrained,
    "SelfViTBackbone": SelfViTBackbone.from_pretrained,
    "load_strictly": lambda checkpoint: load_strictly(SelfViTModel, checkpoint),
    "pipeline": lambda checkpoint: pipeline("image-feature-extraction", model=str(checkpoint)),
    "audit": audit,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_newer_format_is_an_error_that_names_folder_and_version(opener, checkpoint):
    # before any field is validated: here one has a type that is wrong today
    rewrite(checkpoint, format_version=2, selfvit_version="1.2.0", patch_size=[8, 8])
    with pytest.raises(ValueError) as error:
        OPENERS[opener](checkpoint)
    message = str(error.value)
    assert f"format_version (2) in config.json of {str(checkpoint)!r} is newer" in message
    assert f"selfvit {__version__} can read (up to 1)" in message
    assert message.endswith("install selfvit 1.2.0 or newer to open this checkpoint.")


def test_a_newer_format_is_an_error_in_a_nested_backbone():
    stored = {**tiny_config().to_dict(), "format_version": 2}
    with pytest.raises(ValueError, match=r"format_version \(2\) is newer"):
        AutoBackbone.from_config(SelfViTConfig(**stored))


@pytest.mark.parametrize("writer", ["left out", '1.0"; rm -rf "$HOME', 7])
def test_the_suggested_version_is_only_a_version_number(writer, checkpoint):
    rewrite(checkpoint, format_version=2, selfvit_version=writer)
    with pytest.raises(ValueError, match="is newer than selfvit") as error:
        AutoModel.from_pretrained(checkpoint)
    if writer == 7:
        assert "install selfvit 7 or newer" in str(error.value)
    else:
        assert "install a newer version of selfvit" in str(error.value)
        assert "rm -rf" not in str(error.value)


@pytest.mark.parametrize("found", ["two", 1.5, 0, True, None])
def test_an_invalid_format_version_is_an_error(found, checkpoint):
    rewrite(checkpoint, format_version=found)
    with pytest.raises(ValueError, match="format_version .* must be an integer of at least 1"):
        AutoConfig.from_pretrained(checkpoint)
