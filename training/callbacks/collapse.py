"""Collapse monitors: do the outputs still say anything of the images, and what to turn if not.

Every `monitor_steps` the model's forward pass leaves what it has computed anyway (see
`modeling/observations.py`), and here it becomes a line of log.jsonl and a few signals, each of them
low where the outputs say little or nothing of their images:

- teacher_information: how much a target tells which image it is of, as a share of the most it
  could (DINO, PMSN). Both kinds of collapse take it to 0 (DINO, arXiv 2104.14294, Sec. 5.3): all
  images the same few prototypes, or every image all prototypes alike.
- prototypes_in_use: of a batch of 32 images and more. (Without a center `dino_demo` comes to 1.6 of
  128 within 300 steps, and stays there, as KoLeo keeps its features apart.)
- feature_std: how far apart the directions of the images' features are.
- explained: how much better the prediction is than the mean of the images (MAE).

Neither the loss nor the teacher's entropy alone would do: at the start of a healthy run the loss is
near ln K, and the entropy too. Nor would one low reading: a signal is believed when it has been
under its floor PATIENCE times running, and either was well above before, or never was in spite of
training enough: the learning rate has been at half its peak, and the steps, each counted by its
learning rate's share of the peak, are `grace` or more.
"""

# N images · D hidden · K prototypes

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ...evaluation.label_free import feature_standard_deviation, rankme
from ...modeling.modeling_selfvit import SelfViTPreTrainedModel
from ...modeling.observations import Observations
from ..checkpoints.rollback import newest_before
from ..config.run_config import Run
from ..exceptions import CollapseError
from .collapse_advice import WHAT_HAPPENS, advice_against, settings_at_risk
from .progress import Reporter


class Signal(NamedTuple):
    """When a signal is low.

    Args:
        floor: below it, outputs say nothing.
        healthy: a run that was above it and is below the floor now has collapsed.
        grace: steps at the peak learning rate that a run may take to get above it.
    """

    floor: float
    healthy: float
    grace: float


PATIENCE = 3  # readings
# 2026-11-25, 1,000 steps of each demo's recipe, lowest readings: information 0.16 (DINO) and 0.31
# (PMSN), prototypes 43 and 4.7, standard deviation 0.33 (MAE), explained 0.05 from step 70 on. But
# MAE may learn slowly: batches of 6 took 260 steps and more to predict better than the mean.
SIGNALS = {
    "teacher_information": Signal(floor=0.02, healthy=0.04, grace=25),
    "prototypes_in_use": Signal(floor=2.0, healthy=4.0, grace=25),
    "feature_std": Signal(floor=0.05, healthy=0.1, grace=100),
    "explained": Signal(floor=0.02, healthy=0.2, grace=1000),
}
ENOUGH = 32  # images, and prototypes, for the number in use to be one of many
UNIFORM_SHARE = 0.9  # of ln K: a teacher's entropy above is called uniform


@dataclass
class MonitorState:
    """What the monitors remember; it is saved with each checkpoint.

    Args:
        peak_rate_steps: steps trained so far, those below the peak learning rate in proportion.
        warmed_up: whether the learning rate has been at half its peak.
        highest: of each signal so far.
        low_since: step of the first of the low readings of each signal, those running.
        num_low: how many these are.
        warned: kinds of collapse that were reported.
    """

    peak_rate_steps: float = 0.0
    warmed_up: bool = False
    highest: dict[str, float] = field(default_factory=dict)
    low_since: dict[str, int] = field(default_factory=dict)
    num_low: dict[str, int] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def trained(self, rate_share: float) -> None:
        """Take in a step at so large a share of the peak learning rate."""
        self.peak_rate_steps += rate_share
        self.warmed_up = self.warmed_up or rate_share >= 0.5

    def judge(self, step: int, signals: dict[str, float]) -> list[str]:
        """Take in a reading; return the signals that tell of a collapse."""
        collapsed = []
        for name, value in signals.items():
            self.highest[name] = max(value, self.highest.get(name, -math.inf))
            if value >= SIGNALS[name].floor:
                self.low_since.pop(name, None)
                self.num_low.pop(name, None)
                continue
            self.low_since.setdefault(name, step)
            self.num_low[name] = self.num_low.get(name, 0) + 1
            fell = self.highest[name] >= SIGNALS[name].healthy
            stuck = self.warmed_up and self.peak_rate_steps >= SIGNALS[name].grace
            if self.num_low[name] >= PATIENCE and (fell or stuck):
                collapsed.append(name)
        return collapsed


class CollapseMonitor:
    """Reads what training steps show, and reports, stops or asks to go back; one call a step.

    Args:
        accelerator: tells which process this is: the main one judges for all.
        model: in training; its `observations` are set for the steps to be read.
        run: says how often, and what to do about a collapse.
        reporter: takes figures and warnings.
        start_step: first step to do.
        state: what `state_dict` returned when the run was saved; None at its start.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: SelfViTPreTrainedModel,
        run: Run,
        reporter: Reporter,
        *,
        start_step: int,
        state: dict[str, Any] | None = None,
    ):
        self.accelerator = accelerator
        self.model = model
        self.run = run
        self.reporter = reporter
        self.state = MonitorState(**(state or {}))
        self._observe(start_step + 1)
        if start_step == 0:
            for risk in settings_at_risk(run):
                reporter.warn(risk)

    def state_dict(self) -> dict[str, Any]:
        """Return what to save with a checkpoint, as plain values."""
        return asdict(self.state)

    def step(self, done: int, learning_rate: float) -> None:
        """Take note of the end of a step, counted from 1; collective in the steps that are read.

        Raises:
            CollapseError: if there is a collapse, and `on_collapse` is not to warn only.
        """
        training = self.run.training
        if training.learning_rate > 0:
            self.state.trained(learning_rate / training.learning_rate)
        observations = self.model.observations
        self._observe(done + 1)
        if observations is None or observations.empty:
            return
        features = observations.features()
        figures = observations.metrics()
        messages = [""]
        if self.accelerator.is_main_process:
            if len(features) > 1:
                figures["feature_std"] = feature_standard_deviation(features)
                figures["rankme"] = rankme(features)
            self.reporter.record(done, figures)
            messages = [self._judge(done, figures, len(features), observations.num_prototypes)]
        broadcast_object_list(messages)
        if messages[0] and training.on_collapse != "warn":
            onset = broadcast_object_list([min(self.state.low_since.values(), default=done)])[0]
            self.reporter.close()  # a run that is rolled back opens its trackers again
            raise CollapseError(messages[0], newest_before(onset, Path(training.output)))

    def _observe(self, step: int) -> None:
        due = step % self.run.training.monitor_steps == 0
        self.model.observations = Observations() if due else None

    def _judge(
        self, done: int, figures: dict[str, float], num_images: int, num_prototypes: int | None
    ) -> str:
        """Return what is to be said of a collapse, or ""; warn, of each kind once."""
        signals = {name: figures[name] for name in SIGNALS if name in figures}
        if min(num_images, num_prototypes or 0) < ENOUGH:
            signals.pop("prototypes_in_use", None)
        kinds: dict[str, list[str]] = {}
        for name in self.state.judge(done, signals):
            kinds.setdefault(kind_of(name, figures, num_prototypes), []).append(name)
        messages = []
        for kind, names in kinds.items():
            seen = ", ".join(
                f"{name} {figures[name]:.3f} since step {self.state.low_since[name]}"
                for name in names
            )
            message = (
                f"step {done}: {WHAT_HAPPENS[kind]} ({seen}). To turn, the likeliest first: "
                f"{'; '.join(advice_against(kind, self.run))}."
            )
            messages.append(message)
            if kind not in self.state.warned:
                self.state.warned.append(kind)
                self.reporter.warn(message)
                self.reporter.record(done, {"collapse": kind, "advice": message})
        return " ".join(messages)


def kind_of(signal: str, figures: dict[str, float], num_prototypes: int | None) -> str:
    """Return which collapse a low signal tells of: "constant" or "uniform"."""
    if signal != "teacher_information" or num_prototypes is None:
        return "constant"
    share = figures["teacher_entropy"] / math.log(num_prototypes)
    return "uniform" if share > UNIFORM_SHARE else "constant"


__all__ = ["CollapseMonitor", "MonitorState", "kind_of"]
