"""Render a map as one HTML file, which needs neither network nor server."""

# N rows · k neighbors

from __future__ import annotations

import base64
import hashlib
import html
import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from .thumbnails import Thumbnails, encode

MAX_CLASSES = 200  # names of a column that have their own color; the rarest are "other"
MAX_INTEGER_CLASSES = 60  # distinct integers that are names, for example clusters
NO_CLASS = 2**16 - 1
OTHER = "(other)"


@dataclass(frozen=True)
class Page:
    """Contents of the page.

    Args:
        title: Title.
        names: Names of the images, N.
        positions: Positions, (N, 2).
        neighbors: Nearest other rows, (N, k), the most similar first.
        similarities: Cosine similarities to them, (N, k).
        columns: Values of all rows by name of the column, to color the points by.
        color: Name of the column of the first view; None for points of one color.
        thumbnails: Thumbnails; None for a page without.
        note: Remark to show; "" for none.
    """

    title: str
    names: Sequence[str]
    positions: np.ndarray
    neighbors: np.ndarray
    similarities: np.ndarray
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    color: str | None = None
    thumbnails: Thumbnails | None = None
    note: str = ""


def render_page(page: Page) -> str:
    """Return the page as HTML.

    Its content security policy allows the one script of the page and no request. The names of
    files are in a block of JSON and in the title, both escaped.

    Args:
        page: Contents.
    """
    template, style, script = (_resource(name) for name in ("map.html", "map.css", "map.js"))
    return string.Template(template).substitute(
        TITLE=html.escape(_printable(page.title)),
        STYLE=style,
        SCRIPT=script,
        STYLE_HASH=_hash(style),
        SCRIPT_HASH=_hash(script),
        DATA=_json(_data(page)),
    )


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether values are numbers, and not names; few distinct integers are names.

    Args:
        values: Values of all rows; None where there is none.
    """
    known = [value for value in values if value is not None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return False
    are_integers = all(isinstance(value, int) for value in known)
    return bool(known) and not (are_integers and len(set(known)) <= MAX_INTEGER_CLASSES)


def describe_column(name: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """Return a column as the page reads it: classes by frequency, or numbers.

    Args:
        name: Name of the column.
        values: Values of all rows; None where there is none.

    Returns:
        Description, or None if the points cannot be colored by the values.
    """
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, str | bool | int | float) for value in known):
        return None
    if is_numeric(values):
        numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float32)
        finite = numbers[np.isfinite(numbers)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        return {"name": name, "kind": "numbers", "values": encode(numbers)} | {
            "low": low,
            "high": high,
        }
    texts = [None if value is None else _printable(str(value)) for value in values]
    counts = Counter(text for text in texts if text is not None)
    names = [text for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if len(names) > MAX_CLASSES:
        names = [*names[: MAX_CLASSES - 1], OTHER]
    codes = {text: code for code, text in enumerate(names)}
    numbers = np.array(
        [NO_CLASS if text is None else codes.get(text, MAX_CLASSES - 1) for text in texts],
        dtype=np.uint16,
    )
    totals = np.bincount(numbers[numbers != NO_CLASS], minlength=len(names)).tolist()
    return {"name": name, "kind": "classes", "values": encode(numbers)} | {
        "names": names,
        "counts": totals,
    }


def _data(page: Page) -> dict[str, Any]:
    described = [describe_column(name, values) for name, values in page.columns.items()]
    columns = [column for column in described if column is not None]
    pictures = page.thumbnails
    return {
        "names": [_printable(name) for name in page.names],
        "positions": encode(page.positions.astype(np.float32)),
        "neighbors": encode(page.neighbors.astype(np.int32)),
        "similarities": encode(page.similarities.astype(np.float32)),
        "columns": columns,
        "color": page.color,
        "thumbnail": None if pictures is None else pictures.to_dict(),
        "sheets": [] if pictures is None else [encode(sheet) for sheet in pictures.sheets],
        "note": page.note,
    }


def _printable(text: str) -> str:
    """Replace bytes of a file name that are no UTF-8, which a page cannot hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _json(value: Any) -> str:
    """Return JSON that cannot end the script block it is in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _hash(text: str) -> str:
    """Return the hash of an inline script or style for a content security policy (CSP 3)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


__all__ = ["Page", "describe_column", "is_numeric", "render_page"]
