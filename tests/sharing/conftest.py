import shutil

import pytest
import torch

from selfvit import SelfViTForImageClassification
from selfvit.embedding.preprocessing import build_processor

from ..local_hub import LocalHub
from ..objectives import OBJECTIVES, tiny_config
from .hub_client import HubClient

CARD = """---
library_name: transformers
license: apache-2.0
---

# A model

![Attention](pictures/attention.png)
"""


@pytest.fixture(scope="session")
def running_hub():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub):
    """Return the local Hub after emptying it."""
    running_hub.repositories.clear()
    running_hub.lfs.clear()
    running_hub.faults.clear()
    running_hub.requests.clear()
    return running_hub


@pytest.fixture(scope="session")
def client(running_hub, tmp_path_factory):
    """Start a process that uses the local Hub."""
    with HubClient(running_hub, tmp_path_factory.mktemp("hf_home")) as client:
        yield client


def write_checkpoint(folder, model, **save_options):
    """Write the files of a finished run without its optimizer states and logs."""
    model.save_pretrained(folder, **save_options)
    build_processor(model.config).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "training.yaml").write_text("recipe: dino_demo\n")
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Write one checkpoint per objective and a classifier; return the folders by name."""
    torch.manual_seed(0)
    models = {objective.name: objective.model_class(objective.config()) for objective in OBJECTIVES}
    models["classifier"] = SelfViTForImageClassification(tiny_config(num_labels=3))
    return {
        name: write_checkpoint(tmp_path_factory.mktemp(name), model)
        for name, model in models.items()
    }


@pytest.fixture(scope="session")
def images(image_folder):
    return sorted(str(path) for path in image_folder.rglob("*.*"))[:3]


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """Return a copy of the DINO checkpoint that the test may change."""
    return shutil.copytree(checkpoints["dino"], tmp_path / "my_model")
