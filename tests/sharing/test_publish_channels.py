"""Publishing of checkpoints that read other channels than RGB, and loading them back."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from selfvit import SelfViTModel
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.checkpoints.pretrained import write_checkpoint

from ..hub_requests import TOKEN, USER
from ..objectives import tiny_config
from ..python_without_selfvit import create_python_without_selfvit
from .conftest import CARD

REPOSITORY = f"{USER}/bands"
WITHOUT_SELFVIT = """
import importlib.util, json, sys
assert importlib.util.find_spec("selfvit") is None, "selfvit can be imported"
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel

repository, image, results = sys.argv[1:]
trust = {"trust_remote_code": True}
processor = AutoImageProcessor.from_pretrained(repository, **trust)
pixels = processor(np.load(image), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    vector = AutoModel.from_pretrained(repository, **trust)(pixels).pooler_output[0].tolist()
messages = []
for options in ({"pooling": "concat:99"}, {"mlp_ratio": -1.0}):
    try:
        AutoModel.from_pretrained(repository, **trust, **options)
        messages.append("")
    except Exception as error:
        messages.append(str(error))
json.dump({"vector": vector, "messages": messages}, open(results, "w"))
"""


@pytest.fixture
def bands(tmp_path):
    """Return the folder of a checkpoint of four channels, and an image."""
    torch.manual_seed(0)
    config = tiny_config(num_channels=4, initializer_range=0.2)
    processor = build_processor(config, mean=[0.1, 0.2, 0.3, 0.4], std=[0.5] * 4)
    folder = tmp_path / "bands"
    write_checkpoint(SelfViTModel(config), folder, processor, CARD)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    return folder, tmp_path / "image.npy"


def test_a_checkpoint_of_four_channels_loads_back_with_remote_code(hub, client, bands, tmp_path):
    folder, image = bands
    code, printed = client.run("publish", folder, REPOSITORY)
    assert code == 0, printed
    sent = set(hub.repositories[REPOSITORY].main.files)
    assert {"image_processing_selfvit.py", "modeling_selfvit.py", "configuration_selfvit.py"} < sent

    code, printed = client.run(
        *("embed", REPOSITORY, "--data", image, "--output", tmp_path / "vectors")
    )
    assert code == 0, printed
    python = create_python_without_selfvit(tmp_path / "environment")
    environment = hub.environment(tmp_path / "home", token=TOKEN)
    process = subprocess.run(
        [python, "-I", "-c", WITHOUT_SELFVIT, REPOSITORY, str(image), tmp_path / "results.json"],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    pixels = AutoImageProcessor.from_pretrained(folder)(np.load(image), return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(**pixels).pooler_output[0].numpy()
    np.testing.assert_allclose(found["vector"], expected, atol=1e-6)
    assert "asks for more blocks than num_hidden_layers (3)" in found["messages"][0]
    assert "mlp_ratio (-1.0)" in found["messages"][1]


def test_a_processor_of_other_channels_is_not_published(hub, client, bands):
    folder, _ = bands
    build_processor(tiny_config()).save_pretrained(folder)
    code, printed = client.run("publish", folder, REPOSITORY)
    assert code == 2
    assert "must give the 4 channels that the model reads (num_channels)" in printed
    assert REPOSITORY not in hub.repositories
