"""Gram anchoring: keep the similarities of patches (DINOv3, arXiv 2508.10104, Sec. 4)."""

# B images · N patches of the student · M patches of the teacher · D, E hidden

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
) -> Tensor:
    """Return the squared difference of the cosine similarities of all pairs of patches.

    If the grids differ, the teacher's patches are first resized to the student's grid (bicubic,
    without antialiasing). The mean over the pairs is the one that the weights of the paper belong
    to; its equation has the sum.

    Args:
        student: (B, N, D) patch tokens, not necessarily normalized.
        teacher: (B, M, E) patch tokens of the same images by a frozen network; no gradient flows
            into them.
        student_grid: (rows, columns) of N.
        teacher_grid: (rows, columns) of M.

    Returns:
        Scalar, float32; mean over images and pairs, including a patch with itself.
    """
    with torch.autocast(student.device.type, enabled=False):
        teacher = teacher.detach().float()
        if teacher_grid != student_grid:
            maps = teacher.transpose(1, 2).unflatten(2, teacher_grid)  # (B, E, rows, columns)
            maps = F.interpolate(maps, size=student_grid, mode="bicubic", align_corners=False)
            teacher = maps.flatten(2).transpose(1, 2)  # (B, N, E)
        student = F.normalize(student.float(), dim=-1)
        teacher = F.normalize(teacher, dim=-1)
        similarities = student @ student.transpose(1, 2)  # (B, N, N)
        return F.mse_loss(similarities, teacher @ teacher.transpose(1, 2))


__all__ = ["gram_loss"]
