"""Property: images taken and images left out together are the images found, in every command."""

import re
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.training.train import main

from ..data.shards import write_tar
from ..training.tiny_runs import ENCODER, LOOP, OBJECTIVES
from ..visualization.test_reconstructions import save_mae
from .inputs import HEIC, IMAGE_TYPE, JXL, encoded, write_table

# Content of a file by its fault, and whether the file counts as an image that was found.
CONTENTS = {
    "png": (".png", encoded(0), True),
    "jpeg": (".JPG", encoded(1, "JPEG"), True),
    "webp": (".webp", encoded(2, "WEBP"), True),
    "no extension": ("", encoded(3), True),
    "other extension": (".jpeg~", encoded(4, "JPEG"), True),
    "truncated": (".png", encoded(5)[:90], True),
    "empty": (".jpg", b"", True),
    "text": (".gif", b"no image", True),
    "heic": (".heic", HEIC, True),
    "jxl": (".jxl", JXL, True),
    "raw": (".nef", b"II*\0", True),
    "notes": (".txt", b"notes", False),
    "hidden": (".png", encoded(0), False),
}
SOUND = {"png", "jpeg", "webp", "no extension", "other extension"}
TINY = [*OBJECTIVES["mae"], *ENCODER, *LOOP]
faults = st.lists(st.sampled_from(sorted(CONTENTS)), max_size=10)
inputs = st.tuples(st.sampled_from(["folder", "zip", "tar", "parquet", "list"]), faults)


def write(kind: str, names: list[str], root: Path) -> tuple[Path, int, int]:
    """Write an input with one file per name, and two sound ones; return it with its counts."""
    files, found, taken = {}, 0, 0
    for number, name in enumerate([*names, "png", "jpeg"]):
        extension, content, is_image = CONTENTS[name]
        prefix = "." if name == "hidden" else ""
        files[f"d{number % 3}/{prefix}f{number}{extension}"] = content
        if kind == "parquet" or (kind == "list" and name != "hidden"):
            is_image = True  # rows and lines are images, whatever is in them
        if kind == "zip" and name in ("no extension", "other extension"):
            is_image = True
        found += is_image
        taken += name in SOUND or (kind == "parquet" and name == "hidden")
    if kind == "list":
        found += names.count("hidden")
        taken += names.count("hidden")
    return _write_files(kind, files, root), found, taken


def _write_files(kind: str, files: dict[str, bytes], root: Path) -> Path:
    path = root / f"data.{kind}"
    if kind == "parquet":
        rows = [{"bytes": content, "path": name} for name, content in files.items()]
        return write_table(path, image=pa.array(rows, IMAGE_TYPE))
    if kind == "tar":
        return write_tar(path, files)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    folder = root / "files"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if kind == "folder":
        return folder
    path = root / "list.txt"
    path.write_text("\n".join(f"files/{name}" for name in files))
    return path


def counts(text: str, taken: int) -> tuple[int, int]:
    """Return the numbers found and taken of the line that a command prints, if it prints one."""
    line = re.search(r"images: (\d+) found, (\d+) taken, (\d+) left out", text)
    if line is None:
        return taken, taken
    assert int(line[1]) == int(line[2]) + int(line[3])
    return int(line[1]), int(line[2])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("accounting")


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    return save_mae(tmp_path_factory.mktemp("mae"), norm_pix_loss=False)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def command(*words) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@settings(max_examples=30, deadline=None, derandomize=True)
@given(inputs)
def test_embed_accounts_for_every_image(tiny_checkpoint, workplace, given_input):
    data, found, taken = write(*given_input, emptied(workplace))
    output = workplace / "vectors"
    where = ["--data", data, "--output", output, "--num-workers", 0, "--device", "cpu"]
    text = command("embed", tiny_checkpoint, *where)
    assert counts(text, taken) == (found, taken)
    listed = (output / "skipped.csv").read_text().splitlines()[1:]
    assert len(listed) == found - taken


@settings(max_examples=4, deadline=None, derandomize=True)
@given(inputs)
def test_other_commands_account_for_every_image(tiny_checkpoint, mae, workplace, given_input):
    data, found, taken = write(*given_input, emptied(workplace))
    skipped, picture = workplace / "skipped.csv", workplace / "picture.png"
    draw = ["--output", picture, "--overwrite", "--num-images", 100, "--num-workers", 0]
    for words in (
        ["evaluate", tiny_checkpoint, "--num-workers", 0, "--train"],
        ["stats", "--data"],
        ["visualize", "pca", tiny_checkpoint, *draw, "--data"],
        ["visualize", "attention", tiny_checkpoint, *draw, "--data"],
        ["visualize", "reconstruct", mae, *draw, "--data"],
    ):
        text = command(*words, data, "--skipped", skipped)
        assert counts(text, taken) == (found, taken)
        assert len(skipped.read_text().splitlines()) - 1 == found - taken
        skipped.unlink()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from(["tar", "parquet"]), faults)
def test_a_stream_accounts_for_every_image(tiny_checkpoint, workplace, kind, names):
    data, found, taken = write(kind, names, emptied(workplace))
    output = workplace / "vectors"
    where = ["--data", data, "--output", output, "--num-workers", 0, "--device", "cpu"]
    text = command("embed", tiny_checkpoint, *where, "--streaming")
    assert f"{taken} images embedded" in text
    listed = (output / "skipped.csv").read_text().splitlines()[1:]
    assert len(listed) == found - taken
    assert (f" {found - taken} left out" in text) == (found > taken)


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_training_lists_what_the_data_leaves_out(kind, tmp_path):
    faulty = ["truncated", "heic", "empty", "hidden", "notes", "text", "no extension"]
    data, found, taken = write(kind, faulty, tmp_path)
    run = tmp_path / "run"
    words = ["--data", data, "--output", run, "--batch-size", 2, "--max-steps", found]
    main([str(word) for word in [*TINY, *words]])
    listed = (run / "skipped.csv").read_text().splitlines()[1:]
    assert len(listed) == found - taken > 0
    with pytest.raises((ValueError, SystemExit)) as error:
        main([str(word) for word in [*TINY, *words, "--overwrite", "--strict"]])
    assert "--strict allows no image to be left out" in str(error.value) or error.value.code == 1
