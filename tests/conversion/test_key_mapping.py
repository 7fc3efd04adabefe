"""Tables of names."""

from __future__ import annotations

import pytest
import torch

from selfvit.conversion.key_mapping import rename, source_names, target_names
from selfvit.conversion.match_weights import SOURCES

TABLE = {
    "blocks.#.attn.qkv.*": "layers.#.attention.{q,k,v}_proj.*",
    "blocks.#.old.*": "layers.#.mlp.*",
    "blocks.#.new.*": "layers.#.mlp.*",
    "cls_token": "embeddings.cls_token",
}


def test_a_fused_tensor_becomes_its_three_parts():
    fused = torch.arange(12.0).reshape(6, 2)
    renamed, origins, unknown = rename({"blocks.3.attn.qkv.weight": fused}, TABLE)
    names = [f"layers.3.attention.{part}_proj.weight" for part in "qkv"]
    assert list(renamed) == names and not unknown
    assert all(torch.equal(renamed[n], fused[2 * i : 2 * i + 2]) for i, n in enumerate(names))
    assert set(origins.values()) == {"blocks.3.attn.qkv.weight"}


def test_names_are_matched_whole():
    assert target_names("cls_token", TABLE) == ["embeddings.cls_token"]
    for name in ("cls_token.x", "x.cls_token", "clsXtoken", "blocks.x.attn.qkv.weight"):
        assert not target_names(name, TABLE)


def test_a_missing_tensor_has_the_name_that_the_source_would_give_it():
    name = "layers.1.attention.k_proj.bias"
    assert source_names(name, TABLE, []) == ["blocks.1.attn.qkv.bias"]
    known = ["blocks.0.new.weight"]  # of two spellings, the one that the source has
    assert source_names("layers.1.mlp.weight", TABLE, known) == ["blocks.1.new.weight"]
    assert len(source_names("layers.1.mlp.weight", TABLE, [])) == 2


def test_two_tensors_are_never_taken_for_one():
    both = {"blocks.0.old.weight": torch.ones(1), "blocks.0.new.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"blocks\.0\.old\.weight and blocks\.0\.new\.weight"):
        rename(both, TABLE)


def test_a_tensor_without_three_parts_is_named():
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.weight"):
        rename({"blocks.0.attn.qkv.weight": torch.ones(4, 2)}, TABLE)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_table_can_be_read_backwards(source):
    for theirs, ours in source.names.items():
        fill = {"#": "0", "*": "weight"}
        name, target = theirs, ours.replace("{q,k,v}", "q")
        for sign, value in fill.items():
            name, target = name.replace(sign, value), target.replace(sign, value)
        assert name in source_names(target, source.names, [name])
