import pytest
from accelerate.state import AcceleratorState, GradientState

from ..image_files import noise


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Reset Accelerate's singletons after each test, so that runs do not share state."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory):
    """Folder with 12 bright images in `bright` and 12 dark images in `dark`."""
    folder = tmp_path_factory.mktemp("two_classes")
    for index in range(24):
        name = "bright" if index % 2 else "dark"
        (folder / name).mkdir(exist_ok=True)
        image = noise(40, 36, index).point(
            lambda level, name=name: level // 2 + 127 * (name == "bright")
        )
        image.save(folder / name / f"{index:02d}.png")
    return folder
