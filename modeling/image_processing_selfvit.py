"""Image processor for any number of channels and any scale of pixels.

A stock processor of transformers takes RGB images of eight bits. This one takes as many channels as
the model reads, and scales pixels of more than eight bits from a declared range. It resizes floats,
so nothing is rounded to eight bits. Its settings have the names of the stock processors.
"""

# H height · W width · B bands of an image · C channels that the model reads

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict, to_numpy_array
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from ..pixel_scale import (
    GRAY_WEIGHTS,
    WHITE,
    check_pixel_range,
    range_of_type,
    to_eight_bit_scale,
)
from .checkpoints.processor_code import remove_processor_code, write_processor_code

logger = logging.get_logger(__name__)

# Raw modes of Pillow of more than eight bits per channel, and its decoders that cut them.
DEEP_RAW_MODE = re.compile(r"L;16|[A-Za-z]+;16[BLN]")
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # by number of Pillow's resampling
# A resized image that is longer than this multiple of its crop is cropped before it is resized.
EXTREME = 16


class SelfViTImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of the processor, in addition to those of every image processor.

    Args:
        num_channels: Number of channels: 1 is gray, 3 is RGB; other numbers have no colors.
        pixel_range: Values of black and white in images of more than eight bits; None for the
            smallest and the largest value of the type of the image (0 and 1 for floats). Images of
            eight bits always have the range 0 to 255.
    """

    num_channels: int
    pixel_range: list[float] | tuple[float, ...] | None


class SelfViTImageProcessor(BaseImageProcessor):
    """Resize, crop and normalize images of any number of channels, as floats.

    An image is a Pillow image, array or tensor, (H, W), (H, W, C) or (C, H, W). A processor for
    1 channel turns RGB images gray, and one for 3 channels repeats gray images; all others need
    images of exactly their number of channels.

    Pillow keeps more than eight bits of gray images only. Colors of 16 bits must be arrays where
    `pixel_range` is set: a file that Pillow has opened is refused, and as the pipelines of
    transformers open files as RGB of eight bits, one warning says so.

    Args:
        kwargs: Settings, as in `SelfViTImageProcessorKwargs` and in the stock processors.

    Raises:
        ValueError: If a setting is out of range, or mean and std do not have one value per channel.
    """

    valid_kwargs = SelfViTImageProcessorKwargs
    model_input_names = ["pixel_values"]
    num_channels = 3
    pixel_range = None
    resample = PILImageResampling.BICUBIC
    image_mean: Any = 0.5
    image_std: Any = 0.5
    size = {"height": 224, "width": 224}
    crop_size = None
    default_to_square = False
    do_resize = True
    do_center_crop = False
    do_rescale = True
    rescale_factor = 1 / WHITE
    do_normalize = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self.pixel_range = check_pixel_range(self.pixel_range)
        if self.num_channels < 1:
            raise ValueError(f"num_channels ({self.num_channels}) must be at least 1.")
        self.image_mean = self._per_channel("image_mean", self.image_mean)
        self.image_std = self._per_channel("image_std", self.image_std)

    def _per_channel(self, name: str, values: Any) -> list[float]:
        values = [values] if isinstance(values, int | float) else values
        if len(values) == 1:
            return [float(values[0])] * self.num_channels
        if len(values) != self.num_channels:
            raise ValueError(
                f"{name} ({list(values)}) must have one value for each of the {self.num_channels} "
                "channels (num_channels)."
            )
        return [float(value) for value in values]

    def preprocess_scaled(self, pixels: Any, *, rounded: bool = False) -> Tensor:
        """Resize, crop and normalize one image that is on the scale of eight bits already.

        Args:
            pixels: (H, W, C), from 0 to 255.
            rounded: Whether to round resized values, as for an image of eight bits.

        Returns:
            Normalized pixels, (C, H, W), float32.
        """
        settings = {name: getattr(self, name) for name in self._valid_kwargs_names}
        image = torch.as_tensor(pixels).permute(2, 0, 1)  # (H, W, C) -> (C, H, W)
        return self._transform(image, rounded=rounded, **settings)

    def process_image(
        self,
        image: Any,
        num_channels: int = 3,
        pixel_range: tuple[float, float] | None = None,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return one image as float32, (C, H, W), on the scale of eight bits.

        Raises:
            ValueError: If the image has another number of channels.
        """
        if hasattr(image, "convert"):  # a Pillow image
            if pixel_range is not None:
                _check_depth(image)
            image = self._bands_of_mode(image, num_channels)
            input_data_format = "channels_last"
        array = to_numpy_array(image)
        array = array[..., None] if array.ndim == 2 else array
        axis = _channel_axis(array.shape, num_channels, input_data_format)
        scaled = torch.from_numpy(_scaled(array, pixel_range)).movedim(axis, 0)  # (B, H, W)
        return _with_channels(scaled, num_channels).contiguous()

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        if getattr(images, "ndim", None) == 2:  # one gray image, (H, W)
            return [images]
        return super()._prepare_images_structure(images, expected_ndims)

    @staticmethod
    def _bands_of_mode(image: Any, num_channels: int) -> Any:
        """Convert a Pillow image of a mode without bands of eight bits each."""
        if image.mode.startswith(("I", "F")) or num_channels not in (1, 3):
            return image.convert("RGB") if image.mode == "P" else image
        mode = "L" if num_channels == 1 else "RGB"
        is_gray = image.mode in ("1", "L", "LA")
        return (
            image.convert(mode) if mode == "RGB" or is_gray else image.convert("RGB").convert("L")
        )

    def _preprocess(self, images: list[Tensor], return_tensors: Any = None, **kwargs: Any) -> Any:
        pixel_values: Any = [self._transform(image, **kwargs) for image in images]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    @staticmethod
    def _transform(
        image: Tensor,
        do_resize: bool,
        size: SizeDict,
        resample: int | None,
        do_center_crop: bool,
        crop_size: SizeDict | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float],
        image_std: list[float],
        rounded: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        height, width = (int(side) for side in image.shape[1:])
        resized = resized_size(height, width, size) if do_resize else (height, width)
        output = resized
        if do_center_crop and crop_size is not None:
            output = (int(crop_size["height"]), int(crop_size["width"]))
        image = resize_and_crop(image.float(), resized, output, _mode(resample), rounded)
        image = image * rescale_factor if do_rescale else image
        if do_normalize:
            mean, std = torch.tensor(image_mean), torch.tensor(image_std)
            image = (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return image

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        save_code: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Save the settings, and the code for `trust_remote_code=True`.

        Args:
            save_directory: Folder of the checkpoint. It is created if it does not exist.
            push_to_hub: As in transformers.
            save_code: Whether to write the code. Without it the processor opens only where selfvit
                is installed.
            kwargs: Keyword arguments for transformers' `save_pretrained`.

        Raises:
            OSError: If the source code cannot be read; `save_code=False` leaves the code out.
        """
        if save_code:
            self.auto_map = write_processor_code(type(self), save_directory)
        else:
            remove_processor_code(save_directory)
            vars(self).pop("auto_map", None)
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoImageProcessor") -> None:
        """Do nothing: `save_pretrained` writes the code of this class."""


def resize_and_crop(
    image: Tensor,
    resized: tuple[int, int],
    output: tuple[int, int],
    mode: str,
    rounded: bool = False,
) -> Tensor:
    """Resize an image and return its center, padded with 0 where the image is smaller.

    At an extreme aspect ratio, only the pixels that the center needs are resized, with the same
    result, so that the memory does not depend on the aspect ratio.

    Args:
        image: (C, H, W), float32, from 0 to 255.
        resized: (height, width) to resize to.
        output: (height, width) of the center.
        mode: Interpolation, a value of `MODES`.
        rounded: Whether to round, after the rows and after the columns, as for eight bits.

    Returns:
        (C, *output), float32, from 0 to 255.
    """
    weights: list[Tensor | None] = [None, None]
    for axis in (0, 1):
        if is_extreme(resized[axis], output[axis]) and mode != "nearest-exact":
            start, weights[axis] = _center_weights(
                image.shape[axis + 1], resized[axis], output[axis], mode
            )
            image = image.narrow(axis + 1, start, weights[axis].shape[1])  # type: ignore[union-attr]
    if rounded or any(one is not None for one in weights):
        for axis in (1, 0):  # rows first, as Pillow does
            image = _resize_axis(image, axis, resized[axis], weights[axis], mode)
            image = image.clamp(0, WHITE).round() if rounded else image
    elif tuple(image.shape[1:]) != resized:
        image = _interpolate(image, resized, mode)
    return center_crop(image.clamp(0, WHITE), output)


def center_crop(image: Tensor, output: tuple[int, int]) -> Tensor:
    """Return the center of an image (C, H, W), padded with 0 where the image is smaller."""
    for axis in (1, 2):
        missing = output[axis - 1] - image.shape[axis]
        if missing > 0:
            before, after = missing // 2, missing - missing // 2
            pad = (0, 0, before, after) if axis == 1 else (before, after, 0, 0)
            image = nn.functional.pad(image, pad)
        start = (image.shape[axis] - output[axis - 1]) // 2
        image = image.narrow(axis, start, output[axis - 1])
    return image.contiguous()


def is_extreme(resized: int, output: int) -> bool:
    """Return whether a side is so long that only the center of the image should be resized."""
    return resized > EXTREME * output


def _resize_axis(image: Tensor, axis: int, side: int, weights: Tensor | None, mode: str) -> Tensor:
    """Resize the height (0) or the width (1), by weights (output, input) if there are some."""
    if weights is not None:
        return torch.tensordot(image, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    sides = [int(one) for one in image.shape[1:]]
    if sides[axis] == side:
        return image
    sides[axis] = side
    return _interpolate(image, (sides[0], sides[1]), mode)


def _interpolate(image: Tensor, sides: tuple[int, int], mode: str) -> Tensor:
    smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    return nn.functional.interpolate(image[None], sides, mode=mode, **smooth)[0]


def _center_weights(length: int, resized: int, output: int, mode: str) -> tuple[int, Tensor]:
    """Return the rows of a resampling matrix that the center of a side needs.

    Returns:
        First pixel that is needed, and the weights of the pixels from there on, (output, n).
    """
    scale = length / resized
    width, radius = max(scale, 1.0), 2.0 if mode == "bicubic" else 1.0
    first = (resized - output) // 2
    centers = (torch.arange(first, first + output, dtype=torch.float64) + 0.5) * scale
    start = max(0, int(centers[0] - radius * width))
    end = min(length, int(centers[-1] + radius * width) + 1)
    positions = torch.arange(start, end, dtype=torch.float64) + 0.5
    distances = (positions - centers[:, None]).abs() / width  # (output, end - start)
    weights = _cubic(distances) if mode == "bicubic" else (1 - distances).clamp(min=0)
    return start, (weights / weights.sum(dim=1, keepdim=True)).float()


def _cubic(distance: Tensor) -> Tensor:
    """Return the weights of bicubic interpolation with a = -0.5, as in Pillow."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Return the size to resize to, as the stock processors compute it."""
    sides = dict(size)
    if sides.get("height") and sides.get("width"):
        return int(sides["height"]), int(sides["width"])
    shortest = sides.get("shortest_edge")
    if not shortest or sides.get("longest_edge"):
        raise ValueError(f"size ({sides}) must be a height and a width, or a shortest_edge.")
    longest = int(shortest * max(height, width) / min(height, width))
    return (longest, shortest) if width <= height else (shortest, longest)


def _mode(resample: int | None) -> str:
    number = int(PILImageResampling.BICUBIC if resample is None else resample)
    if number not in MODES:
        raise ValueError(
            f"resample ({number}) must be one of {', '.join(map(str, MODES))}: nearest, bilinear "
            "or bicubic."
        )
    return MODES[number]


def _check_depth(image: Any) -> None:
    """Check that a Pillow image has all bits of its file, as far as that is known.

    Raises:
        ValueError: If Pillow would cut the values of the file to eight bits.
    """
    if image.mode.startswith(("I", "F")):
        return
    for tile in getattr(image, "tile", None) or ():
        arguments = tile[-1] if isinstance(tile[-1], tuple) else (tile[-1],)
        is_deep = any(isinstance(a, str) and DEEP_RAW_MODE.fullmatch(a) for a in arguments)
        is_deep = (
            is_deep or tile[0] == "SGI16" or (tile[0].startswith("ppm") and arguments[-1] > 255)
        )
        if is_deep:
            raise ValueError(
                "images must keep the values that pixel_range declares, but Pillow cuts this one "
                f"({image.format}, {image.mode}) to eight bits; give an array, or use "
                "selfvit.Embedder."
            )
    if image.format is None:
        logger.warning_once(
            "pixel_range is set, but an image has eight bits per channel. If its file has more, as "
            "files that a pipeline of transformers has opened may, they are lost: give arrays, or "
            "use selfvit.Embedder or `selfvit embed`."
        )


def _channel_axis(shape: tuple[int, ...], num_channels: int, data_format: Any) -> int:
    """Return the axis of the channels, -1 or 0.

    Raises:
        ValueError: If the image has another number of channels.
    """
    if data_format is not None:
        axes = [0 if "first" in str(getattr(data_format, "value", data_format)) else -1]
    else:
        axes = [-1, 0]
    accepted = [num_channels, {1: 3, 3: 1}.get(num_channels, num_channels)]
    for count in accepted:
        for axis in axes:
            if len(shape) == 3 and shape[axis] == count:
                return axis
    raise ValueError(
        f"images must have {num_channels} channel{'s' * (num_channels != 1)} (num_channels), but "
        f"one has the shape {tuple(shape)}."
    )


def _scaled(array: Any, pixel_range: tuple[float, float] | None) -> Any:
    """Return an array as float32 on the scale of eight bits."""
    if array.dtype.kind == "b":
        return array.astype("float32") * WHITE
    if array.dtype.name == "uint8":
        return array.astype("float32")
    type_range = range_of_type(array.dtype.kind, 8 * array.dtype.itemsize)
    exact = array.dtype.itemsize <= 2 or array.dtype.name == "float32"
    values = array.astype("float32" if exact else "float64")
    used = type_range if pixel_range is None else pixel_range
    values[values != values] = used[0]  # NaN
    return to_eight_bit_scale(values, used).astype("float32")


def _with_channels(image: Tensor, num_channels: int) -> Tensor:
    """Return (B, H, W) as (C, H, W): gray is repeated for RGB, and RGB is turned gray."""
    if image.shape[0] == num_channels:
        return image
    if num_channels == 3:
        return image.expand(3, -1, -1)
    return torch.tensordot(torch.tensor(GRAY_WEIGHTS), image, dims=([0], [0]))[None]


__all__ = [
    "SelfViTImageProcessor",
    "center_crop",
    "is_extreme",
    "resize_and_crop",
    "resized_size",
]
