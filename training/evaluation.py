"""Evaluation while training: the figures of `selfvit evaluate`, of the network to come."""

from __future__ import annotations

from typing import Any

import torch

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import ImageSource
from ..data.sources import open_images
from ..embedding.embedder import Embedder, evaluating
from ..evaluation.evaluate import evaluate_embeddings, label_free_measures
from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from .run import Run


def open_evaluation_sources(
    run: Run, source: ImageSource | StreamingImageSource
) -> list[ImageSource]:
    """Return what a run is evaluated on: labelled [train, test], or [training images], or nothing.

    Args:
        run: says whether, and on which data.
        source: the training images, which are measured where the run names no others.
    """
    training = run.training
    if training.eval_steps is None:
        return []
    if training.eval_train is not None and training.eval_test is not None:
        return [
            open_images(
                name, image_column=training.image_column, label_column=training.label_column
            ).sample(training.eval_limit)
            for name in (training.eval_train, training.eval_test)
        ]
    return [source.sample(training.eval_limit)] if isinstance(source, ImageSource) else []


class PeriodicEvaluation:
    """Measures a model's embeddings; with labelled data by neighbours and probe, else label-free.

    Args:
        model: in training; its `vit` is measured.
        processor: image processor of the checkpoint to come.
        run: says how many images at a time.
        sources: of `open_evaluation_sources`.
    """

    def __init__(
        self, model: SelfViTPreTrainedModel, processor: Any, run: Run, sources: list[ImageSource]
    ):
        self.model = model
        self.sources = sources
        self.embedder = Embedder(
            model.vit,
            processor,
            batch_size=min(256, run.training.batch_size),
            num_workers=run.training.num_workers,
        )

    def __call__(self) -> dict[str, float]:
        """Return figures; the model is left as it was, the random state too."""
        if not self.sources:
            return {}
        embedded = [self.embedder.embed(source) for source in self.sources]
        if len(embedded) == 1:
            return label_free_measures(embedded[0].vectors)
        metrics = evaluate_embeddings(*embedded)
        classify = getattr(self.model, "classify", None)
        if classify is not None and embedded[1].labels is not None:
            # evaluating: a batch norm would take the test images' statistics, and learn them
            with torch.inference_mode(), evaluating(self.model):
                vectors = torch.from_numpy(embedded[1].vectors).to(self.model.device)
                predictions = classify(vectors).argmax(dim=-1).cpu().numpy()
            metrics["accuracy"] = float((predictions == embedded[1].labels).mean())
        return metrics


__all__ = ["PeriodicEvaluation"]
