"""Embed a source with several processes, which take turns at units of it.

A unit is claimed by a file lock, which the system releases when its process dies; another process
then embeds what is missing of it. Nothing but the folder of the vectors is shared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ...data.dataset_source import AnySource, StreamingImageSource, split_at_shards
from ...progress import progress_bar
from ..embedder import EmbeddedBatch, Embedder
from .folder import METADATA, VectorFolder, check_output
from .manifest import Manifest
from .storage import LOCKS, check_local, read_text
from .writer import PART_IMAGES, WriteReport, embed_ranges, open_folder, write_folder

UNITS_PER_PROCESS = 8  # the last unit of the slowest process is all that the others wait for
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_START = 600.0  # of the leader, which may have to download a checkpoint
STARTED, PROGRESS = "started.json", "progress"
TOKEN = "SELFVIT_EMBED_RUN"  # environment variable that `processes.py` gives to its processes


@dataclass(frozen=True)
class Group:
    """Processes that embed one source together.

    Args:
        rank: Number of this process.
        size: Number of processes.
        local_rank: Number of this process on its machine, which chooses its device.
        token: Text that tells this group from earlier ones on the same folder.
        has_supervisor: Whether another process starts the folder and completes it; otherwise, the
            process of rank 0 does.
    """

    rank: int
    size: int
    local_rank: int
    token: str
    has_supervisor: bool

    @property
    def is_leader(self) -> bool:
        """Whether this process starts the folder, completes it and reports."""
        return self.rank == 0 and not self.has_supervisor

    @classmethod
    def from_environment(cls) -> Group | None:
        """Return the group that a launcher (torchrun, accelerate, `--devices`) put this process in.

        Returns:
            The group; None for a process of its own.
        """
        is_launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
        if not is_launched:
            return None
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
            token=os.environ.get(TOKEN) or ":".join(os.environ.get(name, "") for name in names),
            has_supervisor=TOKEN in os.environ,
        )


class Progress:
    """Numbers of images and skipped images of each process, in a file that all of them map.

    Args:
        folder: Folder of the vectors.
        size: Number of processes.
    """

    def __init__(self, folder: Path, size: int):
        path = folder / LOCKS / PROGRESS
        if not path.exists():
            np.zeros((size, 2), dtype=np.int64).tofile(path)
        self.counts = np.memmap(path, dtype=np.int64, shape=(size, 2))

    def add(self, rank: int, batch: EmbeddedBatch) -> None:
        """Count the images of a batch."""
        self.counts[rank] += (batch.num_images, len(batch.skipped))

    def total(self) -> tuple[int, int]:
        """Return the numbers of images and of skipped images of all processes."""
        done, skipped = self.counts.sum(axis=0)
        return int(done), int(skipped)


def start_group(folder: VectorFolder, token: str, size: int) -> None:
    """Let the other processes of a group start; the folder must be begun.

    Args:
        folder: Folder of the vectors.
        token: Token of the group.
        size: Number of processes.
    """
    (folder.path / LOCKS / PROGRESS).unlink(missing_ok=True)  # of a group that was killed
    Progress(folder.path, size)
    started = folder.path / LOCKS / STARTED
    unfinished = started.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"token": token, "run": folder.manifest.run}))
    unfinished.replace(started)


def wait_for_group(output: Path, token: str) -> bool:
    """Wait until the leader of a group has begun its folder.

    Args:
        output: Folder of the vectors.
        token: Token of the group.

    Returns:
        Whether there may be work left; False if the leader has completed the folder already.

    Raises:
        TimeoutError: If the group does not start.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    path = output / LOCKS / STARTED
    while True:
        with suppress(FileNotFoundError):  # it is deleted at the end
            if json.loads(path.read_text())["token"] == token:
                return True
        if _is_completed_by(output, token):
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the first process has not started {str(output)!r} after "
                f"{SECONDS_TO_START:.0f} seconds; see its output."
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_completed_by(output: Path, token: str) -> bool:
    manifest, metadata = Manifest.load(output), read_text(output / METADATA)
    if manifest is None or metadata is None:
        return False
    return manifest.group == token and bool(json.loads(metadata).get("complete"))


def join_group(folder: VectorFolder) -> VectorFolder:
    """Return the folder that a group has begun.

    Args:
        folder: Folder of the vectors, with what this process would write.

    Raises:
        ValueError: If this process has another checkpoint, other options or other data.
    """
    stored = Manifest.load(folder.path)
    differences = ["manifest"] if stored is None else stored.differences(folder.manifest)
    if stored is None or differences:
        raise ValueError(
            f"all processes must embed the same images in the same way, but these differ: "
            f"{'; '.join(differences)}. Give all of them the same checkpoint, options and images."
        )
    return VectorFolder(folder.path, stored, folder.metadata, may_begin=False)


def units_of(num_images: int, batch_size: int, size: int, part_images: int) -> list[range]:
    """Return the units of a source: whole batches, at most as many images as a part.

    Args:
        num_images: Number of images.
        batch_size: Number of images per batch.
        size: Number of processes.
        part_images: Maximum number of images per part.
    """
    wanted = min(part_images, -(-num_images // (UNITS_PER_PROCESS * size)))
    length = max(batch_size, wanted // batch_size * batch_size)
    return [range(s, min(s + length, num_images)) for s in range(0, num_images, length)]


def share_work(
    embedder: Embedder,
    source: AnySource,
    folder: VectorFolder,
    size: int,
    on_batch: Callable[[EmbeddedBatch], None],
    **part_options: Any,
) -> None:
    """Embed units of a source until no unit is left, also those of processes that died.

    Args:
        embedder: Embedder that computes the vectors.
        source: Images to embed.
        folder: Folder of vectors, begun.
        size: Number of processes.
        on_batch: Function that is called after each batch.
        part_options: `part_images` and `part_seconds` of `write_embeddings`.

    Raises:
        LostWorkersError: If too many workers in a row were killed.
        OSError: If a part cannot be written.
    """
    if isinstance(source, StreamingImageSource):
        units = split_at_shards([range(source.num_positions)])
    else:
        part_images = part_options.get("part_images", PART_IMAGES)
        units = units_of(len(source), embedder.batch_size, size, part_images)
    while (manifest := _stored(folder)).missing():
        took_one = False
        for number, unit in enumerate(units):
            if not manifest.missing(unit):
                continue
            lock = FileLock(folder.path / LOCKS / f"unit-{number:05}.lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                continue  # another process embeds it
            try:
                folder.manifest = manifest = _stored(folder)
                if ranges := manifest.missing(unit):
                    embed_ranges(
                        embedder,
                        source,
                        ranges,
                        folder,
                        on_batch=on_batch,
                        keep_empty=True,
                        **part_options,
                    )
                    took_one = True
            finally:
                lock.release()
        if not took_one:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    folder.manifest = _stored(folder)


def write_in_group(
    embedder: Embedder,
    source: AnySource,
    output: Path,
    group: Group,
    *,
    overwrite: bool = False,
    resume: bool = False,
    vector_dtype: str = "float32",
    metadata: dict[str, Any] | None = None,
    **part_options: Any,
) -> WriteReport | None:
    """Embed a source as one of several processes that all call this function.

    Without a supervisor, the process of rank 0 starts and completes the folder, and shows the
    progress of all.

    Args:
        embedder: Embedder that computes the vectors.
        source: Images to embed, the same in all processes.
        output: Folder to write.
        group: The processes.
        overwrite: As in `write_embeddings`; the earlier result is deleted at the start.
        resume: As in `write_embeddings`.
        vector_dtype: As in `write_embeddings`.
        metadata: As in `write_embeddings`.
        part_options: `part_images` and `part_seconds` of `write_embeddings`.

    Returns:
        The report of the process that completes the folder; None for the others.

    Raises:
        ChildProcessError: If the supervisor has died.
        ValueError: If the processes or the earlier run differ, no image can be read, or the output
            is not a local folder.
    """
    check_local(output)
    is_leader = group.is_leader
    if is_leader:
        check_output(output, overwrite, resume)
    else:
        if not wait_for_group(output, group.token):
            return None
        if (begun := Manifest.load(output)) is not None:
            embedder.choose_engine(source, begun.checkpoint)  # that of the leader
    folder = open_folder(
        embedder,
        source,
        output,
        resume=resume and is_leader,
        vector_dtype=vector_dtype,
        metadata=metadata,
        progress=is_leader,
    )
    if not is_leader:
        folder = join_group(folder)
        _embed_as_member(embedder, source, folder, group, part_options)
        return None

    def embed() -> None:
        folder.manifest = replace(folder.manifest, group=group.token)
        if not resume or folder.is_new_run:
            folder.begin()
        else:
            folder.manifest.save(folder.path)
        start_group(folder, group.token, group.size)
        _embed_as_leader(embedder, source, folder, group, part_options)

    return write_folder(folder, source, embed)


def _embed_as_member(
    embedder: Embedder,
    source: AnySource,
    folder: VectorFolder,
    group: Group,
    part_options: dict[str, Any],
) -> None:
    progress = Progress(folder.path, group.size)
    parent = os.getppid()

    def on_batch(batch: EmbeddedBatch) -> None:
        progress.add(group.rank, batch)
        if os.getppid() != parent:
            raise ChildProcessError("the process that started this one has died.")

    share_work(embedder, source, folder, group.size, on_batch, **part_options)


def _embed_as_leader(
    embedder: Embedder,
    source: AnySource,
    folder: VectorFolder,
    group: Group,
    part_options: dict[str, Any],
) -> None:
    progress = Progress(folder.path, group.size)
    before = folder.manifest.num_done
    with progress_bar(total=source.num_images, initial=before, description="embedding") as bar:
        shown = 0

        def on_batch(batch: EmbeddedBatch) -> None:
            nonlocal shown
            progress.add(group.rank, batch)
            done, skipped = progress.total()
            bar.set_postfix(skipped=skipped, refresh=False)
            bar.update(done - shown)
            shown = done

        share_work(embedder, source, folder, group.size, on_batch, **part_options)


def _stored(folder: VectorFolder) -> Manifest:
    stored = Manifest.load(folder.path)
    if stored is None or stored.run != folder.manifest.run:
        raise FileExistsError(
            f"another process has replaced the vectors in {str(folder.path)!r}; write to another "
            "folder."
        )
    return stored


__all__ = [
    "TOKEN",
    "Group",
    "Progress",
    "join_group",
    "share_work",
    "start_group",
    "units_of",
    "wait_for_group",
    "write_in_group",
]
