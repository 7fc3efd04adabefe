"""Embed images: decode and preprocess them in workers, and run the model in batches."""

# B batch · N images · E embedding

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, BaseImageProcessor

from ..data.dataset_source import AnySource, StreamingImageSource
from ..data.decoding import AnyImage, UnreadableImageError
from ..data.inventory import SkippedImage
from ..data.pixel_format import Findings, PixelCheck
from ..data.reading import Batches, unreadable_reason
from ..data.reading_ahead import decode_in_threads
from ..data.sources import Data, as_source
from ..modeling.checkpoints.loading import DTYPES, load_strictly
from ..modeling.checkpoints.resolve import resolve_checkpoint
from ..modeling.modeling_selfvit import SelfViTModel
from ..progress import progress_bar
from .engines.choice import CHECKED_IMAGES, Request, build, choose
from .engines.int8 import BATCH_SIZE, NUM_IMAGES, calibrate
from .engines.interface import AUTO, Engine, Selection
from .engines.quantization import Quantization
from .engines.torch import CastEngine, TorchEngine
from .preparation import CroppedFrames, Preparation, num_decoding_threads
from .preprocessing import pixel_format_of
from .statistics import sample_images

logger = logging.getLogger(__name__)

TOKENS = ("pooled", "patches")


@dataclass(frozen=True)
class EmbeddedBatch:
    """Result of one batch.

    Args:
        ids: Names of the images that can be read, at most B.
        labels: Labels of the same images; None for an image without a label.
        vectors: Vectors of the same images, (len(ids), E), float32.
        checksums: BLAKE2b hashes of the contents of the same images, 16 hexadecimal digits; None
            for an image that is no file.
        skipped: Images that cannot be read.
        positions: Positions in the source of all images of the batch; see `num_positions`.
        seconds: Times of the same images in their videos; None for an image that is no frame.
        patches: Patch tokens of the same images, (len(ids), rows, columns, D), float16; None unless
            the embedder computes them.
    """

    ids: list[str]
    labels: list[int | None]
    vectors: np.ndarray
    checksums: list[str | None]
    skipped: list[SkippedImage]
    positions: range
    seconds: list[float | None]
    patches: np.ndarray | None = None

    @property
    def num_images(self) -> int:
        """Number of images, skipped ones too."""
        return len(self.ids) + len(self.skipped)


@dataclass
class EmbeddedImages:
    """Vectors of all images of a source, in the order of the source.

    Args:
        vectors: Vectors of the N images that can be read, (N, E), float32.
        ids: Names of the same images.
        labels: Labels, (N,), int64, -1 for an image without a label; None if the source is
            unlabeled.
        label_names: Names of the classes, or None.
        skipped: Images that cannot be read.
        seconds: Times of the same images in their videos, (N,), float64; None if the source has no
            videos.
    """

    vectors: np.ndarray
    ids: list[str]
    labels: np.ndarray | None
    label_names: list[str] | None
    skipped: list[SkippedImage]
    seconds: np.ndarray | None = None


class Embedder:
    """Compute vectors of images with a model and its image processor.

    The vectors of open images equal those of `pipeline("image-feature-extraction", ...)(image,
    pool=True)`. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that leaves twice the
    size that is needed, which changes vectors a little (cosine above 0.999 on photographs). The
    model may be in training: the mode of every module and the global random state do not change.

    Args:
        model: Encoder; it is moved if `device` or `dtype` is given.
        processor: Image processor.
        normalize: Whether to scale the vectors to length 1.
        batch_size: Number of images per batch.
        num_workers: Number of processes that decode and preprocess images; 0 uses threads of the
            current process.
        device: Device to compute on; None for the current device of the model.
        dtype: Precision to compute in; "auto" for bfloat16 where the device has instructions for it
            and the vectors stay faithful; "int8" for linear layers in 8 bits, which are calibrated
            on the first source that is embedded; None for the current one of the model. The vectors
            are always float32.
        pixel_range: Values of black and white in files of more than eight bits, as in
            `PixelFormat`; None for the range of the processor, if it has one.
        tokens: "pooled" for the vectors alone, "patches" for the patch tokens in addition, which
            `stream` returns.
        engine: Library that computes: "torch" runs the model itself, except in bfloat16 on a CPU,
            where a copy with packed weights is faster; "openvino" and "onnxruntime" convert the
            encoder in memory; "auto" takes the fastest that is installed, if the run is long enough
            to repay the conversion. Whatever "auto" takes must have a cosine of at least 0.999 to
            the vectors of torch in float32 on the first images, and does not change later. None for
            "torch", or for "openvino" in int8.
        quantization: Rounding in int8, as another embedder calibrated it; None to calibrate it.

    Raises:
        ImportError: If a package of the engine is not installed.
        ValueError: If `tokens`, `batch_size`, `num_workers` or `engine` has no valid value, or the
            engine does not have the device or the precision.

    Example:
        >>> embedder = Embedder.from_pretrained("OUT")
        >>> vectors = embedder(["cat.jpg", "dog.jpg"])  # (2, E)
    """

    def __init__(
        self,
        model: SelfViTModel,
        processor: BaseImageProcessor,
        *,
        normalize: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | Literal["auto", "int8"] | None = None,
        pixel_range: tuple[float, float] | None = None,
        tokens: str = "pooled",
        engine: str | None = None,
        quantization: Quantization | None = None,
    ):
        if tokens not in TOKENS:
            raise ValueError(f"tokens ({tokens!r}) must be one of {', '.join(TOKENS)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers ({num_workers}) must be 0 or more.")
        self.request = Request.create(engine, dtype, quantization)
        # other engines convert the weights as they are, and have the precision themselves
        is_own = self.request.engine == "torch" and dtype not in (AUTO, "int8", torch.int8)
        own = dtype if is_own else None
        self.model = model if device is None and own is None else model.to(device, own)  # type: ignore[arg-type]
        self.processor = processor
        self.normalize = normalize
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pixel_format = pixel_format_of(processor, pixel_range)
        self.tokens = tokens
        self.request.check(self.model, tokens)
        self._engine: Engine | None = None
        self._pixel_check = PixelCheck()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        network: str = "teacher",
        pooling: str | None = None,
        normalize: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | None = None,
        dtype: str = "float32",
        pixel_range: tuple[float, float] | None = None,
        tokens: str = "pooled",
        engine: str | None = None,
    ) -> Embedder:
        """Load the encoder and the image processor of any selfvit checkpoint.

        Args:
            checkpoint: Checkpoint folder, Hub id, or USER/NAME@REVISION; or weights that
                `selfvit convert` knows, which are converted first.
            network: "teacher" or "student", as in `SelfViTModel.from_pretrained`.
            pooling: Pooling of the vectors, as in `SelfViTConfig`; None for the one stored in the
                checkpoint.
            normalize: Whether to scale the vectors to length 1.
            batch_size: Number of images per batch.
            num_workers: Number of processes that decode and preprocess images; 0 uses threads of
                the current process.
            device: Device to compute on; None for CUDA, else MPS, else CPU, whichever is available
                first, and for the CPU in int8.
            dtype: Precision to compute in: "float32", "bfloat16", "float16", or "auto" and "int8"
                as in `Embedder`.
            pixel_range: Values of black and white in files of more than eight bits, as in
                `PixelFormat`; None for the range stored in the checkpoint, if there is one.
            tokens: "pooled" or "patches", as in `Embedder`.
            engine: "torch", "openvino", "onnxruntime", "auto" or None, as in `Embedder`.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ImportError: If a package of the engine is not installed.
            ValueError: If the weights do not match the model, or an argument has no valid value.
        """
        if dtype not in (names := (*DTYPES, "int8", AUTO)):
            raise ValueError(f"dtype ({dtype!r}) must be one of {', '.join(names)}.")
        precision: Any = DTYPES.get(dtype, dtype)
        is_own = engine in (None, "torch") and dtype in DTYPES
        loaded = precision if is_own else torch.float32
        device = best_device("cpu" if device is None and dtype == "int8" else device)
        checkpoint = resolve_checkpoint(checkpoint)
        overrides: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
        model = load_strictly(SelfViTModel, checkpoint, network=network, dtype=loaded, **overrides)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        return cls(
            model,
            processor,
            normalize=normalize,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            dtype=None if loaded == precision else precision,
            pixel_range=pixel_range,
            tokens=tokens,
            engine=engine,
        )

    @property
    def preparation(self) -> Preparation:
        """Decoding and preprocessing, without the model."""
        return Preparation(self.processor, self.pixel_format)

    @property
    def embedding_size(self) -> int:
        """Number of values per vector (E)."""
        return self.model.config.embedding_size

    @property
    def selection(self) -> Selection:
        """Engine and precision of the vectors.

        Raises:
            ValueError: If they are left to choose, and no image has been seen yet.
        """
        if not self.request.is_open:
            return self.request.fixed(self.model)
        if self._engine is None:
            raise ValueError(
                "engine or dtype is 'auto' or 'int8' and not chosen yet; call choose_engine with "
                "the images."
            )
        return self._engine.selection

    def choose_engine(
        self,
        source: AnySource,
        earlier: Mapping[str, Any] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        """Choose engine and precision, where they are "auto", for the images of a source.

        In int8, the rounding is calibrated on a sample of them. Without effect if all that is done.

        Args:
            source: Images to embed; the first ones are read where a choice must be checked.
            earlier: Fingerprint of vectors that the new ones must equal, see `use_engine_of`; None
                to choose.
            progress: Whether to show a progress bar of the calibration.

        Raises:
            ImportError: If a package of the earlier engine is not installed.
            ValueError: If vectors in int8 are not faithful on these images, or there are too few.
        """
        if self._engine is not None or not self.request.is_open:
            return
        if earlier is not None:
            self.use_engine_of(earlier)
            return
        if self.request.needs_calibration:
            self._calibrate(source, progress)
            return
        candidates = self.request.candidates(self.model, source.num_images, self.tokens)
        pixel_values = self._first_images(source) if len(candidates) > 1 else None
        self._choose(candidates, pixel_values)

    def use_engine_of(self, earlier: Mapping[str, Any]) -> None:
        """Take engine, precision and rounding of earlier vectors, where they are left to choose.

        Args:
            earlier: Fingerprint of vectors that the new ones must equal.

        Raises:
            ImportError: If a package of the earlier engine is not installed.
            ValueError: If int8 is asked for, and the vectors have another precision.
        """
        if self.request.is_open:
            self.request = self.request.like(earlier)
            self.request.check(self.model, self.tokens)

    def _calibrate(self, source: AnySource, progress: bool) -> None:
        """Calibrate the rounding on a sample of the images of a source."""
        pixels = [
            self.preparation.normalize(batch, self.model.device)
            for batch in self._sample_pixels(source)
        ]
        pixel_values = torch.cat(pixels) if pixels else torch.empty(0)
        with (
            progress_bar(description="calibrating", disable=not progress) as bar,
            torch.inference_mode(),
            eval_mode(self.model),
        ):
            engine = calibrate(self.model, pixel_values, bar.update)
        self._engine = engine
        self.request = replace(self.request, quantization=engine.selection.quantization)

    def _sample_pixels(self, source: AnySource) -> Iterator[Tensor]:
        """Yield batches of cropped pixels, (B, C, H, W), of a sample of the images of a source."""
        preparation = self.preparation
        if isinstance(source, StreamingImageSource) and source.is_video:
            frames = sample_images(CroppedFrames(source, preparation), NUM_IMAGES)
            for positions in Batches([range(len(frames))], BATCH_SIZE):
                crops: list[Any] = [frames[position].image for position in positions]
                yield preparation.stack_pixels(crops)
            return
        sample = sample_images(source, NUM_IMAGES)
        batches = preparation.read(sample, [range(len(sample))], BATCH_SIZE, self.num_workers)
        with closing(batches):
            yield from (batch.pixels[0] for _, batch in batches if batch.pixels is not None)

    def _choose(self, candidates: list[Selection], pixel_values: Tensor | None) -> Engine:
        with torch.inference_mode(), eval_mode(self.model):
            self._engine = choose(candidates, self.model, pixel_values, self.tokens)
        return self._engine

    def _first_images(self, source: AnySource) -> Tensor | None:
        """Return the pixels of the first images that can be read; None if there are none."""
        size = min(self.batch_size, CHECKED_IMAGES)
        num_workers = min(self.num_workers, 1)  # an image that ends a worker does not end this one
        ranges = [range(source.num_positions)]
        preparation = self.preparation
        with closing(preparation.read(source, ranges, size, num_workers)) as batches:
            for _, batch in batches:
                if batch.pixels is not None:
                    return preparation.normalize(batch.pixels[0], self.model.device)
        return None

    def _current_engine(self, pixel_values: Tensor, num_images: int) -> Engine:
        """Return the engine, which is chosen at the first call, and built again for new weights."""
        if self.request.needs_calibration:
            raise ValueError(
                "dtype int8 must be calibrated on images before it embeds any; call "
                "choose_engine(open_images(FOLDER)) first."
            )
        if self._engine is None and self.request.is_open:
            candidates = self.request.candidates(self.model, num_images, self.tokens)
            return self._choose(candidates, pixel_values)
        if self._engine is None or not self._engine.is_current(self.model):
            if self._engine is not None and self.request.quantization is not None:
                raise ValueError(
                    "the weights have changed since dtype int8 was calibrated; create a new "
                    "Embedder."
                )
            with eval_mode(self.model):
                self._engine = build(self.selection, self.model, self.tokens)
        return self._engine

    @property
    def patch_grid(self) -> tuple[int, int, int] | None:
        """Shape of an image's patch tokens, (rows, columns, D); None if they are not computed."""
        if self.tokens == "pooled":
            return None
        config = self.model.config
        black = np.zeros((64, 64, config.num_channels), dtype=np.uint8)
        pixels, _ = self.preparation.crop(black)
        rows, columns = (size // config.patch_size for size in pixels.shape[-2:])
        return rows, columns, config.hidden_size

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> np.ndarray:
        """Embed one or more images.

        Args:
            images: One image or a sequence of images, each a path, the content of an image file, a
                PIL image, or an array (H, W), (H, W, C) or (C, H, W).

        Returns:
            Vectors, (N, E), float32; for a single image, (E,).

        Raises:
            UnreadableImageError: If an image cannot be read; the message names the image.
        """
        if isinstance(images, (bytes, str, Path, Image.Image, np.ndarray)):
            return self([images])[0]
        if isinstance(images, Tensor):
            raise TypeError(
                "images must be files, PIL images or arrays (H, W, C), not a tensor; embed_pixels "
                "takes tensors that are normalized already."
            )
        images = list(images)
        vectors = [np.empty((0, self.embedding_size), dtype=np.float32)]
        for start in range(0, len(images), self.batch_size):
            batch = list(enumerate(images[start : start + self.batch_size], start))
            pixel_values = self._prepare(batch)
            self._current_engine(pixel_values, len(images))
            vectors.append(self.embed_pixels(pixel_values))
        self._warn_of_findings()
        return np.concatenate(vectors)

    def _prepare(self, images: list[tuple[int, AnyImage]]) -> Tensor:
        """Return the normalized pixels (B, C, H, W) of images with their positions."""
        preparation = self.preparation

        def crop(numbered: tuple[int, AnyImage]) -> tuple[str, Tensor, Findings | None]:
            position, image = numbered
            name = repr(str(image)) if isinstance(image, (str, Path)) else f"image {position}"
            if isinstance(image, (str, Path)) and os.path.isdir(image):
                raise UnreadableImageError(
                    f"{name} is a folder; embedder.embed({name}) embeds the images in it"
                )
            try:
                return name, *preparation.crop(image)
            except Exception as error:
                reason = unreadable_reason(error)
                if reason is None:
                    raise
                raise UnreadableImageError(f"{name} cannot be read: {reason}") from error

        opened = [id(image) for _, image in images if isinstance(image, Image.Image)]
        # two threads may not load the same open image
        num_threads = num_decoding_threads() if len(set(opened)) == len(opened) else 1
        pixels = []
        for name, cropped, findings in decode_in_threads(images, crop, num_threads):
            pixels.append(cropped)
            self._pixel_check.add(name, findings)
        return preparation.normalize(preparation.stack_pixels(pixels), self.model.device)

    def _warn_of_findings(self) -> None:
        for warning in self._pixel_check.warnings_once():
            logger.warning(warning)

    def embed(self, source: AnySource | Data, *, progress: bool = False) -> EmbeddedImages:
        """Embed all images of a source and return all vectors in memory.

        Args:
            source: Images to embed: a source, or paths as in `open_images`.
            progress: Whether to show a progress bar.
        """
        source = as_source(source)
        batches = list(self.stream(source, progress=progress))
        vectors = [batch.vectors for batch in batches if len(batch.ids)]
        labels = [label for batch in batches for label in batch.labels]
        return EmbeddedImages(
            vectors=np.concatenate([np.empty((0, self.embedding_size), np.float32), *vectors]),
            ids=[id for batch in batches for id in batch.ids],
            labels=None
            if source.label_names is None
            else np.array([-1 if label is None else label for label in labels], dtype=np.int64),
            label_names=source.label_names,
            skipped=[skipped for batch in batches for skipped in batch.skipped],
            seconds=np.array([time for batch in batches for time in batch.seconds], np.float64)
            if source.is_video
            else None,
        )

    def stream(
        self,
        source: AnySource | Data,
        *,
        ranges: Sequence[range] | None = None,
        progress: bool = False,
    ) -> Generator[EmbeddedBatch, None, None]:
        """Embed a source batch by batch.

        Args:
            source: Images to embed: a source, or paths as in `open_images`.
            ranges: Positions to embed; no batch continues from one range into the next. All
                positions of the source by default.
            progress: Whether to show a progress bar with images per second and the number of
                skipped images.

        Yields:
            Results of the batches; a batch without readable images has no vectors.

        Raises:
            LostWorkersError: If too many workers in a row were killed.
            ValueError: If vectors are not finite.
        """
        source = as_source(source)
        self.choose_engine(source, progress=progress)
        ranges = [range(source.num_positions)] if ranges is None else ranges
        total = source.num_images
        done = 0 if total is None else total - sum(len(positions) for positions in ranges)
        num_skipped = 0
        with (
            closing(self._embedded(source, ranges)) as batches,
            progress_bar(
                total=total, initial=done, description="embedding", disable=not progress
            ) as bar,
        ):
            for batch, found in batches:
                for name, values in zip(batch.ids, found, strict=True):
                    self._pixel_check.add(name, values)
                num_skipped += len(batch.skipped)
                bar.set_postfix(skipped=num_skipped, refresh=False)
                bar.update(batch.num_images)
                yield batch
        self._warn_of_findings()

    def _embedded(
        self, source: AnySource, ranges: Sequence[range]
    ) -> Generator[tuple[EmbeddedBatch, list[Findings | None]], None, None]:
        """Yield the results of batches, and the findings in the images that can be read."""
        preparation = self.preparation
        read = preparation.read(source, ranges, self.batch_size, self.num_workers)
        with closing(read) as batches:
            for positions, batch in batches:
                vectors = np.empty((0, self.embedding_size), dtype=np.float32)
                found: list[Findings | None] = []
                checksums: list[str | None] = []
                patches = None
                if batch.pixels is not None:
                    pixels, found, checksums = batch.pixels
                    pixel_values = preparation.normalize(pixels, self.model.device)
                    vectors, patches = self.embed_tokens(pixel_values)
                yield (
                    EmbeddedBatch(
                        batch.ids,
                        batch.labels,
                        vectors,
                        checksums,
                        batch.skipped,
                        positions,
                        batch.seconds,
                        patches,
                    ),
                    found,
                )

    def embed_pixels(self, pixel_values: Tensor) -> np.ndarray:
        """Embed preprocessed images.

        Args:
            pixel_values: Normalized pixels, (B, C, H, W).

        Returns:
            Vectors, (B, E), float32.

        Raises:
            ValueError: If vectors are not finite.
        """
        return self.embed_tokens(pixel_values)[0]

    def embed_tokens(self, pixel_values: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Embed preprocessed images, with their patch tokens if `tokens` asks for them.

        Args:
            pixel_values: Normalized pixels, (B, C, H, W).

        Returns:
            Vectors, (B, E), float32, and patch tokens of the last block after the final LayerNorm,
            (B, rows, columns, D), float16, or None.

        Raises:
            ValueError: If vectors are not finite.
        """
        patches = None
        engine = self._current_engine(pixel_values, len(pixel_values))
        with torch.inference_mode(), eval_mode(self.model):
            if self.tokens == "pooled":
                vectors = engine(pixel_values)  # (B, E)
            else:
                assert isinstance(engine, (TorchEngine, CastEngine))
                output = engine.model(pixel_values.to(self.model.device, non_blocking=True))
                vectors = output.pooler_output.float()
                config = self.model.config
                grid = [size // config.patch_size for size in pixel_values.shape[-2:]]
                tokens = output.last_hidden_state[:, config.num_prefix_tokens :]
                patches = tokens.unflatten(1, grid).half().cpu().numpy()
            if not vectors.isfinite().all():
                raise ValueError(
                    "vectors must be finite, but the model computes NaN or infinity in "
                    f"{engine.selection.dtype}; use dtype float32. If the vectors are still not "
                    "finite, the weights are damaged."
                )
            if self.normalize:
                vectors = nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy(), patches


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore the mode of each module afterwards.

    The modes can differ: a frozen part of a model in training may already be in evaluation mode.

    Args:
        model: Model to evaluate.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def best_device(device: str | None = None) -> str:
    """Return the device to compute on.

    Args:
        device: Device to check, for example "cuda:1"; None for the best available.

    Raises:
        ValueError: If the device cannot be used.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device ({device!r}) cannot be used: {reason}; choose another one, for example cpu."
        ) from error
    return device


__all__ = [
    "EmbeddedBatch",
    "EmbeddedImages",
    "Embedder",
    "SkippedImage",
    "best_device",
    "eval_mode",
]
