"""Say what a file is that does not hold weights, from its first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

NUM_BYTES = 512  # enough for the start of every format below
KNOWN_STARTS = {
    b"\x1f\x8b": "is compressed by gzip; decompress it first (gunzip)",
    b"BZh": "is compressed by bzip2; decompress it first (bunzip2)",
    b"\xfd7zXZ": "is compressed by xz; decompress it first (unxz)",
    b"(\xb5/\xfd": "is compressed by zstd; decompress it first (unzstd)",
    b"\x93NUMPY": "is a NumPy array; save the state dict of the model with torch.save",
    b"\x89HDF\r\n": "is an HDF5 file (Keras, TensorFlow); convert it to PyTorch first",
    b"GGUF": "is a GGUF file, whose weights are quantized; use the original weights",
    b"version https://git-lfs": "is a pointer of Git LFS; get the file with git lfs pull",
}


def find_problem(file: Path) -> str:
    """Return why a file cannot hold weights, with the fix, or "" if it may hold some."""
    with open(file, "rb") as opened:
        start = opened.read(NUM_BYTES)
    if not start:
        return "is empty; copy or download it again"
    for known, problem in KNOWN_STARTS.items():
        if start.startswith(known):
            return problem
    if start.startswith(b"PK"):
        return _find_zip_problem(file)
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it, and give the weight file in it"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not weights; download the file itself"
    if _is_text(start):
        return "is a text file, not weights; copy or download it again"
    return ""


def _find_zip_problem(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is damaged or incomplete; copy or download it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "is a TorchScript archive, which holds code; save the state dict of the loaded module "
            "with torch.save"
        )
    if not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return "is a zip archive without weights; unpack it, and give the weight file in it"
    return ""


def _is_text(start: bytes) -> bool:
    try:
        text = start[: NUM_BYTES - 4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(start) > 1 and all(
        character.isprintable() or character.isspace() for character in text
    )


__all__ = ["find_problem"]
