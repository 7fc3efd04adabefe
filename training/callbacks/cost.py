"""What a run costs: seconds, and energy where codecarbon is installed, over all its resumes."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping
from typing import Any

FREE = {"seconds": 0.0, "energy_kwh": 0.0}  # before the first step


class RunCost:
    """Counts on from what the run had cost when its checkpoint was saved.

    What a killed run did after its last checkpoint is not counted: it was done again.

    Args:
        earlier: what `read` gave then; `FREE` for a new run.
        energy_meter: "codecarbon", where it is installed, or "none".
    """

    def __init__(self, earlier: Mapping[str, float | None], energy_meter: str):
        self._earlier = earlier
        self._meter = None
        # of a part that was not measured the energy is not known, and so of the whole
        if energy_meter == "codecarbon" and earlier["energy_kwh"] is not None:
            self._meter = _start_codecarbon()
        self._started = time.perf_counter()

    def read(self) -> dict[str, float | None]:
        """Return "seconds", and "energy_kwh" (kWh of this process's machine, or None)."""
        seconds = (self._earlier["seconds"] or 0.0) + time.perf_counter() - self._started
        energy = None
        if self._meter is not None:
            energy = (self._earlier["energy_kwh"] or 0.0) + self._meter.read()
        return {"seconds": seconds, "energy_kwh": energy}

    def close(self) -> None:
        """Stop measuring."""
        if self._meter is not None:
            self._meter.tracker.stop()


class _CodeCarbonMeter:
    """A codecarbon tracker, read in passing: on a flush it hands totals to its outputs."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.output_methods.base_output import BaseOutput

        class LastTotal(BaseOutput):
            energy_kwh = 0.0

            def out(self, total: Any, delta: Any) -> None:
                self.energy_kwh = total.energy_consumed

        self.last = LastTotal()
        # Offline, so that nothing asks the network where this machine is. Energy does not depend on
        # the country, which only turns it into carbon dioxide.
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
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before its log_level
    return _CodeCarbonMeter()


__all__ = ["FREE", "RunCost"]
