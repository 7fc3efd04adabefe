import subprocess

import pytest
from accelerate.state import AcceleratorState, GradientState

from ..image_files import noise


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps its state in singletons; each run in this process starts without them."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory):
    """24 images in two folders: bright ones and dark ones."""
    folder = tmp_path_factory.mktemp("two_classes")
    for index in range(24):
        name = "bright" if index % 2 else "dark"
        (folder / name).mkdir(exist_ok=True)
        image = noise(40, 36, index).point(
            lambda level, name=name: level // 2 + 127 * (name == "bright")
        )
        image.save(folder / name / f"{index:02d}.png")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {getattr(error, 'stderr', error)}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a traceback may hold a file
