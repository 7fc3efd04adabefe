"""Evaluate the encoder during training, with the metrics of `selfvit evaluate` and further ones.

The further metrics need no labels: view retrieval (whether one view of an image finds the other),
uniformity (how evenly the vectors fill the sphere), and the nearest neighbors of each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import NO_LABEL, ChosenSource, ImageSource
from ..data.pixel_format import PixelFormat
from ..data.sources import open_images
from ..data.stream_reader import first_images
from ..data.workers import use_one_thread
from ..embedding.embedder import EmbeddedImages, Embedder, eval_mode
from ..evaluation.bootstrap import MetricSample
from ..evaluation.comparison import Measurement
from ..evaluation.evaluate import (
    MAX_RANKME_IMAGES,
    accuracy_hits,
    check_labels,
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
from ..evaluation.linear_probe import hold_out
from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from .augmentations.multi_crop import MultiCrop
from .config.run_config import RunConfig
from .dataloader.collate import collate, normalize
from .dataloader.views import ViewDataset

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
MAX_STREAM_IMAGES = 2000  # first images of a stream, kept in memory without decoding
SEEN_IN_TRAINING = (
    "Measured on images that were trained on; the initial weights may not have seen them. Labels, "
    "where a metric uses them, were not trained on. Choose other images with --eval-train and "
    "--eval-test."
)
TEST_EQUALS_TRAIN = (
    "The accuracies are too high: --eval-test has the images of --eval-train, so each test image "
    "is its own nearest neighbor. Give --eval-test other images."
)


@dataclass(frozen=True)
class EvaluationImages:
    """Images that a run is evaluated on.

    Args:
        images: Images for label-free metrics. k-NN and the linear probe learn from their labels.
        test: Labeled images to test on, separate from `images`; None without labels.
        note: Caveat that is reported with the metrics, or "".
    """

    images: ImageSource
    test: ImageSource | None = None
    note: str = ""

    @property
    def sources(self) -> list[ImageSource]:
        """Image sources to embed."""
        return [self.images] if self.test is None else [self.images, self.test]

    def accuracy_names(self) -> list[str]:
        """Return the names of the accuracies that can be measured, the most informative first.

        k-NN comes before the linear probe because it uses the features without fitting anything.
        """
        if self.test is None or self.test.labels() is None:
            return []
        labels = self.images.labels()
        num_labeled = 0 if labels is None else int((labels != NO_LABEL).sum())
        names = [f"knn_{k}" for k in (20, 10) if k <= num_labeled]
        return [*names, "linear_probe"] if num_labeled else []


def open_evaluation_images(
    run: RunConfig, source: ImageSource | StreamingImageSource
) -> EvaluationImages | None:
    """Return the images that a run is evaluated on, or None if it is not evaluated.

    These are the images of `eval_train` and `eval_test`, or else training images. If the training
    images have labels that the objective does not use, a fifth of each class becomes the test set
    and the rest its training set. The trained weights have seen these images and the initial
    weights perhaps have not, so the comparison slightly favors training; the note says so. A
    classifier was trained on all labels, so it gets no accuracies.

    Args:
        run: Configuration of the run.
        source: Training images. For a stream, its first images in shuffled order are used.

    Raises:
        ImportError: If there are labels and scikit-learn is not installed.
        ValueError: If the test images have a class that the images to learn from lack.
    """
    if run.evaluation.eval_steps is None and not run.compares_with_start:
        return None
    if run.evaluation.eval_train is not None and run.evaluation.eval_test is not None:
        same = run.evaluation.eval_train == run.evaluation.eval_test
        sources = [
            open_images(
                name, image_column=run.data.image_column, label_column=run.data.label_column
            ).sample(run.evaluation.eval_limit)
            for name in dict.fromkeys((run.evaluation.eval_train, run.evaluation.eval_test))
        ]
        train, test = sources[0], sources[-1]
        check_labels(train, test)
        if run.is_classifier and isinstance(source, ImageSource):
            check_labels(source, test)  # the classifier's own accuracy is measured, too
        return EvaluationImages(train, test, note=TEST_EQUALS_TRAIN if same else "")
    if isinstance(source, StreamingImageSource):
        source = first_images(source, min(run.evaluation.eval_limit, MAX_STREAM_IMAGES))
    source = source.sample(run.evaluation.eval_limit)
    labels = source.labels()
    if labels is None or run.is_classifier or len(np.unique(labels[labels != NO_LABEL])) < 2:
        return EvaluationImages(source, note=SEEN_IN_TRAINING)
    is_test = hold_out(labels, np.random.default_rng(0)) & (labels != NO_LABEL)
    if not is_test.any():
        return EvaluationImages(source, note=SEEN_IN_TRAINING)
    train, test = (ChosenSource(source, np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return EvaluationImages(train, test, note=SEEN_IN_TRAINING)


class Evaluation:
    """Measures a model's embeddings, without changing the model or the random states.

    Args:
        model: Model in training; its `vit` is measured.
        processor: Image processor that is saved with the model.
        run: Configuration of the run.
        images: Images from `open_evaluation_images`, or None to measure nothing.
        device: Device to measure on; by default the model's own.
    """

    def __init__(
        self,
        model: SelfViTPreTrainedModel,
        processor: Any,
        run: RunConfig,
        images: EvaluationImages | None,
        device: torch.device | None = None,
    ):
        self.model = model
        self.device = device
        self.run = run
        self.images = images
        self.embedder = Embedder(
            model.vit,
            processor,
            batch_size=min(256, run.schedule.batch_size),
            num_workers=run.data.num_workers,
        )
        self._latest: tuple[int, Measurement] | None = None

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
            hits = accuracy_hits(train, test) | self._classifier_hits(test)
            samples |= {name: MetricSample.mean_of(hit) for name, hit in hits.items()}
            metrics |= {"num_train": len(vectors), "num_test": len(test.vectors)}
        samples["view_retrieval"] = MetricSample.mean_of(view_retrieval(*self._embed_views()))
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

    def _embed_views(self) -> tuple[np.ndarray, np.ndarray]:
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
            batch_size=self.embedder.batch_size,
            num_workers=run.data.num_workers,
            collate_fn=_collate_readable,
            worker_init_fn=use_one_thread,
            generator=torch.Generator(),  # keeps the DataLoader from advancing the global state
        )
        statistics = run.preprocessing
        vectors = [
            self.embedder.embed_pixels(normalize(view, statistics.image_mean, statistics.image_std))
            for pair in loader
            if pair is not None
            for view in pair
        ]
        return np.concatenate(vectors[0::2]), np.concatenate(vectors[1::2])


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


def choose_metric(run: RunConfig, images: EvaluationImages | None) -> str | None:
    """Return the name of the metric that judges a run, or None if no metric can.

    By default this is the accuracy of a classifier's own head, or else weighted k-NN, or, without
    labels, `view_retrieval`. A collapsed encoder and a noisy one both do badly in view retrieval,
    while RankMe and uniformity rise with noise. Label-free metrics do not judge a classifier,
    because it is meant to bring images of one class together. A classifier with a new head has no
    accuracy before training, so its before/after report is judged by k-NN.

    Args:
        run: Configuration of the run, with `best_metric` if the user chose one.
        images: Images of the evaluations, or None.

    Raises:
        ValueError: If `best_metric` cannot be measured on these images, or
            `require_improvement` is set and no metric can judge the run.
    """
    wanted = run.evaluation.best_metric
    if images is None:
        if wanted is not None:
            raise ValueError(
                f"--best-metric ({wanted}) needs evaluations, and this run has none; give "
                "--eval-steps or --init-from."
            )
        return None
    names = images.accuracy_names()
    if run.is_classifier:
        names = ["accuracy", *names] if names else []
    else:
        names = [*names, "view_retrieval", "rankme"]
    if wanted is None and names:
        return names[0]
    if wanted not in names and (wanted is not None or run.evaluation.require_improvement):
        rule = (
            "--require-improvement needs a metric that can judge the run"
            if wanted is None
            else f"--best-metric ({wanted}) cannot be measured on this data"
        )
        raise ValueError(
            f"{rule}; available: {', '.join(names) or 'none for a classifier'}. Give labeled "
            "images that are not trained on with --eval-train and --eval-test."
        )
    return wanted


__all__ = [
    "Evaluation",
    "EvaluationImages",
    "choose_metric",
    "open_evaluation_images",
]
