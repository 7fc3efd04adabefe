"""Fork server for Python commands: the slow imports run once, in the process that is forked.

Importing torch and transformers takes seconds, and the documentation contains dozens of commands.
Each command still runs in its own process with its own arguments, folder, environment and exit
code. The only difference: variables that a library reads when it is imported have the values that
they had when the server was started. A command whose client is killed is killed, too. A process
that a command starts with `sys.executable` is forked here if the variable PYTHON_EXEC names the
client, as it does for torchrun.
"""

# Requires Linux or macOS: fork, and sockets that transfer file descriptors.

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Slow imports of the commands of selfvit.
COMMANDS = (
    "datasets",
    "accelerate",
    "sklearn.linear_model",
    "torchvision",
    "transformers",
    "typer",
    "selfvit.embedding.vectors.writer",
    "selfvit.training.train",
    "tests.warm_caches",
)

# Slow imports of transformers and selfvit, without these two: a test can import them in any order.
THIRD_PARTY = (
    "PIL.Image",
    "accelerate",
    "httpx",
    "huggingface_hub.hf_api",
    "huggingface_hub.repocard",
    "huggingface_hub.serialization",
    "jinja2.sandbox",
    "regex",
    "requests",
    "safetensors.torch",
    "sklearn",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed._composable.fsdp",
    "torch.distributed.checkpoint",
    "torch.nn.attention.flex_attention",
    "torchvision.transforms.v2",
    "yaml",
)

# Runs without `site`, to start within milliseconds; it can use only the standard library.
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
def warm_python(
    folder: Path, environment: Mapping[str, str], preload: Sequence[str] = COMMANDS
) -> Iterator[Path]:
    """Start the server, and create a folder for PATH with the commands `python`, `selfvit` and
    `accelerate`.

    Args:
        folder: Empty folder for the socket and the commands. Its path must be short: the path of a
            socket has at most 107 bytes.
        environment: Variables that libraries read when they are imported.
        preload: Modules that the server imports.

    Yields:
        Folder of the commands.
    """
    address = folder / "socket"
    commands = folder / "bin"
    commands.mkdir()
    modules = {"selfvit": "selfvit.cli", "accelerate": "accelerate.commands.accelerate_cli"}
    prefixes = {"python": [], **{name: ["-m", module] for name, module in modules.items()}}
    for name, prefix in prefixes.items():
        client = CLIENT.format(python=sys.executable, address=str(address), prefix=prefix)
        (commands / name).write_text(client)
        (commands / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_python", str(address), *preload],
        cwd=Path(__file__).parents[1],
        env={"OMP_NUM_THREADS": "1", **os.environ, **environment},
        stdin=subprocess.PIPE,  # the server stops when it is closed, even if the tests are killed
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None and server.stdin is not None
        assert server.stdout.readline() == b"ready\n", "the fork server did not start"
        yield commands
    finally:
        server.stdin.close()
        server.stdout.close()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a process that was forked here holds its input open
            server.kill()
            server.wait()


def serve(address: str) -> None:
    """Fork a child process for every connection, until standard input is closed."""
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
    """Run one command in a child process, so that its exit code is known even if it is killed."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    command = os.fork()
    if command == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        run(**request)
    arguments = (connection, os.pidfd_open(command))  # unlike its number, it is not used again
    threading.Thread(target=kill_after, args=arguments, daemon=True).start()
    _, status = os.waitpid(command, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def kill_after(connection: socket.socket, command: int) -> None:
    """Wait until the client has ended, and kill its command, a file descriptor of the process."""
    poll = select.poll()
    poll.register(connection, 0)  # the end of both directions is always reported
    poll.poll()
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(command, signal.SIGKILL)


def run(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """Run `python ARGUMENTS` in a folder, and exit the process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # torchrun starts this Python; so does a command that starts processes of its own.
    sys.executable = environment.get("PYTHON_EXEC", sys.executable)
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
    # A normal exit would free all imported objects, which takes longer than most commands.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def execute(arguments: Sequence[str]) -> None:
    """Run a module, a file or a text as `__main__`."""
    if arguments[0] == "-u":  # torchrun gives it; the output is flushed at the end instead
        arguments = arguments[1:]
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif not arguments[0].startswith("-"):
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.exit(f"the arguments must be -c CODE, -m MODULE or FILE, not {shlex.join(arguments)}.")


if __name__ == "__main__":
    import importlib

    address, *preload = sys.argv[1:]
    for module in preload:
        importlib.import_module(module)
    if preload == list(THIRD_PARTY):
        assert not {"selfvit", "transformers"} & sys.modules.keys()
    if "selfvit.training.train" in preload:  # parse the code of the checkpoints that it saves
        from selfvit.modeling.checkpoints.code_generator import generate_code
        from selfvit.modeling.registry import MODEL_CLASSES

        for model_class in MODEL_CLASSES.values():
            generate_code(model_class.auto_classes())
    serve(address)
