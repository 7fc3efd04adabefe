"""Errors of commands: one line, and none if the reader of the output has gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_without_reader(*words):
    """Run Python with a pipe as standard output that nobody reads; return code and errors."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, *words], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    return result.returncode, result.stderr.decode()


def within(code):
    indented = "\n    ".join(code.splitlines())
    return f"from selfvit.errors import one_line_errors\nwith one_line_errors():\n    {indented}"


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "selfvit.cli", "train"),  # it lists the recipes
        ("-c", within("print('short')")),  # written at the end only
        ("-c", within("for number in range(100_000):\n    print(number)")),
    ],
    ids=["command", "short", "long"],
)
def test_output_without_a_reader_ends_quietly(words):
    """It used to be `error: [Errno 32] Broken pipe`."""
    assert run_without_reader(*words) == (141, "")


def test_another_broken_pipe_is_an_error():
    code = within("raise BrokenPipeError('the server has closed the connection')")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: the server has closed the connection\n"
