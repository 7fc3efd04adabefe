"""Random masking of patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfvit.modeling.masking import gather_patches, ids_to_keep, num_to_keep
from tests.golden import load_golden


def random_noise(batch_size: int = 3, num_patches: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, num_patches, generator=generator)


def test_the_patches_with_the_smallest_noise_are_kept():
    split = ids_to_keep(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert split.ids_keep.tolist() == [[1, 3]]
    assert split.ids_removed.tolist() == [[2, 0]]
    assert split.ids_restore.tolist() == [[3, 0, 2, 1]]  # positions of 0, 1, 2, 3 in (1, 3, 2, 0)
    assert split.mask.tolist() == [[1.0, 0.0, 1.0, 0.0]]  # 1 is remove


def test_the_mask_matches_the_reference():
    golden, _ = load_golden("mae")
    split = ids_to_keep(golden["noise"], 4)
    assert torch.equal(split.mask, golden["mask"])


@pytest.mark.parametrize("num_keep", [0, 1, 7, 16])
def test_each_patch_is_kept_or_removed_once(num_keep):
    split = ids_to_keep(random_noise(), num_keep)
    assert split.ids_keep.shape == (3, num_keep)
    assert split.ids_removed.shape == (3, 16 - num_keep)
    both = torch.cat([split.ids_keep, split.ids_removed], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(3, -1))
    assert torch.equal(split.mask.sum(dim=1), torch.full((3,), 16.0 - num_keep))
    assert not split.mask.gather(1, split.ids_keep).any()
    assert split.mask.gather(1, split.ids_removed).all()


def test_restoring_undoes_the_split():
    patches = torch.randn(3, 16, 5)
    split = ids_to_keep(random_noise(), 6)
    parts = [gather_patches(patches, ids) for ids in (split.ids_keep, split.ids_removed)]
    assert torch.equal(gather_patches(torch.cat(parts, dim=1), split.ids_restore), patches)


def test_ties_keep_the_order_of_the_image():
    # torch's sort is not stable by default: long rows of ties came in any order
    split = ids_to_keep(torch.zeros(2, 5000), 3000)
    assert torch.equal(split.ids_keep, torch.arange(3000).expand(2, -1))


def test_the_split_depends_on_the_noise_only_and_does_not_change_it():
    noise = random_noise()
    before = noise.clone()
    first, again = ids_to_keep(noise, 5), ids_to_keep(noise, 5)
    assert torch.equal(noise, before)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_all_patches_are_kept_equally_often():
    mask = ids_to_keep(random_noise(batch_size=4000), 4).mask
    standard_error = (0.25 * 0.75 / 4000) ** 0.5
    assert ((mask.mean(dim=0) - 0.75).abs() < 5 * standard_error).all()


@pytest.mark.parametrize(
    ("num_patches", "removed_ratio", "num_keep"),
    [(196, 0.75, 49), (16, 0.75, 4), (196, 0, 196), (196, 1, 0), (49, 0.75, 12), (196, 0.15, 166)],
)
def test_the_number_of_kept_patches_is_rounded_down(num_patches, removed_ratio, num_keep):
    assert num_to_keep(num_patches, removed_ratio) == num_keep
    assert int(num_patches * (1 - removed_ratio)) == num_keep  # as in the references


def test_the_number_of_kept_patches_tolerates_floating_point_errors():
    # 10 * (1 - 0.9) is 0.9999999999999998, which used to keep no patch
    for tenths in range(11):
        assert num_to_keep(10, tenths / 10) == 10 - tenths


@pytest.mark.parametrize(("shape", "num_keep"), [((16,), 4), ((2, 3), 4), ((2, 3, 4), 1)])
def test_noise_of_a_wrong_shape_is_an_error_that_names_it(shape, num_keep):
    with pytest.raises(ValueError, match=rf"the {num_keep} patches") as error:
        ids_to_keep(torch.rand(shape), num_keep)
    assert str(shape) in str(error.value)


def test_masks_compile_as_one_graph():
    compiled = torch.compile(ids_to_keep, backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled(random_noise(), 5), ids_to_keep(random_noise(), 5), strict=True):
        assert torch.equal(one, other)
