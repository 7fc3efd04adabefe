"""Tables of names: from the tensors of a source to those of selfvit.

A table maps templates of names. In both of its sides `#` stands for the number of a block and `*`
for `weight` or `bias`; `{q,k,v}` on the right side splits a fused tensor into equal parts along its
first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from torch import Tensor

Names = Mapping[str, str]

FUSED = "{q,k,v}"


def prefixed(names: Names, source: str = "", target: str = "") -> dict[str, str]:
    """Return a table whose names begin with `source` and `target`."""
    return {source + theirs: target + ours for theirs, ours in names.items()}


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\#", "([0-9]+)").replace(r"\*", "(weight|bias)")
    return re.compile(pattern)


def _filled(template: str, values: Iterable[str]) -> str:
    for value in values:
        template = template.replace("#" if value.isdigit() else "*", value, 1)
    return template


def target_names(name: str, names: Names) -> list[str]:
    """Return what a source's tensor becomes: none, one, or the three parts of a fused one."""
    for theirs, ours in names.items():
        match = _pattern(theirs).fullmatch(name)
        if match is not None:
            target = _filled(ours, match.groups())
            return (
                [target.replace(FUSED, part) for part in ("q", "k", "v")]
                if (FUSED in target)
                else [target]
            )
    return []


def source_names(target: str, names: Names, known: Iterable[str]) -> list[str]:
    """Return what the tensors are called in the source that would fill `target`.

    Args:
        target: name in the model.
        names: the table.
        known: names that the source has. Where a table has several spellings, its is taken.
    """
    plain = re.sub(r"\b[qkv]_proj\b", FUSED + "_proj", target)
    found = []
    for theirs, ours in names.items():
        match = _pattern(ours).fullmatch(plain if FUSED in ours else target)
        if match is not None:
            found.append((theirs, _filled(theirs, match.groups())))
    used = [name for theirs, name in found if any(_pattern(theirs).fullmatch(k) for k in known)]
    return used or [name for _, name in found]


def rename(
    tensors: Mapping[str, Tensor], names: Names
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Give the tensors of a source the names of selfvit, and split the fused ones.

    Returns:
        tensors by target name; source name by target name; source names that the table has not.

    Raises:
        ValueError: if two tensors would become the same one, or a fused one cannot be split.
    """
    renamed: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        targets = target_names(name, names)
        if not targets:
            unknown.append(name)
            continue
        if len(targets) > 1 and (tensor.dim() < 1 or len(tensor) % len(targets)):
            raise ValueError(
                f"{name} should hold query, key and value one below the other, but its shape "
                f"{tuple(tensor.shape)} has no three equal parts."
            )
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        for target, part in zip(targets, parts, strict=True):
            if target in renamed:
                raise ValueError(f"{origins[target]} and {name} are both {target} by their names.")
            renamed[target], origins[target] = part, name
    return renamed, origins, unknown


__all__ = ["Names", "prefixed", "rename", "source_names", "target_names"]
