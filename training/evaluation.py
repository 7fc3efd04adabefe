"""Evaluation while training: the figures of `selfvit evaluate`, of the network to come, and more.

What needs no labels is measured besides: whether one view of an image finds the other, how evenly
the vectors fill the sphere, and who is whose neighbor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import NO_LABEL, ChosenSource, ImageSource, RecordSource
from ..data.sources import open_images
from ..data.stream_reader import StreamPosition, StreamReader
from ..data.workers import use_one_thread
from ..embedding.embedder import EmbeddedImages, Embedder, eval_mode
from ..evaluation.bootstrap import Figure
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
from .config.run_config import Run
from .dataloader.collate import collate, normalize
from .dataloader.views import ViewDataset

# N images · E embedding

# Two crops, flipped and with other colors, whatever the run trains with: so that runs and
# objectives can be compared. Milder than DINO's global views, whose blur depends on the image size.
VIEWS = MultiCrop(
    num_local_views=0,
    global_crop_scale=[0.5, 1.0],
    blur_probability=[0.0, 0.0, 0.0],
    solarize_probability=[0.0, 0.0, 0.0],
)
MAX_VIEW_IMAGES = 1000  # two views each; an interval of 3 points either side, at the widest
MAX_PAIR_IMAGES = 2000  # whose pairs are compared
NUM_NEIGHBORS = 10
MAX_STREAM_IMAGES = 2000  # of a stream, held in memory undecoded
TRAINED_ON = (
    "Measured on images that were trained on (their labels were not, if any figure uses them); the "
    "weights before may not have seen them. --eval_train and --eval_test take others."
)
TESTED_ON_ITSELF = (
    "Measured on the images that classes were learnt from, which k-NN finds again: the accuracies "
    "are too high. Give --eval_test others than --eval_train."
)


@dataclass(frozen=True)
class EvaluationImages:
    """What a run is evaluated on.

    Args:
        images: classes are learnt from these; figures that need no labels are of these, too.
        test: labeled, and apart from `images`; None where there are no labels.
        note: what one should know of the figures, or "".
    """

    images: ImageSource
    test: ImageSource | None = None
    note: str = ""

    @property
    def sources(self) -> list[ImageSource]:
        """Those to embed."""
        return [self.images] if self.test is None else [self.images, self.test]

    def accuracies(self) -> list[str]:
        """Return the names of the accuracies that can be measured, the most telling first.

        k-NN goes before the probe: it sees the features as they are, and fits nothing.
        """
        if self.test is None or self.test.labels() is None:
            return []
        labels = self.images.labels()
        num_labeled = 0 if labels is None else int((labels != NO_LABEL).sum())
        names = [f"knn_{k}" for k in (20, 10) if k <= num_labeled]
        return [*names, "linear_probe"] if num_labeled else []


def open_evaluation_images(
    run: Run, source: ImageSource | StreamingImageSource
) -> EvaluationImages | None:
    """Return what a run is evaluated on; None if it is not.

    The images that it names; else its training images. Where these have labels, and the objective
    does not use them, a fifth of each class is classified by the others: no label was learnt. The
    images were, and perhaps not by the weights before, so the comparison is a little kind to
    training, which the note says. A classifier has learnt all labels: it gets no accuracies.

    Args:
        run: says whether, and on which data.
        source: the training images; of a stream the first ones are taken, shuffled.

    Raises:
        ImportError: without scikit-learn, where there are labels.
        ValueError: if there are classes to test that there is nothing to learn from.
    """
    training = run.training
    if training.eval_steps is None and not training.compares_with_start:
        return None
    if training.eval_train is not None and training.eval_test is not None:
        train, test = (
            open_images(
                name, image_column=training.image_column, label_column=training.label_column
            ).sample(training.eval_limit)
            for name in (training.eval_train, training.eval_test)
        )
        check_labels(train, test)
        if run.is_classifier and isinstance(source, ImageSource):
            check_labels(source, test)  # the classifier knows these classes
        same = training.eval_train == training.eval_test
        return EvaluationImages(train, test, note=TESTED_ON_ITSELF if same else "")
    if isinstance(source, StreamingImageSource):
        source = _first_images(source, min(training.eval_limit, MAX_STREAM_IMAGES))
    source = source.sample(training.eval_limit)
    labels = source.labels()
    if labels is None or run.is_classifier or len(np.unique(labels[labels != NO_LABEL])) < 2:
        return EvaluationImages(source, note=TRAINED_ON)
    is_test = hold_out(labels, np.random.default_rng(0)) & (labels != NO_LABEL)
    if not is_test.any():
        return EvaluationImages(source, note=TRAINED_ON)
    train, test = (ChosenSource(source, np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return EvaluationImages(train, test, note=TRAINED_ON)


def _first_images(source: StreamingImageSource, limit: int) -> RecordSource:
    first_pass = StreamReader(source, seed=0).read_epoch(StreamPosition())
    with closing(first_pass):
        records = [record for record, _ in itertools.islice(first_pass, limit)]
    return RecordSource(records, f"first of the {source.description}", source.label_names)


class Evaluation:
    """Measures a model's embeddings; the model is left as it was, and the random state too.

    Args:
        model: in training; its `vit` is measured.
        processor: image processor of the checkpoint to come.
        run: says how many images at a time.
        images: of `open_evaluation_images`.
        device: where to measure a model that lies elsewhere; where it is if None.
    """

    def __init__(
        self,
        model: SelfViTPreTrainedModel,
        processor: Any,
        run: Run,
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
            batch_size=min(256, run.training.batch_size),
            num_workers=run.training.num_workers,
        )
        self._newest: tuple[int, Measurement] | None = None

    @property
    def data(self) -> str:
        """Names images and preprocessing: measurements of equal data can be compared."""
        if self.images is None:
            return ""
        training, config = self.run.training, self.run.model
        values = (
            *(source.fingerprint for source in self.images.sources),
            *(config.image_height_width, config.pooling),
            *(training.resize, training.image_mean, training.image_std),
            *(VIEWS, MAX_VIEW_IMAGES, MAX_PAIR_IMAGES, NUM_NEIGHBORS),
        )
        return " ".join(map(str, values))

    def __call__(self, step: int) -> dict[str, float]:
        """Return the figures after some steps; empty where nothing is measured."""
        return {} if self.images is None else dict(self.measure(step).metrics)

    def measure(self, step: int) -> Measurement:
        """Measure the model after some steps, once a step."""
        if self._newest is None or self._newest[0] != step:
            # neither student nor heads are needed there
            needed = self.model if hasattr(self.model, "classify") else self.model.vit
            with moved_to(self.device, needed):
                self._newest = (step, self._measure())
        return self._newest[1]

    def _measure(self) -> Measurement:
        assert self.images is not None
        train = self.embedder.embed(self.images.images)
        vectors = train.vectors
        figures: dict[str, Figure] = {}
        metrics = label_free_measures(vectors)
        if self.images.test is not None:
            test = self.embedder.embed(self.images.test)
            hits = accuracy_hits(train, test) | self._classifier_hits(test)
            figures |= {name: Figure.mean_of(hit) for name, hit in hits.items()}
            metrics |= {"num_train": len(vectors), "num_test": len(test.vectors)}
        figures["view_retrieval"] = Figure.mean_of(view_retrieval(*self._embed_views()))
        ranked = vectors[spread(len(vectors), MAX_RANKME_IMAGES)]
        figures["rankme"] = Figure(metrics["rankme"], rankme_influences(ranked))
        paired = vectors[spread(len(vectors), MAX_PAIR_IMAGES)]
        figures["uniformity"] = Figure(uniformity(paired), uniformity_influences(paired))
        return Measurement(
            figures=figures,
            neighbors=nearest_neighbors(paired, min(NUM_NEIGHBORS, len(paired) - 1)),
            data=self.data,
            metrics={name: figure.value for name, figure in figures.items()} | metrics,
        )

    def _classifier_hits(self, embedded: EmbeddedImages) -> dict[str, np.ndarray]:
        """Return which test images the model's own classifier gets right, if it has one."""
        classify = getattr(self.model, "classify", None)
        if classify is None or embedded.labels is None:
            return {}
        is_labeled = embedded.labels != NO_LABEL
        names = list((self.model.config.id2label or {}).values())
        labels = matched_labels(
            embedded.labels[is_labeled], embedded.label_names, np.arange(len(names)), names
        )
        # evaluating: a batch norm would take the test images' statistics, and learn them
        with torch.inference_mode(), eval_mode(self.model):
            vectors = torch.from_numpy(embedded.vectors[is_labeled]).to(self.model.device)
            predictions = classify(vectors).argmax(dim=-1).cpu().numpy()
        return {"accuracy": predictions == labels}

    def _embed_views(self) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors of two views of some images, (N, E) each; of held-out ones, if any."""
        assert self.images is not None
        source = self.images.sources[-1].sample(MAX_VIEW_IMAGES)
        training, config = self.run.training, self.run.model
        views = ViewDataset(
            source, VIEWS, config.image_height_width, config.patch_size, seed=0, with_labels=False
        )
        loader = DataLoader(
            views,
            sampler=[(position, position) for position in range(len(source))],  # type: ignore[arg-type]
            batch_size=self.embedder.batch_size,
            num_workers=training.num_workers,
            collate_fn=_collate_readable,
            worker_init_fn=use_one_thread,
            generator=torch.Generator(),  # a DataLoader draws a seed: not from the global state
        )
        vectors = [
            self.embedder.embed_pixels(normalize(view, training.image_mean, training.image_std))
            for pair in loader
            if pair is not None
            for view in pair
        ]
        return np.concatenate(vectors[0::2]), np.concatenate(vectors[1::2])


@contextmanager
def moved_to(device: torch.device | None, model: nn.Module) -> Iterator[None]:
    """Lay a model on a device for a while: the copy of a sharded one waits on the CPU."""
    home = next(model.parameters()).device
    try:
        model.to(device or home)
        yield
    finally:
        model.to(home)


def _collate_readable(samples: list[dict[str, Any]]) -> torch.Tensor | None:
    """Stack the views (2, B, C, H, W) of the images that could be read; not their replacements'."""
    readable = [sample for sample in samples if not sample["skipped"]]
    return collate(readable)["global_views"] if readable else None


def choose_metric(run: Run, images: EvaluationImages | None) -> str | None:
    """Return the name of the figure that judges a run; None if nothing can.

    What the run asks for; else a classifier's own accuracy, or weighted k-NN, or, without labels,
    `view_retrieval`: neither a collapsed encoder nor a noisy one does well by it, while RankMe and
    uniformity alone rise with noise. None of the label-free figures judges a classifier: images
    of one class are meant to come together. The report on a classifier with a new head, which has
    no accuracy before, is judged by k-NN of its encoder.

    Raises:
        ValueError: if the run asks for a figure that its data does not give.
    """
    training = run.training
    wanted = training.best_metric
    if images is None:
        if wanted is not None:
            raise ValueError(
                f"best_metric ({wanted!r}) chooses among evaluations, and there are none; give "
                "eval_steps, or init_from."
            )
        return None
    names = images.accuracies()
    if run.is_classifier:
        names = ["accuracy", *names] if names else []
    else:
        names = [*names, "view_retrieval", "rankme"]
    if wanted is None and names:
        return names[0]
    if wanted not in names and (wanted is not None or training.require_improvement):
        raise ValueError(
            f"best_metric ({wanted!r}) cannot be measured on this data; it gives "
            f"{', '.join(names) or 'no figure that judges a classifier'}. Give --eval_train and "
            "--eval_test labeled images that are not trained on."
        )
    return wanted


__all__ = ["Evaluation", "EvaluationImages", "choose_metric", "open_evaluation_images"]
