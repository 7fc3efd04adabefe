"""Properties that all exports share, tested on the fastest format."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from selfvit import SelfViTForImageClassification, SelfViTModel, __version__
from selfvit.atomic_output import check_output
from selfvit.cli import app
from selfvit.conversion.exporters.export import FILES, FORMATS, export
from selfvit.conversion.exporters.fidelity import measure_difference
from selfvit.conversion.exporters.onnx import Int8
from selfvit.embedding.engines.fidelity import centered_cosines
from selfvit.sharing.provenance import EXPORT_FILE


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture
def copied(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(checkpoint, folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


class TestOutput:
    def test_the_export_file_records_checkpoint_and_license(self, checkpoint, tmp_path):
        report = export(checkpoint, tmp_path / "out", to="transformers")
        content = json.loads((tmp_path / "out" / "selfvit_export.json").read_text())
        assert content == {
            "created_by": "selfvit export", "selfvit_version": __version__, "pooling": "cls",
            "normalize": False, "max_difference": report.fidelity.max_difference, "notes": [],
            "checkpoint": checkpoint.name, "network": "teacher", "to": "transformers",
            "license": None, "license_name": None, "license_link": None, "base_model": None,
        }  # fmt: skip

    # for onnx, see test_export_onnx.py::test_the_folder_holds_the_graphs_and_the_preprocessing
    @pytest.mark.parametrize("to", [name for name in FORMATS if name != "onnx"])
    def test_no_code_of_the_checkpoint_is_copied(self, to, checkpoint, tmp_path):
        assert (checkpoint / "modeling_selfvit.py").is_file()
        export(checkpoint, tmp_path / "out", to=to)
        assert not list((tmp_path / "out").rglob("*.py"))
        for config in (tmp_path / "out").rglob("*.json"):
            assert "auto_map" not in config.read_text(), config

    def test_an_earlier_export_is_replaced_only_on_request(self, checkpoint, tmp_path):
        export(checkpoint, tmp_path / "out", to="timm")
        with pytest.raises(FileExistsError, match="is not empty; choose a new folder, or use --ov"):
            export(checkpoint, tmp_path / "out", to="transformers")
        export(checkpoint, tmp_path / "out", to="transformers", overwrite=True)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "dinov2"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("to", FORMATS)
    def test_all_files_of_an_export_are_known_as_its_own(self, to, checkpoint, tmp_path):
        if to == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        is_full = to == "sentence-transformers"
        options = {"pooling": "cls+mean", "normalize": True} if is_full else {}
        export(checkpoint, tmp_path, to=to, **options)
        check_output(tmp_path, EXPORT_FILE, True, files=FILES, created_by="selfvit export")

    def test_other_files_are_never_deleted(self, checkpoint, copied):
        for output in (copied, copied / "config.json"):
            with pytest.raises(FileExistsError):
                export(checkpoint, output, to="transformers", overwrite=True)
        export(checkpoint, copied.parent / "out", to="timm")
        (copied.parent / "out" / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"notes\.txt"):
            export(checkpoint, copied.parent / "out", to="timm", overwrite=True)
        (copied.parent / "out" / "notes.txt").rename(copied.parent / "out" / "model_notes.txt")
        with pytest.raises(FileExistsError, match=r"model_notes\.txt"):
            export(checkpoint, copied.parent / "out", to="timm", overwrite=True)
        assert SelfViTModel.from_pretrained(copied) is not None

    def test_a_failed_export_keeps_the_earlier_one(self, checkpoint, copied, tmp_path):
        export(checkpoint, tmp_path / "out", to="timm")
        held = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        (copied / "preprocessor_config.json").unlink()
        with pytest.raises(FileNotFoundError, match="has no image processor"):
            export(copied, tmp_path / "out", to="timm", overwrite=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == held
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_checkpoint_with_a_missing_tensor_is_refused(self, copied, tmp_path):
        weights = load_file(copied / "model.safetensors")
        del weights["layers.1.mlp.fc1.bias"]
        save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"missing in the checkpoint: layers\.1\.mlp\.fc1"):
            export(copied, tmp_path / "out", to="transformers")
        assert not list(tmp_path.iterdir())

    def test_a_classifier_is_left_out_and_reported(self, checkpoint, copied, tmp_path):
        model = SelfViTForImageClassification.from_pretrained(checkpoint, num_labels=3)
        model.save_pretrained(copied)
        report = export(copied, tmp_path / "out", to="transformers")
        assert "the classifier is left out" in report.fidelity.notes[0]

    def test_a_checkpoint_of_another_library_is_converted_first(
        self, checkpoint, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
        export(checkpoint, tmp_path / "out", to="transformers")
        report = export(tmp_path / "out", tmp_path / "again", to="timm")
        assert report.fidelity.max_difference < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "tensorflow"}, r"to \('tensorflow'\) must be one of transformers, timm, onnx"),
        ({"to": "timm", "normalize": True}, "normalize cannot be expressed in timm"),
        ({"to": "timm", "int8": Int8(0.9)}, "int8 is for --to onnx, not for --to timm"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


class TestFidelity:
    def test_a_different_encoder_is_detected(self, checkpoint):
        encoder = SelfViTModel.from_pretrained(checkpoint).eval()
        other = SelfViTModel.from_pretrained(checkpoint).eval()
        assert measure_difference(encoder, lambda pixels: other(pixels).pooler_output) == 0
        with torch.no_grad():
            other.layers[0].mlp.fc2.bias[0] += 0.01
        with pytest.raises(
            ValueError, match="must match the encoder.*differs by .* at 32 x 32 pixels"
        ):
            measure_difference(encoder, lambda pixels: other(pixels).pooler_output)

    def test_nan_vectors_are_detected(self, checkpoint):
        encoder = SelfViTModel.from_pretrained(checkpoint).eval()
        with pytest.raises(ValueError, match="it differs by nan"):
            measure_difference(encoder, lambda pixels: encoder(pixels).pooler_output * torch.nan)

    def test_a_shared_mean_does_not_increase_the_cosine(self):
        reference = torch.tensor([[101.0, 100], [99.0, 100]])
        other = torch.tensor([[100.0, 101], [100.0, 99]])
        plain = torch.nn.functional.cosine_similarity(reference, other)
        assert plain.min() > 0.999
        torch.testing.assert_close(centered_cosines(reference, other), torch.zeros(2))
        with pytest.raises(ValueError, match=r"images \(1\) must be at least 2"):
            centered_cosines(reference[:1], other[:1])


class TestCommand:
    def test_output_is_next_to_the_checkpoint_by_default_and_difference_is_printed(self, copied):
        result = run(copied, "--to", "timm")
        assert result.exit_code == 0, result.output
        assert f"{copied}-timm: pooling cls, largest difference from selfvit" in result.stdout
        assert "note: vectors are the same at 32 x 32 pixels" in result.stdout
        assert (copied.parent / "copy-timm" / "model.safetensors").is_file()

    def test_errors_are_one_line(self, checkpoint, tmp_path):
        result = run(
            checkpoint, "--output", tmp_path / "out", "--to", "transformers", "--pooling", "mean"
        )
        assert result.exit_code == 2 and result.stderr.startswith("error: pooling ('mean')")
        for name, value in {"data": "images", "min-cosine": 0.5, "max-images": 9}.items():
            words = ["--output", tmp_path / "out", "--to", "onnx", f"--{name}", value]
            result = run(checkpoint, *words)
            assert result.exit_code == 2 and not (tmp_path / "out").exists()
            assert f"--{name} ({value}) is for measuring the 8-bit graph; add" in result.stderr
