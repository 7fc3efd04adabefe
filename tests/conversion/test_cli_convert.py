"""`selfvit convert`, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from selfvit.cli import app
from tests.conversion.source_files import golden_weights, save_weights
from tests.golden import load_golden


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "selfvit.cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run_here(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_what_was_done_is_printed_and_kept(python_with_selfvit: Path, tmp_path: Path):
    source = save_weights(golden_weights("lightly_dino_checkpoint"), tmp_path)
    result = run(python_with_selfvit, source, "--output", tmp_path / "out", "--num-heads", 3)
    assert result.returncode == 0, result.stderr
    for line in (
        "Lightly DINO module",
        "SelfViTForDINO",
        "num_hidden_layers = 4  [weights]",
        "num_attention_heads = 3  [option]",
        "layer_norm_eps = 1e-06  [convention]",
        "loss.center",
    ):
        assert line in result.stdout
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == [
        "README.md",
        "config.json",
        "configuration_selfvit.py",
        "conversion.json",
        "model.safetensors",
        "modeling_selfvit.py",
        "preprocessor_config.json",
    ]
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["fields"]["num_attention_heads"] == {"value": 3, "from": "option"}
    assert len(report["sha256"]) == 64
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "SelfViTForDINO"
    ]

    from transformers import AutoModel

    golden, _ = load_golden("lightly_dino_checkpoint")
    with torch.no_grad():
        model = AutoModel.from_pretrained(tmp_path / "out").eval()
        features = model(golden["images"]).pooler_output
    torch.testing.assert_close(features, golden["teacher_features"], rtol=1e-5, atol=1e-5)


def test_the_code_can_be_left_out_of_a_conversion_that_is_made_again(tmp_path: Path):
    source = save_weights(golden_weights("dino_vit"), tmp_path)
    for options, has_code in (((), True), (("--no-save-code", "--overwrite"), False)):
        result = run_here(source, "--output", tmp_path / "out", "--num-heads", 3, *options)
        assert result.exit_code == 0, result.output
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert any((tmp_path / "out").glob("*.py")) == has_code
        assert ("auto_map" in config) == has_code
    (tmp_path / "out" / "mine.py").write_text("")
    result = run_here(source, "--output", tmp_path / "out", "--num-heads", 3, "--overwrite")
    assert (
        result.exit_code == 2 and "mine.py, which 'selfvit convert' did not write" in result.output
    )


def test_a_mistake_is_one_message_and_exit_code_2(python_with_selfvit: Path, tmp_path: Path):
    weights = golden_weights("dino_vit")
    del weights["blocks.1.norm1.bias"]
    source = save_weights(weights, tmp_path)
    result = run(python_with_selfvit, source, "--output", tmp_path / "out", "--num-heads", 3)
    assert result.returncode == 2 and "blocks.1.norm1.bias" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()
    result = run(python_with_selfvit, tmp_path / "nothing.pth", "--output", tmp_path / "out")
    assert result.returncode == 2 and "there is no file" in result.stderr
