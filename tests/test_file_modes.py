import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from selfvit.atomic_output import atomic_output
from selfvit.file_modes import apply_umask


@pytest.fixture(params=[(0o022, 0o644), (0o027, 0o640)], ids=["022", "027"])
def mode(request):
    """Set the umask, and return the mode of a new file."""
    umask, mode = request.param
    earlier = os.umask(umask)
    yield mode
    os.umask(earlier)


def write_weights(path):
    save_file({"weight": torch.zeros(2)}, path)
    return path


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_gets_the_mode_of_a_new_file(mode, tmp_path):
    path = write_weights(tmp_path / "model.safetensors")
    apply_umask([path])
    assert mode_of(path) == mode
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_files_in_folders_get_it_and_folders_and_links_do_not(mode, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    folder_mode = mode_of(folder)
    path = write_weights(folder / "model.safetensors")
    private = write_weights(tmp_path / "private.safetensors")
    private.chmod(0o600)
    (folder / "link").symlink_to(private)
    apply_umask([tmp_path / "a"])
    assert mode_of(path) == mode
    assert mode_of(folder) == folder_mode
    assert mode_of(private) == 0o600


@pytest.mark.parametrize("is_folder", [False, True])
def test_atomic_output_follows_the_umask(is_folder, mode, tmp_path):
    with atomic_output(tmp_path / "out") as unfinished:
        if is_folder:
            unfinished.mkdir()
        write_weights(unfinished / "model.safetensors" if is_folder else unfinished)
    path = tmp_path / "out" / "model.safetensors" if is_folder else tmp_path / "out"
    assert mode_of(path) == mode


def test_the_umask_stays_what_it_was(tmp_path):
    earlier = os.umask(0o077)
    try:
        apply_umask([write_weights(tmp_path / "model.safetensors")])
        assert os.umask(0o077) == 0o077
        assert mode_of(tmp_path / "model.safetensors") == 0o600
    finally:
        os.umask(earlier)
