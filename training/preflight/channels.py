"""Preflight of images that are not RGB: their channels, and the mean and std of these."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ...data.dataset_source import StreamingImageSource
from ...data.decoding import UnreadableImageError, decode_pixels
from ...data.image_source import ImageSource
from ...embedding.statistics import MAX_STATISTICS_IMAGES, channel_statistics, sample_images
from ...sharing.published_files import RUN_FILE
from ..config.run_config import STATISTICS, RunConfig

NUM_TRIED = 16  # images that are tried before the channels are refused


def with_statistics(
    run: RunConfig, source: ImageSource | StreamingImageSource, accelerator: Accelerator
) -> RunConfig:
    """Return the run with the mean and std of its channels, measured on the data if not given.

    A fixed sample of at most 1,000 images is measured, of a stream its first ones. All processes
    measure the same images, and all use the numbers of the main process. A resumed run uses those
    of its training.yaml. Collective.

    Args:
        run: Configuration of the run. Empty lists are measured.
        source: Training images.
        accelerator: Accelerator of the run.

    Raises:
        ValueError: If no image has the channels of the model, or a channel is constant.
    """
    missing = [name for name in STATISTICS if not getattr(run.preprocessing, name)]
    if not missing:
        return run
    stored = _stored(run, missing)
    if stored is not None:
        return stored
    sample = sample_images(source, MAX_STATISTICS_IMAGES)
    measured = channel_statistics(sample, run.pixel_format)
    values = [{"image_mean": measured.mean, "image_std": measured.std}]
    broadcast_object_list(values)
    run = run.replace(**{name: values[0][name] for name in missing})
    accelerator.print(
        f"mean and std of {run.model.num_channels} channels, measured on {measured.num_images} "
        f"images: {measured.options()}"
    )
    if measured.skipped:
        first = measured.skipped[0]
        accelerator.print(
            f"warning: {len(measured.skipped)} of these images cannot be read, for example "
            f"{first.id}: {first.reason}"
        )
    return run


def check_channels(run: RunConfig, source: ImageSource | StreamingImageSource) -> None:
    """Check that there are images with the channels of the model, unless these are the usual three.

    Raises:
        ValueError: If none of the first images tried has these channels.
    """
    num_channels = run.model.num_channels
    if num_channels == 3:
        return
    sample, reason = sample_images(source, NUM_TRIED), ""
    for position in range(len(sample)):
        record = sample[position]
        try:
            decode_pixels(record.image, run.pixel_format, (1, 1))
            return
        except UnreadableImageError as error:
            reason = f"{record.id} {error}"
    raise ValueError(
        f"num_channels ({num_channels}) does not fit the images of {source.description}: none of "
        f"{len(sample)} tried can be read with {num_channels} channels; the last one: {reason}. "
        "Give the number of channels of the files."
    )


def _stored(run: RunConfig, names: list[str]) -> RunConfig | None:
    path = Path(run.start.output) / RUN_FILE
    if not (run.start.resume and path.is_file()):
        return None
    stored = RunConfig.from_yaml(path.read_text(encoding="utf-8"))
    values = {name: getattr(stored.preprocessing, name) for name in names}
    if any(len(value) != run.model.num_channels for value in values.values()):
        return None  # `check_run_folder` will refuse it
    return run.replace(**values)


__all__ = ["check_channels", "with_statistics"]
