"""HTML of the app: grids of images. Every name is escaped, and images are named by their rows."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from PIL import Image

from .explorer import jpeg

# A grid reports the row of the image that was clicked; the arrow keys go from image to image.
GRID_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-row]');
  if (button) trigger('click', { row: Number(button.dataset.row) });
});
element.addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const buttons = [...element.querySelectorAll('button[data-row]')];
  const at = buttons.indexOf(document.activeElement);
  if (step && at >= 0) {
    event.preventDefault();
    buttons[Math.min(buttons.length - 1, Math.max(0, at + step))].focus();
  }
});
"""
STYLE = """
.selfvit-grid { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }
.selfvit-grid button { display: grid; gap: 4px; padding: 6px;
  border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-primary); cursor: pointer; font-size: 12px;
  color: var(--body-text-color); text-align: left; align-content: start; }
.selfvit-grid button:focus-visible,
.selfvit-grid button:hover { outline: 2px solid var(--color-accent); }
.selfvit-grid img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.selfvit-grid span { overflow-wrap: anywhere; }
.selfvit-group h3 { margin: 12px 0 4px; }
.selfvit-pair { display: grid; gap: 12px; margin: 8px 0;
  grid-template-columns: minmax(160px, 1fr) 3fr; }
.selfvit-query img { max-width: 100%; max-height: 320px; }
.selfvit-map iframe { width: 100%; height: 74vh; border: 1px solid var(--border-color-primary);
  border-radius: 8px; }
"""


def text(value: object) -> str:
    """Return a value as text of HTML.

    Args:
        value: Value, for example a path.
    """
    shown = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    escaped = html.escape(shown)
    # Gradio's HTML component evaluates ${...} and {{...}}
    for letter in "${}`":
        escaped = escaped.replace(letter, f"&#{ord(letter)};")
    return escaped


def grid(tiles: Iterable[tuple[int, str, str]]) -> str:
    """Return a grid of images that can be clicked.

    Args:
        tiles: Row, name, and caption of each image; "" for no caption.
    """
    buttons = []
    for row, name, caption in tiles:
        line = f"<b>{text(caption)}</b>" if caption else ""
        buttons.append(
            f'<button type="button" data-row="{row}" title="{text(name)}">'
            f'<img src="/images/{row}?size=160" alt="" loading="lazy">{line}'
            f"<span>{text(name)}</span></button>"
        )
    return f'<div class="selfvit-grid">{"".join(buttons)}</div>'


def group(title: str, content: str) -> str:
    """Return a part of a tab with a title.

    Args:
        title: Title.
        content: HTML.
    """
    return f'<section class="selfvit-group"><h3>{text(title)}</h3>{content}</section>'


def query_row(row: int, name: str) -> str:
    """Return the image of a row, as the query of a search.

    Args:
        row: Row.
        name: Name of the image.
    """
    source = f"/images/{row}?size=640"
    return f'<figure class="selfvit-query"><img src="{source}" alt=""><p>{text(name)}</p></figure>'


def query_picture(picture: Image.Image) -> str:
    """Return an uploaded image, as the query of a search.

    Args:
        picture: Small copy of the image.
    """
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture)).decode()}"
    return f'<figure class="selfvit-query"><img src="{source}" alt=""><p>dropped</p></figure>'


def message(line: str) -> str:
    """Return a remark.

    Args:
        line: Text.
    """
    return f"<p>{text(line)}</p>"


__all__ = [
    "GRID_SCRIPT",
    "STYLE",
    "grid",
    "group",
    "message",
    "query_picture",
    "query_row",
    "text",
]
