"""Formats of image files: which ones can be decoded here, and what the others need."""

from __future__ import annotations

import functools
import os
import re

from PIL import Image

# Formats that Pillow recognizes but cannot decode by itself.
UNDECODABLE_FORMATS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")

# Images that need a package of their own: what to do, by extension.
CAMERA_RAW = "camera raw; convert it to TIFF, for example with the package rawpy"
SVG = "SVG, which has no pixels; draw it to PNG, for example with the package cairosvg"
NEEDED: dict[str, str] = {
    **dict.fromkeys(
        (".heic", ".heics", ".heif", ".heifs", ".hif"), "HEIC; pip install pillow-heif"
    ),
    **dict.fromkeys((".avif", ".avifs"), "AVIF; pip install pillow-avif-plugin"),
    ".jxl": "JPEG XL; pip install pillow-jxl-plugin",
    **dict.fromkeys(
        (".3fr", ".ari", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng")
        + (".eip", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kc2", ".kdc", ".mef", ".mos", ".mrw")
        + (".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf", ".raw", ".rw2", ".rwl", ".rwz", ".sr2")
        + (".srf", ".srw", ".x3f"),
        CAMERA_RAW,
    ),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM; convert it to TIFF, for example with pydicom"),
    **dict.fromkeys((".svg", ".svgz"), SVG),
    **dict.fromkeys((".wdp", ".jxr", ".hdp"), "JPEG XR; convert it to TIFF"),
    **dict.fromkeys((".wmf", ".emf"), "Windows metafile; draw it to PNG"),
    ".ai": "Illustrator; export it to PNG or TIFF",
    ".exr": "OpenEXR; convert it to a TIFF of floats",
    ".nii": "NIfTI; save its slices as .npy or TIFF, for example with the package nibabel",
    ".rgbe": "Radiance; convert it to a TIFF of floats",  # .hdr has other meanings, too
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

VIDEOS = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv")
    + (".ts", ".webm", ".wmv")
)

# First bytes of image files, and the extension that stands for the format.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"GIF8", ".gif"),
    (8, b"CR\x02", ".cr2"),
    (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"),
    (0, b"II+\0", ".tif"),
    (0, b"MM\0+", ".tif"),
    (8, b"WEBP", ".webp"),
    (4, b"jP  \r\n\x87\n", ".jp2"),
    (0, b"\xff\x4f\xff\x51", ".j2k"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypavis", ".avif"),
    (4, b"ftypcrx ", ".cr3"),
    *((4, b"ftyp" + brand, ".heic") for brand in (*HEIF_BRANDS, b"mif1", b"msf1")),
    (0, b"\xff\x0a", ".jxl"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", ".jxl"),
    (0, b"\x93NUMPY", ".npy"),
    (0, b"8BPS", ".psd"),
    (0, b"DDS ", ".dds"),
    (0, b"qoif", ".qoi"),
    (0, b"\x76\x2f\x31\x01", ".exr"),
    (0, b"#?RADIANCE", ".rgbe"),
    (0, b"#?RGBE", ".rgbe"),
    (0, b"II\xbc\x01", ".wdp"),
    (0, b"\xd7\xcd\xc6\x9a", ".wmf"),
    (40, b" EMF", ".emf"),
    (0, b"gimp xcf ", ".xcf"),
    (128, b"DICM", ".dcm"),
    (0, b"FUJIFILMCCD-RAW", ".raf"),
    (0, b"IIU\0", ".rw2"),
    (0, b"IIRO", ".orf"),
    (0, b"IIRS", ".orf"),
    (0, b"FOVb", ".x3f"),
    (0, b"\0MRM", ".mrw"),
)
# Headers of small numbers and texts: a Netpbm file, an icon, a PCX file, a bitmap.
PATTERNS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"P[1-6]\s(\s|#[^\n]*\n)*\d+\s+\d+\s"), ".ppm"),
    (re.compile(rb"Pf\s+\d+\s+\d+\s"), ".pfm"),
    (re.compile(rb"\x00\x00[\x01\x02]\x00[^\x00]\x00...\x00", re.DOTALL), ".ico"),
    (re.compile(rb"\n[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08]", re.DOTALL), ".pcx"),
    (re.compile(rb"BM....\x00\x00\x00\x00", re.DOTALL), ".bmp"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg|<svg).*", re.DOTALL), ".svg"),
)
SIGNATURE_BYTES = 256


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
    if needed is None or extension in image_extensions():
        return None
    return f"cannot be decoded here: {needed}"


def format_of(head: bytes) -> str | None:
    """Return the extension of the image format that a file starts with, or None.

    Args:
        head: First `SIGNATURE_BYTES` bytes of the file.
    """
    for start, signature, extension in SIGNATURES:
        if head[start : start + len(signature)] == signature:
            return extension
    for pattern, extension in PATTERNS:
        if pattern.match(head) and (extension != ".svg" or b"<svg" in head):
            return extension
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
    "VIDEOS",
    "extension_of",
    "format_of",
    "image_extensions",
    "kind_of",
    "missing_support",
]
