"""Trainings of the comparison of all objectives: their runs, costs and accuracies."""

# N images · E embedding

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.image_sets import LabeledSet, accuracies, embed, needed
from benchmarks.stored_results import stored_result
from benchmarks.timed_training import (
    keep_encoder,
    run_of,
    settings_of,
    steps_within,
    train_timed,
    write_encoder,
)
from benchmarks.which_objective_table import TITLES
from selfvit.configuration.configuration_selfvit import SelfViTConfig
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.modeling_selfvit import SelfViTModel
from selfvit.training.config.run_config import RunConfig

DISTILL = "distill"
OBJECTIVES = tuple(TITLES)
TEACHERS = tuple(name for name in OBJECTIVES if name != DISTILL)
RATES = (1e-4, 3e-4, 8e-4, 2e-3)  # peak learning rates of AdamW
SWEEP_SEED = 100  # must not be one of the reported seeds
# The encoder of all objectives: that of `dino_demo` with four blocks. Its initial weights are four
# times larger than usual, as there; all objectives start from them.
ENCODER: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.08,
    "pooling": "cls+mean",
}
# Differences from the demo recipes: the decoder of MAE keeps its own initialization.
CHANGES: dict[str, dict[str, Any]] = {"mae": {"initializer_range": 0.02}}


@dataclass(frozen=True)
class Comparison:
    """Comparison of the objectives on one set of images.

    Args:
        images: Images.
        folder: Folder of the trainings.
        budget: CPU seconds of each training.
        rates: Learning rates to try.
        seeds: Seeds to report.
        num_timed_steps: Number of steps that measure the time of a step.
        teachers: Objectives whose best one trains the teacher of `distill`.
    """

    images: LabeledSet
    folder: Path
    budget: float
    rates: Sequence[float] = RATES
    seeds: Sequence[int] = (0, 1, 2)
    num_timed_steps: int = 40
    teachers: Sequence[str] = TEACHERS
    _known: dict[str, Any] = field(default_factory=dict)

    def result(self, name: str, settings: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """Return a stored result; a second call does not read its file again.

        Raises:
            ValueError: If the file was measured with other settings.
        """
        if name not in self._known:
            settings = {**settings, "num_images": len(self.images.pixels)}
            self._known[name] = stored_result(self.folder / f"{name}.json", settings, measure)
        return self._known[name]

    def start(self, seed: int) -> Path:
        """Return the checkpoint of the initial encoder, which all objectives start from."""
        folder, images = self.folder / f"start-seed-{seed}", self.images
        if not folder.exists():
            size: dict[str, Any] = {
                "image_size": images.image_size,
                "patch_size": images.patch_size,
            }
            config = SelfViTConfig(**ENCODER, **size)
            torch.manual_seed(seed)
            processor = build_processor(
                config, resize="square", mean=images.image_mean, std=images.image_std
            )
            write_encoder(Embedder(SelfViTModel(config), processor), folder)
        return folder

    def run(self, objective: str, rate: float, seed: int, num_steps: int) -> RunConfig:
        """Return the run of a training."""
        options: dict[str, Any] = {"seed": seed, "max_steps": num_steps, "batch_size": 64}
        options["init_from"] = str(self.start(seed))
        options["base_learning_rate"] = rate * 256 / options["batch_size"]
        if objective == DISTILL:
            options["teacher"] = str(self.encoder(*self.teacher(seed)))
        output = self.folder / f"run-{_name(objective, rate, seed)}"
        plain = run_of(f"{objective}_demo", self.images.source, output, **options)
        return plain.with_options({**self.images.augmentation, **CHANGES.get(objective, {})})

    def teacher(self, seed: int) -> tuple[str, float, int]:
        """Return the best other objective with its learning rate and a seed."""
        best = max(self.teachers, key=lambda name: self.best(name)[1])
        return best, self.best(best)[0], seed

    def encoder(self, objective: str, rate: float, seed: int) -> Path:
        """Return the checkpoint of the encoder of a training, which is trained if it is missing.

        Raises:
            ValueError: If the training diverged.
        """
        result = self.train(objective, rate, seed)
        if "diverged" in result:
            raise ValueError(
                f"{objective} diverged at the learning rate {rate:g} with seed {seed}, after it "
                f"did not with seed {SWEEP_SEED}; leave the rate out of --rates."
            )
        return self.folder / _name(objective, rate, seed)

    def num_steps(self, objective: str) -> int:
        """Return the number of steps of an objective, from the measured time of a step."""
        run = self.run(objective, self.rates[0], SWEEP_SEED, self.num_timed_steps)

        def measure() -> dict[str, Any]:
            cost = train_timed(run, self.images.source)
            shutil.rmtree(run.start.output)
            return cost

        cost = self.result(f"{objective}-time", {"num_steps": self.num_timed_steps}, measure)
        return steps_within(self.budget, cost["step_seconds"])

    def train(self, objective: str, rate: float, seed: int) -> dict[str, Any]:
        """Return cost and k-NN accuracy, by which rates are chosen, of a training."""
        run = self.run(objective, rate, seed, self.num_steps(objective))
        encoder = self.folder / _name(objective, rate, seed)

        def measure() -> dict[str, Any]:
            cost = train_timed(run, self.images.source)
            if "diverged" in cost:
                return cost
            keep_encoder(Path(run.start.output), encoder)
            splits = self.images.choosing
            vectors = embed(encoder, self.images, needed(splits))
            return cost | accuracies(vectors, self.images.labels, splits, with_probe=False)

        settings = {"budget": self.budget, "run": self._settings(run, seed)}
        return self.result(_name(objective, rate, seed), settings, measure)

    def _settings(self, run: RunConfig, seed: int) -> dict[str, Any]:
        parts = settings_of(run)
        if run.model.distill_config is not None:  # not its folder, which may be moved
            parts["teacher"] = self.teacher(seed)
            parts["model"]["distill_config"] = run.model.distill_config.to_dict() | {"teacher": ""}
        return parts

    def sweep(self, objective: str) -> dict[float, dict[str, Any]]:
        """Return the result of each learning rate, with the seed of the sweep."""
        return {rate: self.train(objective, rate, SWEEP_SEED) for rate in self.rates}

    def best(self, objective: str) -> tuple[float, float]:
        """Return the best learning rate, the first of several equal ones, and its accuracy.

        Raises:
            ValueError: If the training diverged with every rate.
        """
        found = {
            rate: result["knn_20"]
            for rate, result in self.sweep(objective).items()
            if "diverged" not in result
        }
        if not found:
            raise ValueError(f"{objective} diverged with every rate; give lower --rates.")
        best = max(found, key=found.__getitem__)
        return best, found[best]

    def measure(self, objective: str) -> dict[str, Any]:
        """Return all results of an objective: the sweep, the chosen rate, the seeds."""
        rate, _ = self.best(objective)
        seeds = {}
        for seed in self.seeds:
            encoder = self.encoder(objective, rate, seed)
            cost = dict(self.train(objective, rate, seed))
            found = self.accuracies_of(encoder.name, partial(embed, encoder, self.images), cost)
            if objective == DISTILL:
                cost["teacher_seconds"] = self.train(*self.teacher(seed))["seconds"]
            seeds[str(seed)] = cost | found
        return {
            "rate": rate,
            "sweep": [{"rate": rate, **found} for rate, found in self.sweep(objective).items()],
            "seeds": seeds,
            **({"teacher": self.teacher(self.seeds[0])[0]} if objective == DISTILL else {}),
        }

    def accuracies_of(
        self, name: str, vectors: Callable[[], np.ndarray], training: dict[str, Any] | None = None
    ) -> dict[str, float]:
        """Return the reported accuracies of vectors, which are computed if there is no result.

        Args:
            name: Name of the encoder.
            vectors: Function that returns the vectors, (N, E).
            training: Result of the training of the encoder, or None.
        """
        images = self.images
        return self.result(
            f"{name}-accuracies",
            {"training": training},
            lambda: accuracies(vectors(), images.labels, images.reporting),
        )

    def measure_all(self) -> dict[str, Any]:
        """Return the results of all objectives, of untrained encoders and of raw pixels."""
        images = self.images
        return {
            "title": images.title,
            "note": images.note,
            "raw_pixels": self.accuracies_of("raw-pixels", images.raw_pixels),
            "untrained": {
                str(seed): self.accuracies_of(
                    f"start-seed-{seed}",
                    partial(embed, self.start(seed), images),
                )
                for seed in self.seeds
            },
            "objectives": {name: self.measure(name) for name in OBJECTIVES},
        }

    def missing_teachers(self) -> list[str]:
        """Return the objectives without results that `distill` needs to choose its teacher."""
        names = {
            name: [_name(name, rate, SWEEP_SEED) for rate in self.rates] for name in self.teachers
        }
        return [
            name
            for name, results in names.items()
            if not all((self.folder / f"{result}.json").exists() for result in results)
        ]


def _name(objective: str, rate: float, seed: int) -> str:
    return f"{objective}-rate-{rate:g}-seed-{seed}"


__all__ = ["DISTILL", "OBJECTIVES", "RATES", "SWEEP_SEED", "TEACHERS", "Comparison"]
