"""What a run tells its card: data, hyper-parameters, hardware, cost, figures, a picture."""

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
from ...evaluation.comparison import Comparison
from ...modeling.modeling_selfvit import SelfViTPreTrainedModel
from ...sharing.adapter_files import ADAPTER
from ...sharing.citations import objective_of
from ...sharing.model_card import CardContents, TrainingFacts, render_model_card
from ...sharing.provenance import derived_provenance, display_name, hub_id
from ...visualization.attention_maps import plot_attention_maps
from ...visualization.figures import require_matplotlib
from ...visualization.inputs import choose_images
from ..config.from_checkpoint import read_config
from ..config.run_config import Run
from ..config.training_config import OPTIMIZERS
from ..lora import adapters_in_words, count_parameters, has_adapters

PICTURE, NUM_PICTURED = "attention.png", 4


class RunCard:
    """The card of a run's checkpoints; made by every process, before anything is written.

    Args:
        run: what is trained and how.
        source: the images.
        num_steps: optimizer steps of the whole run.
        accelerator: with the devices.

    Raises:
        ImportError: if a picture is asked for, and matplotlib is missing.
        ValueError: if the license asked for is not known, or not that of the weights to start from;
            or a picture is asked for of a stream.
    """

    def __init__(
        self,
        run: Run,
        source: ImageSource | StreamingImageSource,
        num_steps: int,
        accelerator: Accelerator,
    ):
        training = run.training
        self.run, self.source, self.num_steps = run, source, num_steps
        self.provenance = derived_provenance(training.init_from, training.license)
        self.objective = objective_of(run.model)
        if self.objective is None and training.init_from is not None:
            self.objective = objective_of(read_config(training.init_from))
        if training.card_picture:
            require_matplotlib()
            if not isinstance(source, ImageSource):
                raise ValueError(
                    "card_picture draws some of the images, and those of a stream are not at hand; "
                    "leave it out, or read the data without streaming."
                )
        self.num_processes = accelerator.num_processes
        self.precision = accelerator.mixed_precision.replace("no", "float32")
        devices = Counter(gather_object([device_name(accelerator.device)]))
        self.hardware = ", ".join(
            name if count == 1 else f"{count} x {name}" for name, count in devices.items()
        )

    def render(
        self,
        model: SelfViTPreTrainedModel,
        step: int,
        metrics: Mapping[str, float],
        cost: Mapping[str, float | None],
        comparison: Comparison | None = None,
        picture: str | None = None,
    ) -> str:
        """Return the text of the card after some steps.

        Args:
            model: as trained so far.
            step: optimizer steps it took.
            metrics: of the last evaluation, or empty.
            cost: as `RunCost.read` gives it.
            comparison: with the weights that it started from, where there is one.
            picture: file beside the card, as `draw` names it.
        """
        run, training = self.run, self.run.training
        return render_model_card(
            CardContents(
                name=Path(training.output).resolve().name,
                architecture=run.architecture,
                config=run.model,
                num_parameters=count_parameters(model.vit).own,
                image_mean=training.image_mean,
                image_std=training.image_std,
                provenance=self.provenance,
                objective=self.objective,
                has_teacher=model.trained_encoder is not model.vit,
                has_code=training.save_code,
                training=TrainingFacts(
                    recipe=run.recipe,
                    data=described(self.source.description, training.data),
                    dataset=hub_id(training.data),
                    started_from=(
                        display_name(training.init_from) if training.init_from else "random weights"
                    ),
                    num_steps=step,
                    planned_steps=self.num_steps,
                    values=hyper_parameters(run) | self._of_the_model(model),
                    hardware=self.hardware,
                    num_processes=self.num_processes,
                    seconds=cost["seconds"] or 0.0,
                    energy_kwh=cost["energy_kwh"],
                ),
                before={} if comparison is None else comparison.before,
                after=metrics if comparison is None else {**metrics, **comparison.after},
                verdict="" if comparison is None else f"{comparison.verdict} {comparison.note}",
                # without data of their own, accuracies are of a part of the training images
                evaluated_on=training.eval_test or ("" if comparison is None else training.data),
                picture=picture,
            )
        )

    def _of_the_model(self, model: SelfViTPreTrainedModel) -> dict[str, str]:
        rows = {"Precision": self.precision}
        if has_adapters(model):
            training = self.run.training
            # a base that others cannot open: see adapter_to_publish
            kept = "" if hub_id(str(training.init_from)) else ", and is not published"
            rows["Adapters"] = (
                f"{adapters_in_words(training, model)}. The encoder's own weights stood still. "
                f"These weights have the adapters merged; `{ADAPTER}/` holds them alone, in PEFT's "
                f"format{kept}"
            )
        return rows

    def draw(self, model: SelfViTPreTrainedModel, processor: Any) -> str | None:
        """Draw the picture into the folder of the run, if it asks for one; return its name."""
        if not (self.run.training.card_picture and isinstance(self.source, ImageSource)):
            return None
        images, _ = choose_images(self.source, NUM_PICTURED)
        path = Path(self.run.training.output) / PICTURE
        plot_attention_maps(model, processor, images, path)
        return PICTURE


def described(description: str, data: str) -> str:
    """Return the description of a source without the folders that its data lies in."""
    path = str(Path(data).expanduser())
    lies_here = os.sep in path and hub_id(data) is None
    return description.replace(path, display_name(data)) if lies_here else description


def hyper_parameters(run: Run) -> dict[str, str]:
    """Return the values of a run by what the card calls them."""
    training = run.training
    end = training.weight_decay_end
    decay = f"{training.weight_decay:g}" + ("" if end is None else f" to {end:g}, by a cosine")
    kind = "" if training.optimizer == OPTIMIZERS[0] else f" ({training.optimizer})"
    views = {name: value for name, value in asdict(run.augmentation).items() if value is not None}
    rows = {
        "Batch": f"{training.batch_size} images, in {training.gradient_accumulation_steps} parts "
        "a process"
        if training.gradient_accumulation_steps > 1
        else f"{training.batch_size} images",
        "Optimizer": f"AdamW{kind}, betas {training.adam_beta1:g} and {training.adam_beta2:g}",
        "Learning rate": f"{training.learning_rate:.3g} at its peak, after a warm-up of "
        f"{100 * training.warmup_ratio:g} % of the steps, to {training.min_learning_rate:g} by a "
        "cosine",
        "Weight decay": decay,
        "Drop path": f"{run.model.drop_path_rate:g}",
        "Views": ", ".join(f"{name} {value}" for name, value in views.items()),
        "Seed": str(training.seed),
    }
    if training.max_gradient_norm is not None:
        rows["Gradient norm"] = f"at most {training.max_gradient_norm:g}"
    if training.layer_decay != 1:
        rows["Layer decay"] = f"{training.layer_decay:g} a block"
    if training.freeze_encoder_ratio > 0:
        frozen = "Frozen encoder" if training.lora_rank is None else "Frozen adapters"
        rows[frozen] = f"{100 * training.freeze_encoder_ratio:g} % of the steps"
    return rows


def device_name(device: torch.device) -> str:
    """Return what a device is: the name of a GPU or a CPU, and how many threads of it are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    name, cpus = platform.machine(), Path("/proc/cpuinfo")
    if cpus.is_file():  # Linux; elsewhere the kind of processor has to do
        found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), flags=re.MULTILINE)
        name = found[1] if found else name
    return f"CPU ({name}), threads: {torch.get_num_threads()}"


__all__ = ["PICTURE", "RunCard", "described", "device_name", "hyper_parameters"]
