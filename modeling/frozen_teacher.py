"""Frozen teacher of a distillation: any vision model that transformers' AutoModel opens.

The teacher is no part of the student: it is not saved, trained or counted with it. Its name is in
the configuration, and the student opens it when it is needed.
"""

# B batch · C channels · H, W pixels · T tokens · N patches · D hidden

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils import CONFIG_NAME, cached_file

from ..errors import one_line, shorten
from .checkpoints.hub_revision import split_revision
from .checkpoints.loading import quiet_loading
from .checkpoints.resolve import check_no_url
from .checkpoints.weight_files import weights_digest

# Hierarchical networks merge 2 x 2 patches up to three times.
MERGED_PATCHES = (1, 2, 4, 8)
# Ends of the names of weights that a checkpoint may lack, because features do not depend on them.
NOT_NEEDED = ("mask_token",)
POOLER = "pooler."


class TeacherFeatures(NamedTuple):
    """Features of a teacher.

    Args:
        class_tokens: (B, D) class token, or for networks without one the pooled patches.
        patches: (B, N, D) features of the patches, row by row.
        grid: Number of rows and of columns of the patches.
    """

    class_tokens: Tensor
    patches: Tensor
    grid: tuple[int, int]


class FrozenTeacher:
    """Vision model in evaluation mode, without gradients.

    It is not a module, so a model that holds it neither saves nor trains it. Copies of a model
    share it.

    Args:
        model: Model of transformers whose output has a `last_hidden_state`. Of a model of images
            and texts, the vision model is used.
        revision: Commit on the Hub, or SHA-256 of the weights in a folder; None if unknown.
        has_pooler: Whether `pooler_output` is computed with trained weights.
    """

    def __init__(self, model: Any, revision: str | None = None, has_pooler: bool = True):
        vision: Any = getattr(model, "vision_model", model)
        self.model = vision.eval().requires_grad_(False)
        self.revision = revision
        self.has_pooler = has_pooler
        self._resizes = "interpolate_pos_encoding" in inspect.signature(vision.forward).parameters

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self

    @property
    def patch_size(self) -> int | None:
        """Side of a patch in pixels; None if the configuration does not have it."""
        size = getattr(self.model.config, "patch_size", None)
        return size if size is None or isinstance(size, int) else int(tuple(size)[-1])

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Return the parameters of the network."""
        return self.model.parameters()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> TeacherFeatures:
        """Return the features of images.

        Args:
            pixel_values: (B, C, H, W) normalized images.

        Raises:
            ValueError: If H or W is not a multiple of the patch size, or the tokens of the network
                cannot be assigned to patches.
        """
        size, patch_size = pixel_values.shape[-2:], self.patch_size
        if patch_size is not None and (size[0] % patch_size or size[1] % patch_size):
            below = [side // patch_size * patch_size or patch_size for side in size]
            raise ValueError(
                f"image_size ({size[0]} x {size[1]}) must be a multiple of the teacher's patch "
                f"size ({patch_size}); use {' '.join(map(str, dict.fromkeys(below)))}."
            )
        parameter = next(self.model.parameters())
        if parameter.device != pixel_values.device:
            self.model.to(pixel_values.device)
        options = {"interpolate_pos_encoding": True} if self._resizes else {}
        outputs = self.model(pixel_values=pixel_values.to(parameter.dtype), **options)
        tokens = outputs.last_hidden_state
        if tokens.dim() == 4:  # feature maps (B, D, h, w) of a convolutional network
            grid, num_prefix_tokens = (tokens.shape[2], tokens.shape[3]), 0
            tokens = tokens.flatten(2).transpose(1, 2)
        else:
            grid = token_grid(tokens.shape[1], (size[0], size[1]), patch_size)
            num_prefix_tokens = tokens.shape[1] - grid[0] * grid[1]
        patches = tokens[:, num_prefix_tokens:]
        if num_prefix_tokens:
            return TeacherFeatures(tokens[:, 0], patches, grid)
        pooled = getattr(outputs, "pooler_output", None) if self.has_pooler else None
        if pooled is None or pooled.flatten(1).shape != patches[:, 0].shape:
            return TeacherFeatures(patches.mean(dim=1), patches, grid)
        return TeacherFeatures(pooled.flatten(1), patches, grid)


def token_grid(
    num_tokens: int, image_size: tuple[int, int], patch_size: int | None
) -> tuple[int, int]:
    """Return the number of rows and columns of the patches among the tokens of a network.

    Args:
        num_tokens: Number of tokens (T): class token and registers, then patches.
        image_size: Height and width of the image, pixels.
        patch_size: Side of a patch in pixels, before patches are merged.

    Raises:
        ValueError: If there is no such grid.
    """
    for factor in MERGED_PATCHES if patch_size else ():
        rows, columns = (side // (factor * (patch_size or 1)) for side in image_size)
        # only networks that do not merge patches have tokens before them
        if rows * columns == num_tokens or (factor == 1 and 0 < rows * columns < num_tokens):
            return rows, columns
    raise ValueError(
        f"the teacher's {num_tokens} tokens cannot be assigned to patches of an image of "
        f"{image_size[0]} x {image_size[1]} pixels (patch_size {patch_size}); use a vision "
        "transformer with square patches, or a convolutional network."
    )


def open_teacher(name: str, revision: str | None = None) -> FrozenTeacher:
    """Open a teacher on the CPU, in float32, and check that its weights are complete.

    Random numbers drawn later do not depend on it.

    Args:
        name: Folder, Hub id or USER/NAME@REVISION.
        revision: Commit on the Hub to open, or SHA-256 that the weights of a folder must have.

    Raises:
        FileNotFoundError: If the teacher cannot be found or opened.
        ValueError: If there is no name, weights are missing, or the folder has other weights.
    """
    if not name:
        raise ValueError(
            "a distillation needs a teacher, and none is named; give --teacher FOLDER, or a Hub id "
            "such as facebook/dinov2-base (distill_config.teacher in Python)."
        )
    check_no_url(name)
    source, tag = split_revision(name)
    folder = Path(source).expanduser()
    is_folder = folder.is_dir()
    if is_folder:
        source, revision = str(folder), _checked_digest(name, folder, revision)
    # transformers draws random numbers for weights that a checkpoint lacks
    with torch.random.fork_rng(devices=[]), quiet_loading():
        try:
            if not is_folder:
                revision = _commit_of(source, revision or tag or "main")
            location = {} if is_folder else {"revision": revision}
            loaded: Any = AutoModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **location
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0] or one_line(error)
            place = "" if is_folder else "it is no folder, and as a Hub id: "
            raise FileNotFoundError(
                f"the teacher {name!r} cannot be opened ({place}{reason.rstrip('.')}); restore it, "
                "or name the place where it is now with --teacher."
            ) from error
    model, info = loaded
    missing = [key for key in sorted(info["missing_keys"]) if not key.endswith(NOT_NEEDED)]
    has_pooler = not any(POOLER in key for key in missing)
    missing = [key for key in missing if POOLER not in key]
    if missing:
        raise ValueError(
            f"the teacher {name!r} lacks weights of {type(model).__name__}: {shorten(missing)}; "
            "download or convert it again."
        )
    return FrozenTeacher(model, revision, has_pooler)


def _checked_digest(name: str, folder: Path, expected: str | None) -> str:
    try:
        found = weights_digest(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"the teacher {name!r} cannot be opened ({one_line(error)}); restore it, or name the "
            "place where it is now with --teacher."
        ) from error
    if expected not in (None, found):
        raise ValueError(
            f"the teacher {name!r} has other weights than the student was trained with (SHA-256 "
            f"{found[:12]}, then {str(expected)[:12]}); restore them, or start a new run."
        )
    return found


def _commit_of(repo_id: str, revision: str) -> str:
    """Return the commit of a branch, tag or commit on the Hub, or of what is in the cache."""
    config = Path(str(cached_file(repo_id, CONFIG_NAME, revision=revision)))
    return config.parent.name  # .../snapshots/COMMIT/config.json


__all__ = ["FrozenTeacher", "TeacherFeatures", "open_teacher", "token_grid"]
