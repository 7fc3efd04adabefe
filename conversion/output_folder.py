"""A folder of results replaces only its own kind."""

from __future__ import annotations

from pathlib import Path


def check_output(output: Path, marker: str, overwrite: bool = False) -> None:
    """Check that a folder can be written, before any work is done.

    Args:
        output: the folder.
        marker: name of the file that tells an earlier result from anything else.
        overwrite: whether an earlier result may be replaced.

    Raises:
        FileExistsError: if it is a file or a link, or holds what may not be replaced: a folder
            without the marker is never deleted.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise FileExistsError(f"{str(output)!r} is a file or a link; give a new folder.")
    held = sorted(entry.name for entry in output.iterdir())
    if not held:
        return
    if not overwrite:
        raise FileExistsError(
            f"{str(output)!r} is not empty; give a new folder, or --overwrite (overwrite=True) to "
            "replace an earlier result."
        )
    if marker not in held:
        raise FileExistsError(
            f"{str(output)!r} is not replaced: it has no {marker}, so it holds something else "
            f"({', '.join(held[:3])}). Give a new folder."
        )


__all__ = ["check_output"]
