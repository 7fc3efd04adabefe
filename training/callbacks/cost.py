"""Cost of a run over all resumes: seconds, and energy if codecarbon is installed."""

from __future__ import annotations

import importlib.util
import logging
import time
from typing import Any

from accelerate import Accelerator

from ..state import TrainState
from .base import Callback

Cost = dict[str, float | None]


class CostMeter(Callback):
    """Measures the time of a run, and its energy in the main process.

    A resumed run continues from the cost in its checkpoint. Steps of a killed run after its last
    checkpoint are not counted, because they are repeated.

    Args:
        accelerator: Accelerator of the run.
        energy_meter: "codecarbon", which is used if it is installed, or "none".
    """

    def __init__(self, accelerator: Accelerator, energy_meter: str):
        self.energy_meter = energy_meter if accelerator.is_main_process else "none"
        self._earlier: Cost = {"seconds": 0.0, "energy_kwh": 0.0}
        self._meter: _CodeCarbonMeter | None = None
        self._started = time.perf_counter()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from an earlier cost."""
        self._earlier = saved

    def on_train_begin(self, state: TrainState) -> None:
        """Start measuring."""
        # If a part of the run was not measured, its total energy is unknown.
        if self.energy_meter == "codecarbon" and self._earlier["energy_kwh"] is not None:
            self._meter = _start_codecarbon()
        self._started = time.perf_counter()

    def read(self) -> Cost:
        """Return "seconds", and "energy_kwh" (kWh of the main process's machine, or None)."""
        seconds = (self._earlier["seconds"] or 0.0) + time.perf_counter() - self._started
        energy = None
        if self._meter is not None:
            energy = (self._earlier["energy_kwh"] or 0.0) + self._meter.read()
        return {"seconds": seconds, "energy_kwh": energy}

    def state_dict(self) -> dict[str, Any]:
        """Return the cost so far."""
        return self.read()

    def close(self) -> None:
        """Stop measuring."""
        if self._meter is not None:
            self._meter.tracker.stop()
            self._meter = None


class _CodeCarbonMeter:
    """Tracker of codecarbon, which passes its totals to an output at each flush."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.output_methods.base_output import BaseOutput

        class LastTotal(BaseOutput):
            energy_kwh = 0.0

            def out(self, total: Any, delta: Any) -> None:
                self.energy_kwh = total.energy_consumed

        self.last = LastTotal()
        # Offline, so that no request asks for the location of this machine. The country is only
        # used to convert energy to carbon dioxide.
        self.tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            save_to_file=False,
            save_to_api=False,
            output_handlers=[self.last],
            allow_multiple_runs=True,
            log_level="critical",
        )
        self.tracker.start()

    def read(self) -> float:
        """Return kWh since the start."""
        self.tracker.flush()
        return self.last.energy_kwh


def _start_codecarbon() -> _CodeCarbonMeter | None:
    if importlib.util.find_spec("codecarbon") is None:
        return None
    # codecarbon logs before its log_level is set
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    return _CodeCarbonMeter()


__all__ = ["Cost", "CostMeter"]
