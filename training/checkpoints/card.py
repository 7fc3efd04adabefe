"""Model card of a run: data, hyperparameters, hardware, cost, metrics, attention maps."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import ImageSource
from ...data.remote.file_system import is_url
from ...evaluation.comparison import Comparison
from ...modeling.modeling_selfvit import SelfViTPreTrainedModel
from ...sharing.adapter_files import ADAPTER
from ...sharing.citations import objective_of
from ...sharing.model_card import CardContents, TrainingFacts, render_model_card
from ...sharing.provenance import Provenance, derived_provenance, display_name, hub_id
from ...visualization.attention_maps import plot_attention_maps
from ...visualization.figures import require_matplotlib
from ...visualization.inputs import choose_images
from ..config.from_checkpoint import read_config
from ..config.run_config import RunConfig
from ..config.training_config import OPTIMIZERS
from ..lora import count_parameters, describe_adapters, has_adapters
from ..model import channel_adaptation
from ..state import TrainState
from .run_folder import CARD_PICTURE

NUM_PICTURED = 4


def run_provenance(run: RunConfig) -> Provenance:
    """Return the license and the base model of a run's checkpoints."""
    distill = run.model.distill_config
    return derived_provenance(
        run.start.init_from, run.card.license, None if distill is None else distill.teacher
    )


def check_card(run: RunConfig, source: ImageSource | StreamingImageSource) -> None:
    """Check that the card of a run can be written, before the run starts.

    Raises:
        ImportError: If the card gets a picture, and matplotlib is not installed.
        ValueError: If the license is unknown or contradicts that of the initial weights, or if the
            card gets a picture and the images are a stream.
    """
    run_provenance(run)
    if run.card.card_picture:
        require_matplotlib()
        if not isinstance(source, ImageSource):
            raise ValueError(
                "--card-picture draws some of the images, which is impossible for a stream; leave "
                "it out, or read the data without --streaming."
            )


class RunCard:
    """Model card of a run's checkpoints; creating it is collective.

    Args:
        run: Configuration of the run.
        source: Training images.
        accelerator: Accelerator, with the devices.
    """

    def __init__(
        self,
        run: RunConfig,
        source: ImageSource | StreamingImageSource,
        accelerator: Accelerator,
    ):
        self.run, self.source = run, source
        self.provenance = run_provenance(run)
        self.objective = objective_of(run.model)
        if self.objective is None and run.start.init_from is not None:
            self.objective = objective_of(read_config(run.start.init_from))
        self.adaptation = channel_adaptation(run)
        self.num_processes = accelerator.num_processes
        self.precision = accelerator.mixed_precision.replace("no", "float32")
        devices = Counter(gather_object([device_name(accelerator.device)]))
        self.hardware = ", ".join(
            name if count == 1 else f"{count} x {name}" for name, count in devices.items()
        )

    def render(
        self,
        state: TrainState,
        cost: Mapping[str, float | None],
        comparison: Comparison | None = None,
        picture: str | None = None,
    ) -> str:
        """Return the text of the card for the current state of the run.

        Args:
            state: State of the run, with the evaluation of its current weights, if there is one.
            cost: Seconds and energy so far, from `CostMeter.read`.
            comparison: Comparison with the initial weights, if there is one.
            picture: Name of a picture in the folder of the card, from `draw`.
        """
        run, model, metrics = self.run, state.model, state.evaluation
        return render_model_card(
            CardContents(
                name=Path(run.start.output).resolve().name,
                architecture=run.architecture,
                config=run.model,
                num_parameters=count_parameters(model.vit).own,
                image_mean=run.preprocessing.image_mean,
                image_std=run.preprocessing.image_std,
                provenance=self.provenance,
                pixel_range=run.preprocessing.declared_range,
                objective=self.objective,
                has_teacher=model.trained_encoder is not model.vit,
                has_code=run.checkpoints.save_code,
                training=TrainingFacts(
                    recipe=run.recipe,
                    data=describe_data(self.source.description, run.data.data),
                    dataset=hub_id(run.data.name),
                    started_from=(
                        display_name(run.start.init_from)
                        if run.start.init_from
                        else "random weights"
                    ),
                    num_steps=state.step,
                    planned_steps=state.num_steps,
                    values=hyperparameters(run) | self._model_rows(model),
                    hardware=self.hardware,
                    num_processes=self.num_processes,
                    seconds=cost["seconds"] or 0.0,
                    energy_kwh=cost["energy_kwh"],
                ),
                before={} if comparison is None else comparison.before,
                after=metrics if comparison is None else {**metrics, **comparison.after},
                verdict="" if comparison is None else f"{comparison.verdict} {comparison.note}",
                # without --eval-test, accuracies are measured on a part of the training images
                evaluated_on=run.evaluation.eval_test
                or ("" if comparison is None else run.data.name),
                picture=picture,
            )
        )

    def _model_rows(self, model: SelfViTPreTrainedModel) -> dict[str, str]:
        """Return precision and adapters, which depend on more than the configuration."""
        rows = {"Precision": self.precision, **self._pixel_rows()}
        if has_adapters(model):
            run = self.run
            # an adapter without a base on the Hub is of no use to others: see adapter_to_publish
            kept = "" if hub_id(str(run.start.init_from)) else ", and is not published"
            rows["Adapters"] = (
                f"{describe_adapters(run.lora, model)}. The encoder's own weights were frozen. The "
                f"adapters are merged into these weights; `{ADAPTER}/` has them separately, in "
                f"PEFT's format{kept}"
            )
        return rows

    def _pixel_rows(self) -> dict[str, str]:
        """Return the scale of the pixels, and how the patch embedding was adapted, if they are."""
        rows = {}
        declared = self.run.preprocessing.declared_range
        if declared is not None:
            low, high = declared
            rows["Pixel range"] = f"{low:g} to {high:g}, for files of more than eight bits"
        if self.adaptation is not None:
            rows["Channels"] = self.adaptation
        return rows

    def draw(self, model: SelfViTPreTrainedModel, processor: Any) -> str | None:
        """Draw attention maps into the run folder and return the file's name.

        Returns None without drawing if the run does not set `card_picture`.
        """
        if not (self.run.card.card_picture and isinstance(self.source, ImageSource)):
            return None
        images, _ = choose_images(self.source, NUM_PICTURED, processor=processor)
        path = Path(self.run.start.output) / CARD_PICTURE
        plot_attention_maps(model, processor, images, path)
        return CARD_PICTURE


def describe_data(description: str, data: str | list[str]) -> str:
    """Return the description of a source, with local paths and URLs reduced to their last part.

    Args:
        description: Description of the source.
        data: Data of the run: a path, URL or Hub id, or a list of files.
    """
    given = [data] if isinstance(data, str) else data
    for url in (path.rstrip("/") for path in given if is_url(path)):
        description = description.replace(url, display_name(url))
    local = [Path(path).expanduser() for path in given if not is_url(path) and not hub_id(path)]
    paths = [*local, *(path.absolute() for path in local)]
    for path in paths:
        if os.sep in str(path):
            description = description.replace(str(path), display_name(path))
    if isinstance(data, list):  # described by a folder that they have in common
        folders = {str(folder) for path in paths for folder in path.parents}
        for folder in sorted(folders, key=len, reverse=True):
            description = re.sub(rf" in {re.escape(folder)}(?=,|$)", "", description)
    return description


def hyperparameters(run: RunConfig) -> dict[str, str]:
    """Return the hyperparameters of a run, by their row titles in the card."""
    end = run.schedule.weight_decay_end
    decay = f"{run.schedule.weight_decay:g}" + ("" if end is None else f" to {end:g} (cosine)")
    kind = "" if run.optimizer.optimizer == OPTIMIZERS[0] else f" ({run.optimizer.optimizer})"
    views = {name: value for name, value in asdict(run.augmentation).items() if value is not None}
    schedule, optimizer = run.schedule, run.optimizer
    accumulation = run.runtime.gradient_accumulation_steps
    split = f", in {accumulation} micro-batches per process" if accumulation > 1 else ""
    rows = {
        "Batch": f"{schedule.batch_size} images{split}",
        "Optimizer": f"AdamW{kind}, betas {optimizer.adam_beta1:g} and {optimizer.adam_beta2:g}",
        "Learning rate": f"peak {schedule.learning_rate:.3g}, linear warm-up over "
        f"{100 * schedule.warmup_ratio:g} % of the steps, cosine decay to "
        f"{schedule.final_learning_rate:g}",
        "Weight decay": decay,
        "Drop path": f"{run.model.drop_path_rate:g}",
        "Augmentation": ", ".join(f"{name} {value}" for name, value in views.items()),
        "Seed": str(run.start.seed),
    }
    if run.optimizer.max_gradient_norm is not None:
        rows["Gradient norm"] = f"clipped to {run.optimizer.max_gradient_norm:g}"
    if run.optimizer.layer_decay != 1:
        rows["Layer decay"] = f"{run.optimizer.layer_decay:g} per block"
    if run.schedule.freeze_encoder_ratio > 0:
        frozen = "Frozen encoder" if run.lora.lora_rank is None else "Frozen adapters"
        rows[frozen] = f"first {100 * run.schedule.freeze_encoder_ratio:g} % of the steps"
    return rows


def device_name(device: torch.device) -> str:
    """Return the name of a GPU or CPU, the latter with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    name, cpus = platform.machine(), Path("/proc/cpuinfo")
    if cpus.is_file():  # Linux only; elsewhere the architecture is named
        found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), flags=re.MULTILINE)
        name = found[1] if found else name
    return f"CPU ({name}), threads: {torch.get_num_threads()}"


__all__ = ["RunCard", "check_card", "describe_data", "device_name", "hyperparameters"]
