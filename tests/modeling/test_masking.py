"""Which patches are kept."""

from __future__ import annotations

import pytest
import torch

from selfvit.modeling.masking import keep_smallest


def test_the_patches_of_the_smallest_numbers_are_kept():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.5, 0.5, 0.4, 0.5]])
    assert keep_smallest(noise, 2).tolist() == [[1, 3], [2, 0]]


def test_no_patch_is_kept_twice():
    kept = keep_smallest(torch.rand(5, 16), 11)
    assert all(len(set(row.tolist())) == 11 for row in kept)


@pytest.mark.parametrize("num_keep", [0, 5])
def test_keeping_none_or_too_many_is_an_error(num_keep):
    with pytest.raises(ValueError, match=rf"num_keep \({num_keep}\) must be 1 to the 4 patches"):
        keep_smallest(torch.rand(2, 4), num_keep)
