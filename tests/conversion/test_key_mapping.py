"""Key mappings from source names to selfvit names."""

from __future__ import annotations

import re

import pytest
import torch

from selfvit.conversion.key_mapping import (
    find_source_names,
    find_target_names,
    rename_tensors,
)
from selfvit.conversion.match_weights import FORMATS

MAPPING = {
    "blocks.#.attn.qkv.*": "layers.#.attention.{q,k,v}_proj.*",
    "blocks.#.old.*": "layers.#.mlp.*",
    "blocks.#.new.*": "layers.#.mlp.*",
    "cls_token": "embeddings.cls_token",
}


def test_a_fused_tensor_is_split_into_three_parts():
    fused = torch.arange(12.0).reshape(6, 2)
    renamed, origins, unknown = rename_tensors({"blocks.3.attn.qkv.weight": fused}, MAPPING)
    names = [f"layers.3.attention.{part}_proj.weight" for part in "qkv"]
    assert list(renamed) == names and not unknown
    assert all(torch.equal(renamed[n], fused[2 * i : 2 * i + 2]) for i, n in enumerate(names))
    assert set(origins.values()) == {"blocks.3.attn.qkv.weight"}


def test_only_full_names_match():
    assert find_target_names("cls_token", MAPPING) == ["embeddings.cls_token"]
    for name in ("cls_token.x", "x.cls_token", "clsXtoken", "blocks.x.attn.qkv.weight"):
        assert not find_target_names(name, MAPPING)


def test_a_missing_tensor_is_named_as_in_the_source():
    name = "layers.1.attention.k_proj.bias"
    assert find_source_names(name, MAPPING, []) == ["blocks.1.attn.qkv.bias"]
    known = ["blocks.0.new.weight"]  # the source uses the second of the two spellings
    assert find_source_names("layers.1.mlp.weight", MAPPING, known) == ["blocks.1.new.weight"]
    assert len(find_source_names("layers.1.mlp.weight", MAPPING, [])) == 2


def test_two_tensors_cannot_map_to_the_same_name():
    both = {"blocks.0.old.weight": torch.ones(1), "blocks.0.new.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"blocks\.0\.old\.weight and blocks\.0\.new\.weight"):
        rename_tensors(both, MAPPING)


def test_a_fused_tensor_that_cannot_be_split_is_named():
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.weight"):
        rename_tensors({"blocks.0.attn.qkv.weight": torch.ones(4, 2)}, MAPPING)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_mapping_can_be_inverted(format):
    for theirs, ours in format.key_mapping.items():
        fill = {"#": "0", "*": "weight"}
        name, target = theirs, re.sub(r"\{([a-z]+)[a-z,]*\}", r"\1", ours)
        for sign, value in fill.items():
            name, target = name.replace(sign, value), target.replace(sign, value)
        assert name in find_source_names(target, format.key_mapping, [name])
