"""Fixtures of all tests. The tests use neither the network nor the caches of the user."""

import functools
import gc
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

# datasets, huggingface_hub and transformers read these variables once, when they are imported.
CACHE = tempfile.TemporaryDirectory(prefix="selfvit-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = CACHE.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(CACHE.name, "datasets")

import pytest  # noqa: E402
import torch  # noqa: E402
import typer.testing  # noqa: E402

from selfvit import DINOConfig, SelfViTConfig, SelfViTForDINO  # noqa: E402
from selfvit.embedding.preprocessing import build_processor  # noqa: E402

from .image_files import noise  # noqa: E402
from .warm_python import COMMANDS, THIRD_PARTY, warm_python  # noqa: E402

torch.set_num_threads(1)
# Each call of CliRunner would assemble the options of all commands again, for 40 ms.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_configure(config):
    """Give each process of pytest-xdist neighboring tests, so that few fixtures are built twice."""
    if getattr(config.option, "dist", "no") == "load":  # what `-n` sets
        config.option.dist = "worksteal"


def pytest_collection_finish():
    """Exclude imported objects from garbage collection; scanning them takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_config():
    return SelfViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,  # makes outputs depend clearly on the image
        dino_config=DINOConfig(num_prototypes=16, head_hidden_size=24, head_bottleneck_size=8),
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config, tmp_path_factory):
    """Checkpoint of a SelfViTForDINO whose student and teacher differ, with an image processor."""
    torch.manual_seed(0)
    model = SelfViTForDINO(tiny_config)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    build_processor(tiny_config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Nested folder with seven images of three classes."""
    folder = tmp_path_factory.mktemp("images")
    paths = ["cat/1.png", "cat/2.JPG", "cat/more/3.png", "dog/1.png", "dog/2.png", "owl/1.png"]
    for seed, path in enumerate([*paths, "owl/2.webp"]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        noise(40 + 3 * seed, 50, seed).save(folder / path)
    return folder


@pytest.fixture(scope="session")
def start_python() -> Iterator[Callable[..., Path]]:
    """Return a function from variables and preloaded modules to a folder of commands.

    Each server is started once. See `warm_python`.
    """
    started: dict[tuple, Path] = {}
    with ExitStack() as stack:

        def start(environment: Mapping[str, str], preload: Sequence[str] = COMMANDS) -> Path:
            key = (frozenset(environment.items()), *preload)
            if key not in started:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))
                started[key] = stack.enter_context(warm_python(Path(folder), environment, preload))
            return started[key]

        yield start


@pytest.fixture(scope="session")
def python_with_selfvit(start_python) -> Path:
    """Return a `python` that has imported torch, transformers and selfvit already.

    For commands that run to their end. A test of the process itself, such as one of signals,
    memory or imports, starts `sys.executable`.
    """
    return start_python({}) / "python"


@pytest.fixture(scope="session")
def python_with_torch(start_python) -> Path:
    """Return a `python` that has imported everything but transformers and selfvit already.

    A UserWarning of the module selfvit is an error.
    """
    warnings = {"PYTHONWARNINGS": "error::UserWarning:selfvit"}
    return start_python(warnings, THIRD_PARTY) / "python"


@pytest.fixture
def small_disk(tmp_path):
    """File system with a capacity of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {getattr(error, 'stderr', error)}")
    yield folder
    # lazy, because a traceback may keep a file open
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
