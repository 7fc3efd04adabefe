"""Suggestions for a name that stands for no weights."""

from __future__ import annotations

import difflib
from pathlib import Path

_SIZES = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}
_DINOV3 = ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16")

# Hub ids of the models of torch.hub, which their authors' pages name.
TORCH_HUB = {
    **{f"dino_{name}": f"facebook/dino-{name}" for name in ("vits16", "vits8", "vitb16", "vitb8")},
    **{f"dinov2_{name}": f"facebook/dinov2-{size}" for name, size in _SIZES.items()},
    **{
        f"dinov2_{name}_reg": f"facebook/dinov2-with-registers-{size}"
        for name, size in _SIZES.items()
    },
    **{f"dinov3_{name}": f"facebook/dinov3-{name}-pretrain-lvd1689m" for name in _DINOV3},
}


def suggestion(name: str) -> str:
    """Return a sentence on what was meant by a name without a slash; "" if nothing is similar.

    It is the most similar name in torch.hub or in the current folder, otherwise in timm. Models of
    torch.hub have other names on the Hub.

    Args:
        name: Name that is neither a file, a folder nor a model of timm with weights.
    """
    here = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(name, [*TORCH_HUB, *here], n=1) or _similar_in_timm(name)
    if close and close[0] in TORCH_HUB:
        return f"{close[0]} of torch.hub is {TORCH_HUB[close[0]]} on the Hub."
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _similar_in_timm(name: str) -> list[str]:
    try:
        from timm import list_pretrained
    except ImportError:
        return []
    return difflib.get_close_matches(name, list_pretrained("vit_*"), n=2)


__all__ = ["TORCH_HUB", "suggestion"]
