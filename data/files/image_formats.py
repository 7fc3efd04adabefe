"""Formats of image files: which ones can be decoded here, and what the others need."""

from __future__ import annotations

import functools
import os

from PIL import Image

# Formats that Pillow recognizes but cannot decode by itself.
UNDECODABLE_FORMATS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")

# Images that need a package of their own: what to do, by extension.
CAMERA_RAW = "camera raw; convert it to TIFF, for example with the package rawpy"
NEEDED: dict[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC; pip install pillow-heif"),
    ".avif": "AVIF; pip install pillow-avif-plugin",
    ".jxl": "JPEG XL; pip install pillow-jxl-plugin",
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef")
        + (".raf", ".raw", ".rw2", ".sr2", ".srw", ".x3f"),
        CAMERA_RAW,
    ),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM; convert it to TIFF, for example with pydicom"),
    ".exr": "OpenEXR; convert it to a TIFF of floats",
    ".svg": "SVG, which has no pixels; draw it to PNG, for example with the package cairosvg",
    ".wdp": "JPEG XR; convert it to TIFF",
    ".xcf": "GIMP; export it to PNG or TIFF",
}

# Files of other kinds, which are not opened to see whether they are images.
NOT_IMAGES = frozenset(
    [
        ".7z",
        ".aac",
        ".aae",
        ".arrow",
        ".avi",
        ".bin",
        ".bz2",
        ".cfg",
        ".cls",
        ".csv",
        ".db",
        ".doc",
        ".docx",
        ".feather",
        ".flac",
        ".geojson",
        ".gz",
    ]
    + [
        ".h5",
        ".hdf5",
        ".htm",
        ".html",
        ".idx",
        ".index",
        ".ini",
        ".ipynb",
        ".jpgw",
        ".js",
        ".json",
        ".jsonl",
        ".log",
        ".lst",
        ".m4a",
    ]
    + [
        ".m4v",
        ".mat",
        ".md",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".npz",
        ".onnx",
        ".parquet",
        ".pdf",
        ".pgw",
        ".pickle",
        ".pkl",
        ".ply",
    ]
    + [
        ".ppt",
        ".pptx",
        ".pt",
        ".pth",
        ".py",
        ".pyc",
        ".rar",
        ".rst",
        ".safetensors",
        ".sh",
        ".sqlite",
        ".tar",
        ".tgz",
        ".toml",
        ".tsv",
    ]
    + [
        ".ttf",
        ".txt",
        ".wav",
        ".webm",
        ".wkt",
        ".xls",
        ".xlsx",
        ".xml",
        ".xmp",
        ".xz",
        ".yaml",
        ".yml",
        ".zip",
        ".zst",
    ]
)

# First bytes of image files, and the extension that stands for the format.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"GIF8", ".gif"),
    (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"),
    (0, b"II+\0", ".tif"),
    (8, b"WEBP", ".webp"),
    (4, b"jP  \r\n\x87\n", ".jp2"),
    (4, b"ftypavif", ".avif"),
    *((4, b"ftyp" + brand, ".heic") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
    (0, b"\xff\x0a", ".jxl"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", ".jxl"),
    (0, b"\x93NUMPY", ".npy"),
    (0, b"8BPS", ".psd"),
    (0, b"qoif", ".qoi"),
    (0, b"\x76\x2f\x31\x01", ".exr"),
)
SIGNATURE_BYTES = 32


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the formats that can be decoded, in lower case, with the dot."""
    readable_by_pillow = {
        extension
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in UNDECODABLE_FORMATS
    }
    return frozenset(readable_by_pillow | {".npy"})


def extension_of(name: str) -> str:
    """Return the extension of a file name in lower case, with the dot; "" without one."""
    return os.path.splitext(name)[1].lower()


def missing_support(extension: str) -> str | None:
    """Return why images with an extension cannot be decoded here; None for all other files."""
    needed = NEEDED.get(extension)
    return None if needed is None or extension in image_extensions() else needed


def format_of(head: bytes) -> str | None:
    """Return the extension of the image format that a file starts with, or None.

    Args:
        head: First `SIGNATURE_BYTES` bytes of the file.
    """
    for start, signature, extension in SIGNATURES:
        if head[start : start + len(signature)] == signature:
            return extension
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return ".bmp"
    return None


def kind_of(path: str) -> str | None:
    """Return the extension of the image format of a file by its content; None if it has none.

    Raises:
        OSError: If the file cannot be opened.
    """
    with open(path, "rb") as file:
        return format_of(file.read(SIGNATURE_BYTES))


__all__ = [
    "NOT_IMAGES",
    "SIGNATURE_BYTES",
    "extension_of",
    "format_of",
    "image_extensions",
    "kind_of",
    "missing_support",
]
