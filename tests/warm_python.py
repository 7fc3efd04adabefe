"""A Python that has the slow imports behind it: one process imports, each command is its fork.

Importing torch and transformers takes seconds, and the documentation has dozens of commands. A
command still is a process of its own, with its own arguments, folder, environment and exit code.
Only what a library reads from the environment while it is imported is as the server was started
with.
"""

# Linux and macOS: it needs fork and sockets that carry file descriptors.

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# What the commands of the documentation spend their seconds importing.
PRELOAD = (
    "datasets",
    "accelerate",
    "sklearn.linear_model",
    "torchvision",
    "transformers",
    "typer",
    "selfvit.embedding.writer",
    "selfvit.training.train",
)

# Runs without `site`, so that it starts in milliseconds; only the standard library is there.
CLIENT = """\
#!{python} -IS
import json, os, socket, sys

connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": {prefix!r} + sys.argv[1:], "folder": os.getcwd()}}
request["environment"] = dict(os.environ)
socket.send_fds(connection, [b"."], [0, 1, 2])
connection.sendall(json.dumps(request).encode())
connection.shutdown(socket.SHUT_WR)
sys.exit(int(connection.recv(16) or b"1"))
"""


@contextmanager
def warm_python(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Start the server, and make a folder of commands for PATH: `python` and `selfvit`.

    Args:
        folder: empty; for the socket and the commands. Short, as a socket's path has 107 bytes.
        environment: variables that libraries read while they are imported.

    Yields:
        The folder of the commands.
    """
    address = folder / "socket"
    commands = folder / "bin"
    commands.mkdir()
    for name, prefix in {"python": [], "selfvit": ["-m", "selfvit.cli"]}.items():
        client = CLIENT.format(python=sys.executable, address=str(address), prefix=prefix)
        (commands / name).write_text(client)
        (commands / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_python", str(address)],
        cwd=Path(__file__).parents[1],
        env={"OMP_NUM_THREADS": "1", **os.environ, **environment},
        stdin=subprocess.PIPE,  # its end tells the server to stop, even if the tests were killed
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None and server.stdin is not None
        assert server.stdout.readline() == b"ready\n", "the warm Python did not start"
        yield commands
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(timeout=60)


def serve(address: str) -> None:
    """Fork a child for every connection, until standard input ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    children: set[int] = set()
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        child = os.fork()
        if child == 0:
            listener.close()
            answer(connection)
        connection.close()
        children = {pid for pid in {*children, child} if os.waitpid(pid, os.WNOHANG)[0] == 0}


def answer(connection: socket.socket) -> None:
    """Run one command, in a child so that its exit code is known whatever ends it."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    command = os.fork()
    if command == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        run(**request)
    _, status = os.waitpid(command, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def run(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """Do what `python ARGUMENTS` does in that folder, and end the process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    code: object = 1
    try:
        execute(arguments)
        code = 0
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    # Taking apart every object that the imports made would take longer than most commands.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def execute(arguments: Sequence[str]) -> None:
    """Run a module or a file as `__main__`."""
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif not arguments[0].startswith("-"):
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.exit(f"warm Python knows -m MODULE and FILE, not {shlex.join(arguments)}.")


if __name__ == "__main__":
    import importlib

    for module in PRELOAD:
        importlib.import_module(module)
    serve(sys.argv[1])
