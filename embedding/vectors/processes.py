"""Run a command in several processes of this machine, one per device, and watch over them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.dataset_source import AnySource
from ...progress import progress_bar
from ..embedder import Embedder
from .folder import VectorFolder, check_output
from .manifest import Manifest
from .shared_work import SECONDS_BETWEEN_LOOKS, TOKEN, Progress, start_group
from .storage import check_local
from .writer import (
    PART_IMAGES,
    PART_SECONDS,
    WriteReport,
    check_part_options,
    open_folder,
    write_folder,
)

logger = logging.getLogger(__name__)

MAX_DEATHS_IN_A_ROW = 3  # deaths of processes without a new part in between


def count_devices(devices: str | None) -> int:
    """Return the number of processes that `--devices` asks for.

    Args:
        devices: "all" for one per GPU (one in all without a GPU), a number, or None for one.

    Raises:
        ValueError: If it is neither, or there are fewer GPUs.
    """
    if devices is None:
        return 1
    num_gpus = torch.cuda.device_count()
    if devices == "all":
        return max(1, num_gpus)
    if not (devices.isascii() and devices.isdecimal() and int(devices) >= 1):
        raise ValueError(f"devices ({devices!r}) must be all, or a number of at least 1.")
    if num_gpus and int(devices) > num_gpus:
        raise ValueError(f"devices ({devices}) must be at most the number of GPUs, {num_gpus}.")
    return int(devices)


def device_of(local_rank: int) -> str | None:
    """Return the device of a process; None for the default one without a GPU.

    Args:
        local_rank: Number of the process on its machine.
    """
    if not torch.cuda.is_available():
        return None
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def write_in_processes(
    embedder: Embedder,
    source: AnySource,
    output: Path,
    command: Sequence[str],
    size: int,
    *,
    overwrite: bool = False,
    resume: bool = False,
    vector_dtype: str = "float32",
    metadata: dict[str, Any] | None = None,
    part_images: int = PART_IMAGES,
) -> WriteReport:
    """Embed a source in several processes of this machine, as `write_embeddings` does in one.

    Args:
        embedder: Embedder with the checkpoint and options of the processes; its device is not used.
        source: Images to embed.
        output: Folder to write.
        command: Arguments of `python -m` for the processes, which call `write_in_group`.
        size: Number of processes.
        overwrite: As in `write_embeddings`; the earlier result is deleted at the start.
        resume: As in `write_embeddings`.
        vector_dtype: As in `write_embeddings`.
        metadata: As in `write_embeddings`.
        part_images: As in `write_embeddings`; the processes have it from their command.

    Raises:
        ChildProcessError: If a process ends with an error, or they are killed again and again.
        FileExistsError: If `output` may not be replaced.
        ValueError: If no image can be read, or the earlier run differs, see `write_embeddings`.
    """
    check_local(output)
    check_output(output, overwrite, resume)
    check_part_options(part_images, PART_SECONDS, vector_dtype)
    folder = open_folder(
        embedder,
        source,
        output,
        resume=resume,
        vector_dtype=vector_dtype,
        metadata=metadata,
        progress=True,
    )

    def embed() -> None:
        if not resume or folder.is_new_run:
            folder.begin()
        embed_in_processes(folder, source, command, size)

    return write_folder(folder, source, embed)


def embed_in_processes(
    folder: VectorFolder,
    source: AnySource,
    command: Sequence[str],
    size: int,
) -> None:
    """Embed a source in several processes, which start from the same command.

    A process that is killed is started again; what it had not written is embedded once more.

    Args:
        folder: Folder of vectors, begun and locked by this process.
        source: Images to embed.
        command: Arguments of `python -m` for the processes.
        size: Number of processes.

    Raises:
        ChildProcessError: If a process ends with an error, or they are killed again and again. What
            they have written is kept.
    """
    token = uuid.uuid4().hex
    start_group(folder, token, size)
    progress = Progress(folder.path, size)
    before = folder.manifest.num_done
    left = sys.maxsize if source.num_images is None else source.num_images - before
    running = {rank: _start(command, rank, size, token) for rank in range(size)}
    deaths, num_parts, shown = 0, len(folder.manifest.parts), 0
    try:
        with progress_bar(total=source.num_images, initial=before, description="embedding") as bar:
            while running:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                done, skipped = progress.total()
                bar.set_postfix(skipped=skipped, refresh=False)
                done = min(done, left)  # a unit whose process died is counted again
                bar.update(done - shown)
                shown = done
                for rank, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[rank]
                    if code == 0:
                        continue
                    if code > 0:
                        raise ChildProcessError(
                            f"process {rank} ended with an error, see above; what was written "
                            f"before is in {folder.path}, go on with --resume."
                        )
                    now = _num_parts(folder.path)
                    deaths, num_parts = (1 if now > num_parts else deaths + 1), now
                    name = signal.Signals(-code).name
                    if deaths > MAX_DEATHS_IN_A_ROW * size:
                        raise ChildProcessError(
                            f"process {rank} was killed ({name}), as were {deaths - 1} before; if "
                            "nobody killed them, the memory is too small: use fewer --devices or a "
                            f"smaller --batch-size. What was written before is in {folder.path}."
                        )
                    logger.warning("process %d was killed (%s); it is started again.", rank, name)
                    running[rank] = _start(command, rank, size, token)
    finally:
        _stop(running.values())
    manifest = Manifest.load(folder.path)
    assert manifest is not None
    folder.manifest = manifest


def _start(command: Sequence[str], rank: int, size: int, token: str) -> subprocess.Popen[bytes]:
    threads = max(1, torch.get_num_threads() // size)
    environment = {
        **os.environ,
        TOKEN: token,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process only, which interrupts the others
    )


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes, so that they write what they have, and wait for them."""
    processes = list(processes)
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _num_parts(folder: Path) -> int:
    manifest = Manifest.load(folder)
    return 0 if manifest is None else len(manifest.parts)


__all__ = ["count_devices", "device_of", "write_in_processes"]
