"""Detect representation collapse from statistics of the training steps.

Every `monitor_steps` the model's forward pass records statistics it has computed anyway (see
`modeling/observations.py`). They become a line of log.jsonl and a few signals. A signal is low if
the outputs depend little, or not at all, on the images:

- teacher_information: how much a target reveals about which image it belongs to, as a fraction of
  the maximum (DINO, PMSN). Both kinds of collapse take it to 0 (DINO, arXiv 2104.14294, Sec. 5.3):
  all images get the same few prototypes, or every image gets all prototypes equally.
- prototypes_in_use: number of prototypes in use, for batches of 32 images and more. (Without a
  center, `dino_demo` falls to 1.6 of 128 within 300 steps and stays there, since KoLeo keeps its
  features apart.)
- feature_std: how far apart the directions of the images' features are.
- explained: how much better the prediction is than the mean of the images (MAE).

The loss or the teacher's entropy alone is not enough: at the start of a healthy run both are near
ln K. One low reading is not enough either. A signal counts as collapsed after PATIENCE low readings
in a row, if it was well above its floor before, or if it never was although the run trained enough:
the learning rate has reached half its peak, and the steps, each weighted by its learning rate as a
fraction of the peak, add up to `grace` or more.
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
from ...modeling.observations import Observations
from ..checkpoints.rollback import newest_before
from ..config.run_config import RunConfig
from ..exceptions import CollapseError
from ..state import TrainState
from .base import Callback
from .collapse_advice import WHAT_HAPPENS, advice_against, settings_at_risk
from .progress import ProgressLogger


class Signal(NamedTuple):
    """Thresholds of a signal.

    Args:
        floor: Value below which the outputs do not depend on the images.
        healthy: Value of a healthy run; a run that was above it and is below the floor now has
            collapsed.
        grace: Number of steps at the peak learning rate in which a run must rise above the floor.
    """

    floor: float
    healthy: float
    grace: float


PATIENCE = 3  # readings
# 2026-11-25, 1,000 steps of each demo recipe, lowest readings: information 0.16 (DINO) and 0.31
# (PMSN), prototypes 43 and 4.7, std 0.33 (MAE), explained 0.05 from step 70 on. MAE may learn
# slowly: batches of 6 took 260 steps and more to predict better than the mean.
SIGNALS = {
    "teacher_information": Signal(floor=0.02, healthy=0.04, grace=25),
    "prototypes_in_use": Signal(floor=2.0, healthy=4.0, grace=25),
    "feature_std": Signal(floor=0.05, healthy=0.1, grace=100),
    "explained": Signal(floor=0.02, healthy=0.2, grace=1000),
}
ENOUGH = 32  # images and prototypes, so that the number of prototypes in use is meaningful
UNIFORM_SHARE = 0.9  # fraction of ln K above which the teacher's entropy counts as uniform


@dataclass
class MonitorState:
    """State of the monitors, which each checkpoint stores.

    Args:
        peak_rate_steps: Number of steps so far, each weighted by its fraction of the peak rate.
        warmed_up: Whether the learning rate has reached half its peak.
        highest: Highest reading of each signal.
        low_since: Step of the first of the current low readings of each signal.
        num_low: Number of the current low readings of each signal.
        warned: Kinds of collapse that were reported.
    """

    peak_rate_steps: float = 0.0
    warmed_up: bool = False
    highest: dict[str, float] = field(default_factory=dict)
    low_since: dict[str, int] = field(default_factory=dict)
    num_low: dict[str, int] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def add_step(self, rate_fraction: float) -> None:
        """Count a step at a fraction of the peak learning rate."""
        self.peak_rate_steps += rate_fraction
        self.warmed_up = self.warmed_up or rate_fraction >= 0.5

    def judge(self, step: int, signals: dict[str, float]) -> list[str]:
        """Add a reading; return the names of the signals that have collapsed."""
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


class CollapseMonitor(Callback):
    """Reads the statistics of training steps; warns of a collapse, or ends the run.

    The main process decides for all processes; a reading is collective.

    Args:
        accelerator: Accelerator of the run.
        run: Configuration of the run.
        logger: Logger of metrics and warnings.
    """

    def __init__(self, accelerator: Accelerator, run: RunConfig, logger: ProgressLogger):
        self.accelerator = accelerator
        self.run = run
        self.logger = logger
        self.state = MonitorState()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from the readings before a checkpoint."""
        self.state = MonitorState(**saved)

    def state_dict(self) -> dict[str, Any]:
        """Return the readings so far."""
        return asdict(self.state)

    def on_train_begin(self, state: TrainState) -> None:
        """Observe the first step if it is due; warn of risky settings at the start of a run."""
        self._observe(state)
        if state.step == 0:
            for risk in settings_at_risk(self.run):
                self.logger.warn(risk)

    def on_step_end(self, state: TrainState) -> None:
        """Read the step's statistics, if it was observed.

        Raises:
            CollapseError: If there is a collapse, and `on_collapse` is not "warn".
        """
        schedule, on_collapse = self.run.schedule, self.run.monitoring.on_collapse
        if schedule.learning_rate > 0:
            self.state.add_step(state.metrics["learning_rate"] / schedule.learning_rate)
        observations = state.model.observations
        self._observe(state)
        if observations is None or observations.empty:
            return
        features = observations.features()
        metrics = observations.metrics()
        messages = [""]
        if self.accelerator.is_main_process:
            if len(features) > 1:
                metrics["feature_std"] = feature_standard_deviation(features)
                metrics["rankme"] = rankme(features)
            self.logger.log_metrics(state.step, metrics)
            num_prototypes = observations.num_prototypes
            messages = [self._judge(state.step, metrics, len(features), num_prototypes)]
        broadcast_object_list(messages)
        if on_collapse == "warn":
            return
        state.collapse_onset = min(self.state.low_since.values(), default=None)
        if messages[0]:
            onset = broadcast_object_list([state.collapse_onset or state.step])[0]
            raise CollapseError(messages[0], newest_before(onset, Path(self.run.start.output)))

    def _observe(self, state: TrainState) -> None:
        """Let the next step record statistics if it is due."""
        is_due = (state.step + 1) % self.run.monitoring.monitor_steps == 0
        state.model.observations = Observations() if is_due else None

    def _judge(
        self, step: int, metrics: dict[str, float], num_images: int, num_prototypes: int | None
    ) -> str:
        """Return the description of a collapse, or ""; warn once about each kind."""
        signals = {name: metrics[name] for name in SIGNALS if name in metrics}
        if min(num_images, num_prototypes or 0) < ENOUGH:
            signals.pop("prototypes_in_use", None)
        kinds: dict[str, list[str]] = {}
        for name in self.state.judge(step, signals):
            kinds.setdefault(kind_of(name, metrics, num_prototypes), []).append(name)
        messages = []
        for kind, names in kinds.items():
            readings = ", ".join(
                f"{name} {metrics[name]:.3f} since step {self.state.low_since[name]}"
                for name in names
            )
            message = (
                f"step {step}: {WHAT_HAPPENS[kind]} ({readings}). Settings to change, most likely "
                f"first: {'; '.join(advice_against(kind, self.run))}."
            )
            messages.append(message)
            if kind not in self.state.warned:
                self.state.warned.append(kind)
                self.logger.warn(message)
                self.logger.log_metrics(step, {"collapse": kind, "advice": message})
        return " ".join(messages)


def kind_of(signal: str, metrics: dict[str, float], num_prototypes: int | None) -> str:
    """Return the kind of collapse that a low signal indicates: "constant" or "uniform"."""
    if signal != "teacher_information" or num_prototypes is None:
        return "constant"
    share = metrics["teacher_entropy"] / math.log(num_prototypes)
    return "uniform" if share > UNIFORM_SHARE else "constant"


__all__ = ["CollapseMonitor", "MonitorState", "Signal", "kind_of"]
