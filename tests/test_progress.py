"""Progress on a terminal, in a pipe and in a file."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

import pytest

from selfvit import progress
from selfvit.progress import ProgressLines, progress_bar

WORK = """
import time
from selfvit.progress import progress_bar
with progress_bar(total=1000, description="embedding") as bar:
    for step in range(1000):
        bar.set_postfix(skipped=step // 100)
        bar.update(1)
        time.sleep(0.0005)
print("done")
"""


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a clock that only the test moves."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_pipe_gets_one_line_per_five_percent():
    result = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True)
    lines = result.stderr.splitlines()
    assert result.stdout == "done\n" and len(lines) == 20, result.stderr
    assert "\r" not in result.stderr and max(map(len, lines)) < 120
    pattern = r"embedding: 50 of 1,000 images \(5%\), [\d.]+ images/s, \d\d:\d\d left, skipped 0"
    assert re.fullmatch(pattern, lines[0])
    assert re.fullmatch(
        r"embedding: 1,000 of 1,000 images \(100%\), [\d.]+ images/s, skipped 9", lines[-1]
    )


def test_a_terminal_gets_a_bar_that_redraws_itself():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert shown.count(b"\r") > 3 and b"1000/1000" in shown and b"embedding" in shown


def test_slow_work_gets_a_line_every_thirty_seconds(clock, capfd):
    bar = ProgressLines(total=100_000, unit="steps")
    for _ in range(100):
        clock[0] += 1
        bar.update()
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["30", "60", "90"]
    assert lines[0] == "30 of 100,000 steps (0%), 1.0 steps/s, 27:46:10 left"
    bar.close()
    bar.close()
    assert capfd.readouterr().err.startswith("100 of 100,000 steps")


def test_work_of_unknown_length_gets_lines_by_time_alone(clock, capfd):
    with ProgressLines() as bar:
        for _ in range(5):
            clock[0] += 20
            bar.update(10)
    assert capfd.readouterr().err.splitlines() == [
        "20 images, 0.5 images/s", "40 images, 0.5 images/s", "50 images, 0.5 images/s"
    ]  # fmt: skip


def test_work_that_continues_counts_its_own_rate(clock, capfd):
    bar = ProgressLines(total=100, initial=50, unit="steps")
    clock[0] = 10
    bar.update(20)
    assert capfd.readouterr().err == "70 of 100 steps (70%), 2.0 steps/s, 00:15 left\n"


def test_an_iterable_is_counted(clock, capfd):
    assert list(progress_bar([1, 2])) == [1, 2]
    assert capfd.readouterr().err.splitlines()[-1].startswith("2 of 2 images (100%)")


def test_nothing_is_shown_if_disabled(capfd):
    for _ in progress_bar(range(3), disable=True):
        pass
    with progress_bar(total=3, disable=True) as bar:
        bar.set_postfix(skipped=1)
        bar.update(3)
    assert capfd.readouterr() == ("", "")


def test_a_redirected_command_writes_short_lines(
    python_with_selfvit, tiny_checkpoint, image_folder, tmp_path
):
    command = [python_with_selfvit, "-m", "selfvit.cli", "embed", str(tiny_checkpoint), "--data"]
    command += [str(image_folder), "--output", "vectors", "--num-workers", "0", "--batch-size", "1"]
    with open(tmp_path / "log", "wb") as log:
        subprocess.run(command, cwd=tmp_path, stdout=log, stderr=log, check=True)
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text and max(map(len, text.splitlines())) < 200, text
    assert "embedding: 7 of 7 images (100%)" in text


def test_text_goes_between_the_lines():
    code = WORK.replace("bar.update(1)", "bar.update(1); step or bar.write('first')")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert result.stdout == "first\ndone\n"
