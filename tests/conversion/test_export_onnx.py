import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from selfvit import SelfViTModel
from selfvit.cli import app
from selfvit.conversion.exporters.export import export
from selfvit.conversion.exporters.onnx import Int8

for name in ("onnx", "onnxscript"):
    pytest.importorskip(name)
onnxruntime = pytest.importorskip("onnxruntime")


def vectors(path, pixel_values):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixel_values.numpy()})[0]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint(
        pooling="cls+mean", num_register_tokens=2, layerscale_value=0.5, num_hidden_layers=2
    )


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    report = export(checkpoint, folder, to="onnx", normalize=True, int8=Int8(min_cosine=0.9))
    assert report.fidelity.max_difference < 1e-5
    return folder, report


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (5, 3, 32, 32), (3, 3, 16, 56), (2, 3, 64, 8)])
def test_vectors_match_for_any_batch_and_image_size(shape, checkpoint, exported):
    pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = SelfViTModel.from_pretrained(checkpoint).eval()(pixel_values).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    found = vectors(exported[0] / "model.onnx", pixel_values)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_folder_holds_the_graphs_and_the_preprocessing(exported):
    assert sorted(path.name for path in exported[0].iterdir()) == [
        "model.onnx", "model_int8.onnx", "preprocessor_config.json", "selfvit_export.json",
    ]  # fmt: skip


def test_the_graph_contains_no_local_paths(exported):
    # Every node used to carry the stack trace of the Python code that created it.
    content = (exported[0] / "model.onnx").read_bytes()
    assert b"modeling_selfvit.py" not in content and b".py" not in content


def test_the_reported_cosine_is_that_of_the_8_bit_graph(checkpoint, exported):
    folder, report = exported
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full, quantized = (vectors(folder / name, images) for name in ("model.onnx", "model_int8.onnx"))
    assert not np.array_equal(full, quantized)
    full, quantized = full - full.mean(axis=0), quantized - full.mean(axis=0)
    cosines = (full * quantized).sum(1) / np.linalg.norm(full, axis=1)
    cosines /= np.linalg.norm(quantized, axis=1)
    (note,) = report.fidelity.notes
    assert f"{cosines.mean():.4f} on average, {cosines.min():.4f} at least" in note
    assert "random pixels" in note


def test_an_8_bit_graph_below_min_cosine_on_the_given_images_is_refused(
    make_checkpoint, image_folder, tmp_path
):
    arguments = [make_checkpoint(num_hidden_layers=1), "--output", tmp_path / "out"]
    arguments += [
        "--to",
        "onnx",
        "--int8",
        "--data",
        image_folder,
        "--max-images",
        4,
        "--min-cosine",
        1,
    ]
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
    assert result.exit_code == 2
    assert "over 4 images (the given images); the average must be at least 1.0" in result.stderr
    assert not list(tmp_path.iterdir())
