"""Model card of a checkpoint: its README.md, rendered from the template `model_card.md`.

`CardContents` holds plain values, which training and conversion fill in. A card may be published,
so it names local files and folders by the last part of their path only.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Template  # a dependency of torch

from ..atomic_output import atomic_output
from ..configuration.configuration_selfvit import SelfViTConfig
from .citations import citations_of, objective_of
from .provenance import CARD, Provenance, display_name
from .published_files import read_card
from .results import MetricValue, Results

CLASSIFIER = "SelfViTForImageClassification"
TEACHER_FIELDS = ("teacher", "teacher_revision", "teacher_license", "teacher_hidden_size")
# The section from its title to the next title; no line of its code starts with "## ".
RESULTS_SECTION = re.compile(r"^## Results\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about the training run of a checkpoint.

    Args:
        recipe: Name of the recipe.
        data: Description of the training images, without a local path.
        dataset: Hub id of the training images, or None.
        started_from: Folder name or Hub id of the initial weights, or "random weights".
        num_steps: Number of optimizer steps so far.
        planned_steps: Number of optimizer steps of the run.
        values: Hyperparameters as text, by their title in the card.
        hardware: Description of the devices.
        num_processes: Number of training processes.
        seconds: Duration of the training loop in seconds over all resumes, including evaluations
            and checkpoints.
        energy_kwh: Energy in kWh as estimated by codecarbon, or None.
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
        """Return the duration in seconds, and as hours, minutes and seconds."""
        return f"{self.seconds:,.1f} seconds ({timedelta(seconds=round(self.seconds))})"


@dataclass(frozen=True)
class ConversionFacts:
    """Facts about the conversion of a checkpoint from another project.

    Args:
        source: Name of the source file or folder without its path, or its Hub id.
        kind: Detected kind of the source.
        fields: Value and origin of each field of the configuration.
        preprocessing: Origin of mean, std and image size.
        differences: Differences in behavior from the source.
        notes: Remarks about tensors that were left out or are new.
        license_note: Remark about the license of the source, or "".
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
    """Contents of a model card. Set either `training` or `conversion`.

    Args:
        name: Name of the checkpoint: its folder name or Hub id.
        architecture: Class of the model, as in `config.architectures`.
        config: Configuration of the model.
        num_parameters: Number of parameters of the encoder.
        image_mean: Mean per channel, for pixel values in [0, 1].
        image_std: Std per channel, for pixel values in [0, 1].
        provenance: License and base model.
        pixel_range: Values of black and white in images of more than eight bits, or None.
        objective: Objective of the encoder (DINO, LeJEPA, MAE, ...); None for that of `config`.
        has_teacher: Whether `network="student"` loads another network.
        has_code: Whether the folder contains the model code for environments without selfvit.
        training: Facts about the training run, or None.
        conversion: Facts about the conversion, or None.
        after: Metrics of the checkpoint by name, as in `evaluate_embeddings`.
        before: Metrics of the initial weights by name, or empty.
        verdict: Conclusion from the metrics in words, or "".
        evaluated_on: Path or Hub id of the data of the accuracies, or "".
        picture: Name of the picture of attention maps in the same folder, or None.
        pictures: Captions of pictures of the results, by file name in the same folder.
    """

    name: str
    architecture: str
    config: SelfViTConfig
    num_parameters: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    provenance: Provenance
    pixel_range: Sequence[float] | None = None
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
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_classifier(self) -> bool:
        """Return whether the model predicts classes."""
        return self.architecture == CLASSIFIER

    @property
    def takes_pictures(self) -> bool:
        """Return whether images are pictures, gray or RGB, which a pipeline can read."""
        return self.config.num_channels in (1, 3)

    @property
    def has_own_processor(self) -> bool:
        """Return whether the image processor is one that has code of its own."""
        return self.config.num_channels != 3 or self.pixel_range is not None

    @property
    def pipeline_tag(self) -> str:
        """Return the name of the transformers pipeline for the model."""
        return "image-classification" if self.is_classifier else "image-feature-extraction"

    @property
    def trained_with(self) -> str | None:
        """Return the objective of the encoder."""
        return self.objective or objective_of(self.config)

    @property
    def results(self) -> Results:
        """Return the metrics, with a column for the initial weights if there are any."""
        columns = {"value": self.after}
        if self.before:
            columns = {"before": self.before, "after": self.after}
        return Results(columns, self.verdict, self.evaluated_on, self.pictures)


def render_model_card(contents: CardContents) -> str:
    """Return the text of a model card, starting with the metadata for the Hub."""
    metadata = _metadata(contents)
    text = card_template().render(
        card_data=metadata.to_yaml(),
        contents=contents,
        config=contents.config,
        training=contents.training,
        conversion=contents.conversion,
        provenance=contents.provenance,
        results=contents.results,
        python_name=json.dumps(contents.name, ensure_ascii=False),
        shell_name=shlex.quote(contents.name),
        objective_values=_objective_values(contents.config),
        teacher=_teacher(contents.config),
        citation=citations_of(contents.trained_with),
        cell=_cell,
    )
    return _without_extra_lines(ModelCard(text).content) + "\n"


def add_results(
    folder: str | os.PathLike[str],
    metrics: Mapping[str, MetricValue],
    pictures: Sequence[tuple[str | os.PathLike[str], str]] = (),
    *,
    baselines: Mapping[str, Mapping[str, MetricValue]] | None = None,
    evaluated_on: str = "",
    verdict: str = "",
) -> None:
    """Write metrics and pictures into the model card of a checkpoint.

    The "Results" section and the accuracies in the metadata are replaced; the rest of the card is
    kept. Pictures are copied into the folder.

    Args:
        folder: Checkpoint folder with a card, as written by `selfvit train` or `selfvit convert`.
        metrics: Metrics of the checkpoint by name, as in `evaluate_embeddings`.
        pictures: (file, caption) of each picture.
        baselines: Metrics to compare with, by title of their column in the table.
        evaluated_on: Path or Hub id of the data of the accuracies, or "". Without it, the metadata
            has no accuracies.
        verdict: Conclusion from the metrics in words, or "".

    Raises:
        FileNotFoundError: If the folder has no card, or a picture does not exist.
        ValueError: If the card has no "Results" section, its metadata is invalid, or two pictures
            have the same file name.
    """
    folder = Path(folder)
    path, card = folder / CARD, read_card(folder)
    data = card.data
    assert isinstance(data, ModelCardData)
    if RESULTS_SECTION.search(card.text) is None:
        raise ValueError(
            f"{str(path)!r} must have a section '## Results'; add this line to the card."
        )
    captions = {Path(picture).name: caption for picture, caption in pictures}
    if len(captions) < len(pictures):
        raise ValueError("pictures must have different file names; rename one of them.")
    title = "this checkpoint" if baselines else "value"
    results = Results(
        columns={**(baselines or {}), title: metrics},
        verdict=verdict,
        evaluated_on=evaluated_on,
        pictures=captions,
    )
    for picture, _ in pictures:
        _copy_into(folder, Path(picture))
    name = data.model_name or folder.resolve().name
    section = _render_results(results, shell_name=shlex.quote(name))
    card.text = RESULTS_SECTION.sub(lambda _: section, card.text, count=1)
    data.model_name = name
    data.eval_results = results.eval_results or None
    data.metrics = ["accuracy"] if results.eval_results else None
    with atomic_output(path) as unfinished:
        unfinished.write_text(str(card), encoding="utf-8")


def _copy_into(folder: Path, picture: Path) -> None:
    target = folder / picture.name
    if picture.resolve() != target.resolve():
        with atomic_output(target) as unfinished:
            shutil.copyfile(picture, unfinished)


@functools.cache
def card_template() -> Template:
    """Return the template, which takes longer to compile than to render."""
    return Template(files("selfvit").joinpath("model_card.md").read_text(encoding="utf-8"))


def _render_results(results: Results, shell_name: str) -> str:
    """Return the "Results" section of the template, with an empty line at its end."""
    template = card_template()
    context = template.new_context({"results": results, "shell_name": shell_name, "cell": _cell})
    section = "".join(template.blocks["results"](context))
    return _without_extra_lines(section).strip() + "\n\n"


def _without_extra_lines(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text)


def _metadata(contents: CardContents) -> ModelCardData:
    provenance, training = contents.provenance, contents.training
    objective = contents.trained_with
    eval_results = contents.results.eval_results
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=contents.pipeline_tag,
        license=provenance.license,
        license_name=provenance.license_name,
        license_link=provenance.license_link,
        base_model=provenance.base_model,
        datasets=[training.dataset] if training and training.dataset else None,
        metrics=["accuracy"] if eval_results else None,
        tags=[
            "selfvit",
            "vision",
            "self-supervised-learning",
            *([objective.lower()] if objective else []),
        ],
        model_name=contents.name,
        eval_results=eval_results or None,
    )


def _teacher(config: SelfViTConfig) -> str:
    """Return the name, revision and license of the teacher of a distillation, or ""."""
    distill = config.distill_config
    if distill is None or not distill.teacher:
        return ""
    revision, license = distill.teacher_revision or "unknown", distill.teacher_license or "unknown"
    return f"{display_name(distill.teacher)}, revision {revision[:12]}, license {license}"


def _objective_values(config: SelfViTConfig) -> dict[str, Any]:
    """Return the fields of the objective's configuration by name."""
    parts = [getattr(config, name) for name in SelfViTConfig.sub_configs_defaults]
    hidden = ("model_type", "transformers_version", *TEACHER_FIELDS)
    return {
        name: value
        for part in parts
        if part is not None
        for name, value in {**part.to_dict(), **part.resolved_fields()}.items()
        if name not in hidden
    }


def _cell(text: Any) -> str:
    """Return text for a cell of a Markdown table: one line, with escaped pipes."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|")


__all__ = [
    "CardContents",
    "ConversionFacts",
    "MetricValue",
    "TrainingFacts",
    "add_results",
    "render_model_card",
]
