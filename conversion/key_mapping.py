"""Key mappings: from the tensor names of a source to those of selfvit.

A mapping holds templates of names. On both sides `#` stands for the index of a block and `*` for
`weight` or `bias`. A group on the right side, such as `{q,k,v}`, splits a fused tensor into as many
equal parts along its first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from torch import Tensor

KeyMapping = Mapping[str, str]  # source template -> target template

FUSED = re.compile(r"\{([a-z,]+)\}")  # names of the parts of a fused tensor


def add_prefixes(mapping: KeyMapping, source: str = "", target: str = "") -> dict[str, str]:
    """Return the mapping with `source` before its source names and `target` before its targets."""
    return {source + theirs: target + ours for theirs, ours in mapping.items()}


@lru_cache(maxsize=4096)
def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\#", "([0-9]+)").replace(r"\*", "(weight|bias)")
    return re.compile(pattern)


def _fill_template(template: str, values: Iterable[str]) -> str:
    for value in values:
        template = template.replace("#" if value.isdigit() else "*", value, 1)
    return template


def _expand(template: str) -> list[str]:
    """Return a template for each part of a fused tensor, or the template itself."""
    group = FUSED.search(template)
    if group is None:
        return [template]
    return [template.replace(group[0], part) for part in group[1].split(",")]


def find_target_names(name: str, mapping: KeyMapping) -> list[str]:
    """Return the target names of a source tensor: none, one, or several if it is a fused one."""
    for theirs, ours in mapping.items():
        match = _compile(theirs).fullmatch(name)
        if match is None:
            continue
        return _expand(_fill_template(ours, match.groups()))
    return []


def find_source_names(target: str, mapping: KeyMapping, known: Iterable[str]) -> list[str]:
    """Return the names of the source tensors that can fill `target`.

    Args:
        target: Name of the tensor in the model.
        mapping: Key mapping of the source.
        known: Names of the tensors that the source has. If the mapping has several spellings, the
            one that matches these names is returned.
    """
    found = []
    for theirs, ours in mapping.items():
        match = next(
            filter(None, (_compile(part).fullmatch(target) for part in _expand(ours))), None
        )
        if match is not None:
            found.append((theirs, _fill_template(theirs, match.groups())))
    used = [name for theirs, name in found if any(_compile(theirs).fullmatch(k) for k in known)]
    return used or [name for _, name in found]


def rename_tensors(
    tensors: Mapping[str, Tensor], mapping: KeyMapping
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Rename the tensors of a source to selfvit's names and split the fused ones.

    Returns:
        Tensors by target name; source name by target name; source names that match no template.

    Raises:
        ValueError: If two tensors map to the same name, or a fused tensor cannot be split.
    """
    renamed: dict[str, Tensor] = {}
    source_names: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        targets = find_target_names(name, mapping)
        if not targets:
            unknown.append(name)
            continue
        if len(targets) > 1 and (tensor.dim() < 1 or len(tensor) % len(targets)):
            raise ValueError(
                f"{name} must hold {len(targets)} equal parts stacked along the first dimension, "
                f"for {' and '.join(targets)}, but its shape {tuple(tensor.shape)} cannot be split."
            )
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        for target, part in zip(targets, parts, strict=True):
            if target in renamed:
                raise ValueError(f"{source_names[target]} and {name} both map to {target}.")
            renamed[target], source_names[target] = part, name
    return renamed, source_names, unknown


__all__ = [
    "KeyMapping",
    "add_prefixes",
    "find_source_names",
    "find_target_names",
    "rename_tensors",
]
