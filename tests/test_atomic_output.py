import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from selfvit.atomic_output import atomic_output, check_output


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


class TestCheckOutput:
    @pytest.fixture
    def earlier(self, tmp_path):
        folder = tmp_path / "earlier"
        folder.mkdir()
        (folder / "report.json").write_text('{"created_by": "selfvit embed"}')
        (folder / "model.bin").touch()
        return folder

    def check(self, folder, overwrite=True):
        check_output(
            folder,
            "report.json",
            overwrite,
            files=("report.json", "model*", "[12]_*/"),
            created_by="selfvit embed",
        )

    def test_new_and_empty_folders_are_accepted(self, tmp_path):
        self.check(tmp_path / "new", overwrite=False)
        self.check(tmp_path, overwrite=False)

    @pytest.mark.parametrize("kind", ["file", "link", "broken link"])
    def test_files_and_links_are_refused(self, kind, earlier, tmp_path):
        path = tmp_path / "output"
        if kind == "file":
            path.touch()
        else:
            path.symlink_to(earlier if kind == "link" else tmp_path / "missing")
        with pytest.raises(FileExistsError, match="is a file or a link"):
            self.check(path)

    def test_an_earlier_result_is_replaced_only_with_overwrite(self, earlier):
        self.check(earlier)
        with pytest.raises(FileExistsError, match="is not empty; .* --overwrite"):
            self.check(earlier, overwrite=False)

    @pytest.mark.parametrize("content", [None, "{}", "[]", "text", '{"created_by": "me"}'])
    def test_a_folder_without_the_marker_is_not_replaced(self, content, earlier):
        if content is None:
            (earlier / "report.json").unlink()
        else:
            (earlier / "report.json").write_text(content)
        with pytest.raises(FileExistsError, match=r"but no report.json created by 'selfvit embed'"):
            self.check(earlier)

    def test_a_folder_with_another_file_is_not_replaced(self, earlier):
        (earlier / "notes.txt").touch()
        with pytest.raises(FileExistsError, match=r"notes.txt, which 'selfvit embed' did not"):
            self.check(earlier)
        check_output(earlier, "report.json", overwrite=True)  # any name is allowed without `files`

    def test_only_a_pattern_that_ends_with_a_slash_matches_a_folder(self, earlier):
        # a folder models/ of the user was deleted, because its name matches model*
        (earlier / "1_Pooling").mkdir()
        self.check(earlier)
        (earlier / "models").mkdir()
        with pytest.raises(FileExistsError, match=r"models, which 'selfvit embed' did not"):
            self.check(earlier)
        (earlier / "models").rmdir()
        (earlier / "2_notes").touch()
        with pytest.raises(FileExistsError, match=r"2_notes, which"):
            self.check(earlier)


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    with atomic_output(tmp_path / "pipe") as unfinished:
        unfinished.write_text("42")
    reader.join(10)
    assert received == ["42"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
