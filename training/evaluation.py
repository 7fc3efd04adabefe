"""Evaluate the encoder during training, with the metrics of `selfvit evaluate` and further ones.

The further metrics need no labels: view retrieval (whether one view of an image finds the other),
uniformity (how evenly the vectors fill the sphere), and the nearest neighbors of each image.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.image_source import NO_LABEL
from ..data.pixel_format import PixelFormat
from ..data.workers import initialize_worker
from ..embedding.embedder import EmbeddedImages, Embedder, eval_mode
from ..evaluation.bootstrap import MetricSample
from ..evaluation.comparison import Measurement
from ..evaluation.evaluate import (
    MAX_RANKME_IMAGES,
    accuracy_hits,
    label_free_measures,
    matched_labels,
    spread,
)
from ..evaluation.label_free import (
    nearest_neighbors,
    rankme_influences,
    uniformity,
    uniformity_influences,
    view_retrieval,
)
from ..evaluation.raw_pixels import RawPixelEmbedder
from .augmentations.multi_crop import MultiCrop
from .config.run_config import RunConfig
from .dataloader.collate import collate, normalize
from .dataloader.views import ViewDataset
from .evaluation_images import EvaluationImages

logger = logging.getLogger(__name__)

# N images · E embedding

# Two crops with flips and color jitter, the same for every recipe, so that runs and objectives can
# be compared. They are milder than DINO's global views, whose blur depends on the image size.
VIEWS = MultiCrop(
    num_local_views=0,
    global_crop_scale=[0.5, 1.0],
    blur_probability=[0.0, 0.0, 0.0],
    solarize_probability=[0.0, 0.0, 0.0],
)
# Images with two views each; their 95 % interval reaches at most 3 points to either side.
MAX_VIEW_IMAGES = 1000
MAX_PAIR_IMAGES = 2000  # images for uniformity and neighbors, which compare all pairs
NUM_NEIGHBORS = 10
NUM_WARM_UP, NUM_TIMED = 4, 8  # images whose measurement is timed


@dataclass(frozen=True)
class InitialEncoder:
    """Copy of the encoder that a run starts from, which `Evaluation` measures like a model.

    Args:
        vit: The encoder.
    """

    vit: nn.Module


def copy_for_evaluation(model: Any) -> Any:
    """Return a copy of what `Evaluation` measures of a model, on the CPU.

    Heads and student are not copied, except a classifier, whose accuracy is measured.
    """
    if hasattr(model, "classify"):
        return copy.deepcopy(model).cpu()
    return InitialEncoder(copy.deepcopy(model.vit).cpu())


def with_known_classes(test: EmbeddedImages, train: EmbeddedImages) -> EmbeddedImages:
    """Return test images without the labels of classes that only unreadable images of train have.

    Args:
        test: Test images.
        train: Images to learn from, with the same classes.
    """
    if not train.skipped or test.labels is None or test.label_names != train.label_names:
        return test
    is_known = np.isin(test.labels, train.labels if train.labels is not None else [])
    return replace(test, labels=np.where(is_known, test.labels, NO_LABEL))


class Evaluation:
    """Measures a model's embeddings, without changing the model or the random states.

    Args:
        model: Model in training, or `copy_for_evaluation` of it; its `vit` is measured.
        processor: Image processor that is saved with the model.
        run: Configuration of the run.
        images: Images from `open_evaluation_images`, or None to measure nothing.
        device: Device to measure on; by default the model's own.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        run: RunConfig,
        images: EvaluationImages | None,
        device: torch.device | None = None,
    ):
        self.model = model
        self.device = device
        self.run = run
        self.images = images
        self.processor = processor
        self.embedder = self._embedder(Embedder)
        self._latest: tuple[int, Measurement] | None = None
        self._warned: set[str] = set()  # shared with the evaluations that `of` returns

    def _embedder(self, kind: type[Embedder]) -> Embedder:
        return kind(
            self.model.vit,
            self.processor,
            batch_size=min(256, self.run.schedule.batch_size),
            num_workers=self.run.data.num_workers,
        )

    def of(self, model: Any, images: EvaluationImages | None) -> Evaluation:
        """Return the evaluation of another model or on other images, with the same settings."""
        other = Evaluation(model, self.processor, self.run, images, self.device)
        other._warned = self._warned
        return other

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    @property
    def data(self) -> str:
        """Identifier of images and preprocessing; measurements can be compared if it is equal."""
        if self.images is None:
            return ""
        run, config = self.run, self.run.model
        values = (
            *(source.fingerprint for source in self.images.sources),
            *(config.image_height_width, config.pooling),
            *(run.preprocessing.resize, run.preprocessing.image_mean, run.preprocessing.image_std),
            *(VIEWS, MAX_VIEW_IMAGES, MAX_PAIR_IMAGES, NUM_NEIGHBORS),
            # nothing for ordinary images, whose identifier is the one of earlier versions
            *([] if run.pixel_format == PixelFormat() else [run.pixel_format]),
        )
        return " ".join(map(str, values))

    def __call__(self, step: int) -> dict[str, float]:
        """Return the metrics after `step` optimizer steps; empty without images."""
        return {} if self.images is None else dict(self.measure(step).metrics)

    def measure(self, step: int) -> Measurement:
        """Measure the model after `step` optimizer steps; a repeated call returns the same."""
        if self._latest is None or self._latest[0] != step:
            # student and heads are not needed for measuring, so they stay where they are
            measured = self.model if hasattr(self.model, "classify") else self.model.vit
            with on_device(measured, self.device):
                self._latest = (step, self._measure())
        return self._latest[1]

    def _measure(self) -> Measurement:
        assert self.images is not None
        train = self.embedder.embed(self.images.images)
        vectors = train.vectors
        samples: dict[str, MetricSample] = {}
        metrics = label_free_measures(vectors)
        if self.images.test is not None:
            is_same = self.images.test is self.images.images
            test = train if is_same else self.embedder.embed(self.images.test)
            test = with_known_classes(test, train)
            hits = accuracy_hits(train, test, warn=self._warn_once) | self._classifier_hits(test)
            samples |= {name: MetricSample.mean_of(hit) for name, hit in hits.items()}
            metrics |= {"num_train": len(vectors), "num_test": len(test.vectors)}
        views = self._embed_views(self.embedder)
        samples["view_retrieval"] = MetricSample.mean_of(view_retrieval(*views))
        ranked = vectors[spread(len(vectors), MAX_RANKME_IMAGES)]
        samples["rankme"] = MetricSample(metrics["rankme"], rankme_influences(ranked))
        paired = vectors[spread(len(vectors), MAX_PAIR_IMAGES)]
        samples["uniformity"] = MetricSample(uniformity(paired), uniformity_influences(paired))
        return Measurement(
            samples=samples,
            neighbors=nearest_neighbors(paired, min(NUM_NEIGHBORS, len(paired) - 1)),
            data=self.data,
            metrics={name: sample.value for name, sample in samples.items()} | metrics,
        )

    def measure_raw_pixels(self) -> dict[str, MetricSample]:
        """Return k-NN and view retrieval of raw pixels, of the same images; without labels, one."""
        assert self.images is not None
        embedder = self._embedder(RawPixelEmbedder)
        samples: dict[str, MetricSample] = {}
        if self.images.test is not None:
            train, test = map(embedder.embed, self.images.sources)
            test = with_known_classes(test, train)
            hits = accuracy_hits(train, test, with_linear_probe=False, warn=self._warn_once)
            samples |= {name: MetricSample.mean_of(hit) for name, hit in hits.items()}
        views = self._embed_views(embedder)
        samples["view_retrieval"] = MetricSample.mean_of(view_retrieval(*views))
        return samples

    def seconds_per_image(self) -> float:
        """Return the time to measure an image with the model, from a few images.

        No worker processes are used, so that the time of their start does not count. The first
        images only warm up.
        """
        assert self.images is not None
        seconds = 0.0
        for count in (NUM_WARM_UP, NUM_TIMED):
            source = self.images.sources[-1].sample(count)
            trial = replace(self.images, images=source, test=None)
            timed = self.of(self.model, trial)
            timed.embedder.num_workers = 0
            with on_device(self.model.vit, self.device):
                started = time.perf_counter()
                timed.embedder.embed(source)
                timed._embed_views(timed.embedder)
                seconds = (time.perf_counter() - started) / len(source)
        return seconds

    def _classifier_hits(self, embedded: EmbeddedImages) -> dict[str, np.ndarray]:
        """Return whether the model's own classifier is right, per labeled image, as "accuracy".

        Empty if the model is no classifier or the images have no labels.
        """
        classify = getattr(self.model, "classify", None)
        if classify is None or embedded.labels is None:
            return {}
        is_labeled = embedded.labels != NO_LABEL
        names = list((self.model.config.id2label or {}).values())
        labels = matched_labels(
            embedded.labels[is_labeled], embedded.label_names, np.arange(len(names)), names
        )
        # in training mode, a batch norm would use the test images' statistics and keep them
        with torch.inference_mode(), eval_mode(self.model):
            vectors = torch.from_numpy(embedded.vectors[is_labeled]).to(self.model.device)
            predictions = classify(vectors).argmax(dim=-1).cpu().numpy()
        return {"accuracy": predictions == labels}

    def _embed_views(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of two views of each image, (N, E) each; of test images, if any."""
        assert self.images is not None
        source = self.images.sources[-1].sample(MAX_VIEW_IMAGES)
        run, config = self.run, self.run.model
        views = ViewDataset(
            source,
            VIEWS.for_num_channels(config.num_channels),
            config.image_height_width,
            config.patch_size,
            seed=0,
            with_labels=False,
            pixel_format=run.pixel_format,
        )
        loader = DataLoader(
            views,
            sampler=[(position, position) for position in range(len(source))],  # type: ignore[arg-type]
            batch_size=embedder.batch_size,
            num_workers=embedder.num_workers,
            collate_fn=_collate_readable,
            worker_init_fn=initialize_worker,
            generator=torch.Generator(),  # keeps the DataLoader from advancing the global state
        )
        statistics = run.preprocessing
        vectors = [
            embedder.embed_pixels(normalize(view, statistics.image_mean, statistics.image_std))
            for pair in loader
            if pair is not None
            for view in pair
        ]
        none = np.empty((0, embedder.embedding_size), dtype=np.float32)
        return np.concatenate([none, *vectors[0::2]]), np.concatenate([none, *vectors[1::2]])


@contextmanager
def on_device(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Move a model to a device, and back at the end; a gathered copy is on the CPU otherwise.

    Args:
        model: Model to move.
        device: Device to move it to; None leaves it where it is.
    """
    home = next(model.parameters()).device
    try:
        model.to(device or home)
        yield
    finally:
        model.to(home)


def _collate_readable(samples: list[dict[str, Any]]) -> torch.Tensor | None:
    """Stack the views, (2, B, C, H, W), without those that replace an unreadable image."""
    readable = [sample for sample in samples if not sample["skipped"]]
    return collate(readable)["global_views"] if readable else None


__all__ = ["Evaluation", "copy_for_evaluation"]
