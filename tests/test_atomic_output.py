import os
import signal
import subprocess
import sys

import pytest

from selfvit.atomic_output import atomic_output


def make_folder(path, content):
    path.mkdir(parents=True)
    (path / "inside.txt").write_text(content)


def test_a_file_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for content in ("first", "second"):
        with atomic_output(path) as unfinished:
            unfinished.write_text(content)
        assert path.read_text() == content and os.listdir(path.parent) == ["file.txt"]


def test_a_folder_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "new" / "folder"
    for content in ("first", "second"):
        with atomic_output(path) as unfinished:
            make_folder(unfinished, content)
            (unfinished / content).touch()
        assert (path / "inside.txt").read_text() == content
        assert set(os.listdir(path)) == {"inside.txt", content}
        assert os.listdir(path.parent) == ["folder"]


def test_the_output_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_output(path) as unfinished:
        unfinished.write_text("x")
        assert not path.exists() and unfinished.parent == path.parent


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    file, folder = tmp_path / "file.txt", tmp_path / "folder"
    file.write_text("old")
    make_folder(folder, "old")
    with pytest.raises(error), atomic_output(file) as unfinished:
        unfinished.write_text("new")
        raise error
    with pytest.raises(error), atomic_output(folder) as unfinished:
        make_folder(unfinished, "new")
        raise error
    assert file.read_text() == (folder / "inside.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "file.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_file_never_replaces_a_folder(tmp_path):
    make_folder(tmp_path / "folder", "old")
    with pytest.raises(OSError), atomic_output(tmp_path / "folder") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "folder" / "inside.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_killed_process_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal\n"
        "from selfvit.atomic_output import atomic_output\n"
        f"with atomic_output({str(path)!r}) as unfinished:\n"
        "    unfinished.write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code])
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
