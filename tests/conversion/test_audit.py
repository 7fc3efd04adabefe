import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from typer.testing import CliRunner

from selfvit import SelfViTForImageClassification
from selfvit.cli import app
from selfvit.conversion.audit.audit import audit
from selfvit.conversion.exporters.export import export

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
VIT = {**SIZES, "intermediate_size": 64}
IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}


def write(folder, model, **statistics):
    """Write a model and its processor, with ImageNet statistics by default."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, **(statistics or IMAGENET)).save_pretrained(folder)
    return folder


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def faults(folder):
    return [finding.fault for finding in audit(folder).findings]


@pytest.fixture
def sound(tmp_path):
    """Return the folder of a Dinov2Model without faults."""
    return write(tmp_path / "sound", Dinov2Model(Dinov2Config(**SIZES)))


class TestNoFaults:
    def test_sound_checkpoints(self, sound, tiny_checkpoint, tmp_path):
        assert audit(sound).findings == [] and audit(sound).notes == []
        assert audit(tiny_checkpoint).findings == []
        with_pooler = write(tmp_path / "vit", ViTModel(ViTConfig(**VIT)))
        assert audit(with_pooler).findings == []

    @pytest.mark.parametrize("to", ["transformers", "timm", "sentence-transformers"])
    def test_exports(self, to, tiny_checkpoint, tmp_path):
        if to != "transformers":
            pytest.importorskip(to.replace("-", "_"))
        export(tiny_checkpoint, tmp_path / "out", to=to)
        assert audit(tmp_path / "out").findings == []

    def test_encoders_and_classifiers(self, make_checkpoint, tmp_path):
        folder = make_checkpoint(num_register_tokens=2, position_embedding_type="sincos")
        assert audit(folder).findings == []
        classifier = SelfViTForImageClassification.from_pretrained(folder, num_labels=3)
        shutil.copytree(folder, tmp_path / "classifier")
        classifier.save_pretrained(tmp_path / "classifier")
        assert audit(tmp_path / "classifier").findings == []

    def test_shards_and_pickles_of_tensors(self, sound, tmp_path):
        sharded = tmp_path / "sharded"
        shutil.copytree(sound, sharded)
        (sharded / "model.safetensors").unlink()
        Dinov2Model.from_pretrained(sound).save_pretrained(sharded, max_shard_size="40KB")
        assert (sharded / "model.safetensors.index.json").is_file()
        assert audit(sharded).findings == []
        weights = load_file(sound / "model.safetensors")
        (sound / "model.safetensors").unlink()
        torch.save(weights, sound / "pytorch_model.bin")
        assert audit(sound).findings == []


class TestCommonFaults:
    def test_random_pooler(self, tmp_path):
        # facebook/dino-vits16 is stored like this; AutoModel silently adds a pooler.
        folder = write(tmp_path / "x", ViTModel(ViTConfig(**VIT), add_pooling_layer=False))
        (finding,) = audit(folder).findings
        assert finding.fault == "random pooler" and "pooler.dense.weight" in finding.what
        classifier = write(tmp_path / "y", ViTForImageClassification(ViTConfig(**VIT)))
        assert faults(classifier) == ["random pooler"]

    def test_masking_encoder(self, tmp_path):
        decoder = {
            "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
        }  # fmt: skip
        model = ViTMAEForPreTraining(ViTMAEConfig(**VIT, **decoder))
        folder = write(tmp_path / "x", model)
        (finding,) = audit(folder).findings
        assert finding.fault == "masking encoder" and "mask_ratio 0.75" in finding.what
        change_config(folder, mask_ratio=0.0)
        assert faults(folder) == []

    def test_statistics_of_0_5_on_dino_weights(self, tmp_path):
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        folder = write(tmp_path / "facebook_dino-vits16", ViTModel(ViTConfig(**VIT)), **half)
        (finding,) = audit(folder).findings
        assert finding.fault == "wrong mean and std"
        assert "mean [0.5, 0.5, 0.5]" in finding.what and "0.485" in finding.fix
        assert "DINO was trained" in finding.what
        assert "the folder name is 'facebook_dino-vits16'" in finding.what

    def test_zero_positions(self, sound, tmp_path):
        change_weights(sound, lambda weights: weights["embeddings.position_embeddings"].zero_())
        (finding,) = audit(sound).findings
        assert finding.fault == "zero position embeddings"
        assert "embeddings.position_embeddings" in finding.what
        # A new ViTMAE of transformers 5.23 has zero positions.
        mae = write(tmp_path / "x", ViTMAEForPreTraining(ViTMAEConfig(**VIT, mask_ratio=0.0)))
        name = "vit.embeddings.position_embeddings"
        change_weights(mae, lambda weights: weights[name].zero_())
        assert faults(mae) == ["zero position embeddings"]


class TestTensors:
    def test_not_in_the_model(self, sound):
        change_weights(sound, lambda weights: weights.update(extra=torch.zeros(2)))
        (finding,) = audit(sound).findings
        assert finding.fault == "tensors not in the model" and "extra" in finding.what

    def test_missing_in_the_file(self, sound):
        change_weights(sound, lambda weights: weights.pop("embeddings.position_embeddings"))
        (finding,) = audit(sound).findings
        assert finding.fault == "tensors missing in the file"
        assert "embeddings.position_embeddings" in finding.what

    def test_with_an_unexpected_shape(self, sound):
        change_weights(sound, lambda weights: weights.update({"layernorm.bias": torch.ones(7)}))
        (finding,) = audit(sound).findings
        assert finding.fault == "tensors with unexpected shapes"
        assert "layernorm.bias (7,) instead of (32,)" in finding.what

    def test_of_a_head_that_the_saved_class_lacks(self, tmp_path):
        folder = write(tmp_path / "x", ViTForImageClassification(ViTConfig(**VIT)))
        change_weights(folder, lambda weights: weights.update({"head.weight": torch.ones(2)}))
        assert faults(folder) == ["random pooler", "tensors not in the model"]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value, sound):
        change_weights(sound, lambda weights: weights["layernorm.bias"][3:4].fill_(value))
        (finding,) = audit(sound).findings
        assert finding.fault == "non-finite values" and "layernorm.bias" in finding.what

    def test_of_a_selfvit_checkpoint(self, tiny_checkpoint, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(tiny_checkpoint, folder)
        change_weights(folder, lambda weights: weights.pop("student.head.last_layer.direction"))
        (finding,) = audit(folder).findings
        assert "student.head.last_layer.direction" in finding.what

    def test_of_a_timm_folder(self, tiny_checkpoint, tmp_path):
        pytest.importorskip("timm")
        export(tiny_checkpoint, tmp_path / "out", to="timm")
        change_weights(tmp_path / "out", lambda weights: weights.pop("norm.bias"))
        change_weights(tmp_path / "out", lambda weights: weights["pos_embed"].zero_())
        change_weights(tmp_path / "out", lambda weights: weights.update(extra=torch.ones(1)))
        kinds = ["tensors not in the model", "tensors missing in the file"]
        assert faults(tmp_path / "out") == [*kinds, "zero position embeddings"]


class TestUnreadableFiles:
    def test_a_pickle_with_other_objects_is_not_executed(self, sound, tmp_path):
        trace = tmp_path / "executed"

        class Malicious:
            def __reduce__(self):
                return Path.touch, (trace,)

        (sound / "model.safetensors").unlink()
        torch.save({"layernorm.bias": Malicious()}, sound / "pytorch_model.bin")
        (finding,) = audit(sound).findings
        assert finding.fault == "unreadable weights" and not trace.exists()
        with open(sound / "pytorch_model.bin", "wb") as file:
            pickle.dump(Malicious(), file)
        assert faults(sound) == ["unreadable weights"] and not trace.exists()

    def test_code_of_the_checkpoint_is_not_executed(self, sound, tmp_path):
        trace = tmp_path / "executed"
        (sound / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
        change_config(
            sound, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}
        )
        with pytest.raises(ValueError, match=r"model_type \('own'\) must be one that"):
            audit(sound)
        assert not trace.exists()

    def test_a_truncated_file_and_a_missing_one(self, sound):
        content = (sound / "model.safetensors").read_bytes()
        (sound / "model.safetensors").write_bytes(content[: len(content) // 2])
        assert faults(sound) == ["unreadable weights"]
        (sound / "model.safetensors").unlink()
        (finding,) = audit(sound).findings
        assert "there is none of model.safetensors" in finding.what

    def test_a_missing_image_processor(self, sound):
        (sound / "preprocessor_config.json").unlink()
        assert faults(sound) == ["missing image processor"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "must be a folder with a config.json"),
            ("{", "is not valid JSON"),
            ("{}", "must have model_type"),
        ],
    )
    def test_a_folder_without_a_checkpoint_is_refused(self, content, message, tmp_path):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            audit(tmp_path)


class TestFamilies:
    """The model family determines the expected statistics."""

    def vit(self, folder, **statistics):
        return write(folder, ViTModel(ViTConfig(**VIT)), **statistics)

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

    @pytest.mark.parametrize("name", ["dinosaurs", "casadino", "maestro"])
    def test_weights_of_an_unknown_family_have_no_finding(self, name, tmp_path):
        result = audit(self.vit(tmp_path / name, **self.half))
        assert result.findings == [] and "the model family is unknown" in result.notes[0]

    @pytest.mark.parametrize(
        ("card", "evidence"),
        [
            ("base_model: facebook/dino-vitb8", "base_model of the model card"),
            ("tags: [vision, dino]", "a tag of the model card is 'dino'"),
        ],
    )
    def test_the_model_card_identifies_the_family(self, card, evidence, tmp_path):
        folder = self.vit(tmp_path / "weights", **self.half)
        (folder / "README.md").write_text(f"---\n{card}\n---\n# Weights\n")
        (finding,) = audit(folder).findings
        assert evidence in finding.what

    @pytest.mark.parametrize("card", [b"---\ntags: [a\n b: : c\n---\n", b"\xff\xfe\x00", b""])
    def test_a_broken_model_card_is_ignored(self, card, tmp_path):
        folder = self.vit(tmp_path / "weights", **self.half)
        (folder / "README.md").write_bytes(card)
        assert audit(folder).findings == []

    def test_the_config_and_the_hub_cache_identify_the_family(self, tmp_path):
        folder = self.vit(tmp_path / "weights", **self.half)
        change_config(folder, _name_or_path="facebook/vit-msn-small")
        assert "_name_or_path in config.json" in audit(folder).findings[0].what
        folder = tmp_path / "models--facebook--dino-vits8" / "snapshots" / "0a1b"
        assert faults(self.vit(folder, **self.half)) == ["wrong mean and std"]

    def test_google_vit_needs_0_5(self, tmp_path):
        folder = self.vit(tmp_path / "models--google--vit-base-patch16-224", **IMAGENET)
        (finding,) = audit(folder).findings
        assert "set image_mean to [0.5, 0.5, 0.5]" in finding.fix

    def test_images_that_are_not_normalized_are_found(self, sound):
        BitImageProcessor(do_normalize=False).save_pretrained(sound)
        (finding,) = audit(sound).findings
        assert "do_normalize is false" in finding.what


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["audit", *(str(argument) for argument in arguments)])

    def test_a_sound_checkpoint_is_one_line_and_exit_code_0(self, sound):
        result = self.run(sound)
        assert result.exit_code == 0
        assert result.stdout == f"{sound}: no faults found (dinov2).\n"

    def test_a_fault_is_printed_with_its_fix_and_exit_code_1(self, sound):
        (sound / "preprocessor_config.json").unlink()
        result = self.run(sound)
        assert result.exit_code == 1
        assert "missing image processor: no image processor can be loaded" in result.stdout
        assert "why it matters: " in result.stdout and "what to do: " in result.stdout

    def test_json_output_has_the_same_content(self, sound):
        (sound / "preprocessor_config.json").unlink()
        result = self.run(sound, "--json")
        assert result.exit_code == 1
        content = json.loads(result.stdout)
        assert (
            content["kind"] == "dinov2"
            and content["findings"][0]["fault"] == "missing image processor"
        )

    def test_a_missing_folder_is_exit_code_2(self, tmp_path):
        assert self.run(tmp_path / "nowhere").exit_code == 2


def test_the_global_random_state_is_unchanged(tmp_path):
    folder = write(tmp_path / "x", ViTModel(ViTConfig(**VIT), add_pooling_layer=False))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert faults(folder) == ["random pooler"]
    assert torch.equal(torch.get_rng_state(), before)
