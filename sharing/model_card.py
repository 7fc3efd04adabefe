"""The card of a checkpoint: its README.md, rendered from `model_card.md`.

What a card says is plain values, `CardContents`; training and conversion each fill them in. A card
may be published, so it names files and folders by their last part only.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration.configuration_selfvit import SelfViTConfig
from ..evaluation.evaluate import format_metric, metric_title
from .citations import citations_of, objective_of
from .provenance import Provenance, display_name, hub_id

CLASSIFIER = "SelfViTForImageClassification"

# A figure, or (figure, lower end, upper end) of its 95 % interval.
MetricValue = float | tuple[float, float, float]


@dataclass(frozen=True)
class TrainingFacts:
    """How a checkpoint was trained.

    Args:
        recipe: name.
        data: the images, in words, without a path.
        dataset: Hub id of the images, or None.
        started_from: folder's name or Hub id, or "random weights".
        num_steps: optimizer steps that it took.
        planned_steps: of the whole run.
        values: hyper-parameters, by what they are called in the card.
        hardware: devices, in words.
        num_processes: that trained together.
        seconds: of the loop, over all its resumes, evaluations and checkpoints among them.
        energy_kwh: estimate by codecarbon, or None.
    """

    recipe: str
    data: str
    dataset: str | None
    started_from: str
    num_steps: int
    planned_steps: int
    values: Mapping[str, str]
    hardware: str
    num_processes: int
    seconds: float
    energy_kwh: float | None = None

    @property
    def duration(self) -> str:
        """Seconds, and the same as hours, minutes and seconds."""
        return f"{self.seconds:,.1f} seconds ({timedelta(seconds=round(self.seconds))})"


@dataclass(frozen=True)
class ConversionFacts:
    """How a checkpoint of another project became this one.

    Args:
        source: file, folder or Hub id, without a path.
        kind: what it was taken for.
        fields: configuration by field: value and where it is from.
        preprocessing: where mean, deviation and sizes are from.
        differences: what this checkpoint does otherwise than the source.
        notes: on tensors that were left out, or are new.
        license_note: what is known of the source's.
    """

    source: str
    kind: str
    fields: Mapping[str, tuple[Any, str]]
    preprocessing: str
    differences: Sequence[str]
    notes: Sequence[str]
    license_note: str


@dataclass(frozen=True)
class CardContents:
    """All that a card says; give `training` or `conversion`, whichever it came from.

    Args:
        name: of the checkpoint: its folder's, or its Hub id.
        architecture: class, as in `config.architectures`.
        config: of the model.
        num_parameters: of the encoder.
        image_mean: per channel, of values in [0, 1].
        image_std: per channel, of values in [0, 1].
        provenance: license and base model.
        objective: DINO, MAE, MSN or PMSN, which the encoder was trained with; None for the
            configuration's own.
        has_teacher: whether `network="student"` opens another network.
        has_code: whether the model's code lies beside the weights, for those without selfvit.
        training: or None.
        conversion: or None.
        after: figures of the checkpoint by name, as `evaluate_embeddings` calls them.
        before: the same of the weights that it started from, or empty.
        verdict: what these say together, or "".
        evaluated_on: data that accuracies were measured on: path or Hub id; "" if there are none.
        picture: file beside the card with attention maps, or None.
    """

    name: str
    architecture: str
    config: SelfViTConfig
    num_parameters: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    provenance: Provenance
    objective: str | None = None
    has_teacher: bool = False
    has_code: bool = True
    training: TrainingFacts | None = None
    conversion: ConversionFacts | None = None
    after: Mapping[str, MetricValue] = field(default_factory=dict)
    before: Mapping[str, MetricValue] = field(default_factory=dict)
    verdict: str = ""
    evaluated_on: str = ""
    picture: str | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether it gives labels, too."""
        return self.architecture == CLASSIFIER

    @property
    def pipeline_tag(self) -> str:
        """The task of transformers' pipeline that serves it."""
        return "image-classification" if self.is_classifier else "image-feature-extraction"

    @property
    def learned_by(self) -> str | None:
        """The encoder's objective."""
        return self.objective or objective_of(self.config)


def render_model_card(contents: CardContents) -> str:
    """Return the text of the card, metadata of the Hub first."""
    card = ModelCard.from_template(
        _metadata(contents),
        template_str=files("selfvit").joinpath("model_card.md").read_text(encoding="utf-8"),
        contents=contents,
        config=contents.config,
        training=contents.training,
        conversion=contents.conversion,
        provenance=contents.provenance,
        python_name=json.dumps(contents.name, ensure_ascii=False),
        shell_name=shlex.quote(contents.name),
        objective_values=_objective_values(contents.config),
        results=_results(contents),
        evaluated_on=display_name(contents.evaluated_on) if contents.evaluated_on else "",
        citation=citations_of(contents.learned_by),
        cell=_cell,
    )
    return re.sub(r"\n{3,}", "\n\n", card.content) + "\n"


def _metadata(contents: CardContents) -> ModelCardData:
    provenance, training = contents.provenance, contents.training
    learned_by = contents.learned_by
    results = _eval_results(contents)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=contents.pipeline_tag,
        license=provenance.license,
        license_name=provenance.license_name,
        license_link=provenance.license_link,
        base_model=provenance.base_model,
        datasets=[training.dataset] if training and training.dataset else None,
        metrics=["accuracy"] if results else None,
        tags=[
            "selfvit",
            "vision",
            "self-supervised-learning",
            *([learned_by.lower()] if learned_by else []),
        ],
        model_name=contents.name,
        eval_results=results or None,
    )


def _eval_results(contents: CardContents) -> list[EvalResult]:
    """Return accuracies as the Hub's model-index has them; label-free figures have no place."""
    data = contents.evaluated_on
    is_parquet = data.endswith(".parquet")
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_id(data) or ("parquet" if is_parquet else "imagefolder"),
            dataset_name=display_name(data),
            metric_type="accuracy",
            metric_name=metric_title(name),
            metric_value=round(_value(figure), 4),
        )
        for name, figure in contents.after.items()
        if data and _is_accuracy(name) and math.isfinite(_value(figure))
    ]


def _is_accuracy(name: str) -> bool:
    return name in ("linear_probe", "accuracy") or name.startswith("knn_")


def _value(figure: MetricValue) -> float:
    return float(figure[0] if isinstance(figure, tuple) else figure)


def _results(contents: CardContents) -> list[tuple[str, str, str]]:
    """Return rows (measure, before, after); what was not measured is "-"."""

    def text(name: str, figures: Mapping[str, MetricValue]) -> str:
        figure = figures.get(name)
        if figure is None:
            return "-"
        if not isinstance(figure, tuple):
            return format_metric(name, figure)
        value, low, high = (format_metric(name, number) for number in figure)
        return f"{value} ({low} to {high})"

    names = [*contents.after, *(name for name in contents.before if name not in contents.after)]
    return [
        (metric_title(name), text(name, contents.before), text(name, contents.after))
        for name in names
    ]


def _objective_values(config: SelfViTConfig) -> dict[str, Any]:
    """Return the objective's own fields, by name."""
    parts = [getattr(config, name) for name in SelfViTConfig.sub_configs_defaults]
    hidden = ("model_type", "transformers_version")
    return {
        name: value
        for part in parts
        if part is not None
        for name, value in part.to_dict().items()
        if name not in hidden
    }


def _cell(text: Any) -> str:
    """Return text that keeps within a cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|")


__all__ = [
    "CardContents",
    "ConversionFacts",
    "MetricValue",
    "TrainingFacts",
    "render_model_card",
]
