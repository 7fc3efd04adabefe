"""Code of an image processor: one file beside its settings, for `trust_remote_code=True`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

PROCESSING = "image_processing_selfvit"  # module of its code


def write_processor_code(processor_class: type, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write the code file of an image processor.

    Args:
        processor_class: Class of the processor.
        folder: Folder of the checkpoint. It is created if it does not exist.

    Returns:
        `auto_map` of preprocessor_config.json: "module.Class" by Auto class.

    Raises:
        OSError: If the source cannot be read or the file cannot be written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{PROCESSING}.py").write_text(_source(processor_class), encoding="utf-8")
    return {"AutoImageProcessor": f"{PROCESSING}.{processor_class.__name__}"}


def remove_processor_code(folder: str | os.PathLike[str]) -> None:
    """Remove the code file of an image processor, if there is one."""
    (Path(folder) / f"{PROCESSING}.py").unlink(missing_ok=True)


def _source(processor_class: type) -> str:
    if __name__.rpartition(".")[2] == PROCESSING:  # this code runs from the file of a checkpoint
        return Path(__file__).read_text(encoding="utf-8")
    # Imported by name, so that checkpoints do not contain the generator.
    generator = importlib.import_module(".code_generator", __package__)
    return generator.generate_processor_code(processor_class)


__all__ = ["remove_processor_code", "write_processor_code"]
