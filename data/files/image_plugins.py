"""Packages that let Pillow decode further formats, if they are installed: HEIC, AVIF, JPEG XL."""

from __future__ import annotations

import importlib

# Module by the package that has it; importing the last two registers their formats.
PLUGINS = {
    "pillow-heif": "pillow_heif",
    "pillow-avif-plugin": "pillow_avif",
    "pillow-jxl-plugin": "pillow_jxl",
}


def register_plugins() -> list[str]:
    """Register the formats of all packages that are installed; return the packages."""
    registered = []
    for package, module in PLUGINS.items():
        try:
            plugin = importlib.import_module(module)
        except (ImportError, OSError):  # not installed, or without its library
            continue
        if module == "pillow_heif":
            plugin.register_heif_opener()
        registered.append(package)
    return registered


__all__ = ["register_plugins"]
