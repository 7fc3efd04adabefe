"""A folder of results replaces only its own kind."""

from __future__ import annotations

from pathlib import Path

from ..atomic_output import names_to_replace


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
    held = names_to_replace(output, overwrite)
    if held and marker not in held:
        raise FileExistsError(
            f"{str(output)!r} is not replaced: it has no {marker}, so it holds something else "
            f"({', '.join(held[:3])}). Give a new folder."
        )


__all__ = ["check_output"]
