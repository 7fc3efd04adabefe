"""Detect gated MLPs (SwiGLU) in a source, and adapt its key mapping to them.

Sources store the gate in a tensor of its own, or packed with the other half of the first layer: the
gate comes first (`SwiGLUFFN` of DINOv2, `SwiGLUPacked` of timm). A packed layer can have the name
of a plain one, and is then recognized by its shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .key_mapping import KeyMapping, find_target_names

GATE = ".mlp.gate_proj."
FIRST = re.compile(r"(.*\.mlp\.)fc1\.weight")
ACTIVATION = "silu"  # of the gate, in every known model


def adapt_to_gated_mlp(tensors: Mapping[str, Tensor], mapping: KeyMapping) -> KeyMapping:
    """Return the key mapping with the layers of gated MLPs, if the source has them.

    Args:
        tensors: Tensors of the source.
        mapping: Key mapping that takes the layers of the MLP for those of a plain one.
    """
    found = {target: name for name in tensors for target in find_target_names(name, mapping)}
    if any(GATE in target for target in found):
        first = "up_proj"
    elif any(_is_packed(target, found, tensors) for target in found):
        first = "{gate,up}_proj"
    else:
        return mapping
    return {
        theirs: ours.replace("mlp.fc1.", f"mlp.{first}.").replace("mlp.fc2.", "mlp.down_proj.")
        for theirs, ours in mapping.items()
    }


def _is_packed(target: str, found: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a target is a first layer that writes twice what the second one reads."""
    match = FIRST.fullmatch(target)
    second = found.get(f"{match[1]}fc2.weight") if match is not None else None
    if second is None:
        return False
    shapes = tensors[found[target]].shape, tensors[second].shape
    return all(len(shape) == 2 for shape in shapes) and shapes[0][0] == 2 * shapes[1][1]


__all__ = ["ACTIVATION", "GATE", "adapt_to_gated_mlp"]
