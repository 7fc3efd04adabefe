"""Measure several programs in turns in one process, and write their times as a table.

Every round runs all of them, and each round starts with another one, so that a temporary slowdown
of the machine affects all. Ratios are those within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.objectives import processor_name
from selfvit.embedding.engines.cpu import describe_cpu


@dataclass(frozen=True)
class Times:
    """Seconds of one program in each round.

    Args:
        seconds: Seconds for the same work, one value per round.
        note: Further result for the table, for example a cosine.
    """

    seconds: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def ratio_to(self, baseline: Times) -> tuple[float, float, float]:
        """Return median, smallest and largest of how many times as fast as another one it is."""
        ratios = [b / own for b, own in zip(baseline.seconds, self.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def measure(
    programs: Mapping[str, Callable[[], object]],
    num_rounds: int,
    num_calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Run programs in turns.

    Args:
        programs: Functions by name; each is called once more before the first round.
        num_rounds: Number of rounds.
        num_calls: Number of calls of each program per round.
        clock: Function that returns seconds: `time.process_time` counts those that this process
            computes, which other processes on its cores change little.
    """
    names = list(programs)
    times = {name: Times() for name in names}
    for program in programs.values():
        program()
    for number in range(num_rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            begun = clock()
            for _ in range(num_calls):
                programs[name]()
            times[name].seconds.append((clock() - begun) / num_calls)
    return times


def build_parser(name: str, description: str | None, quick: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all these benchmarks have.

    Args:
        name: Name of the module.
        description: Text of its help.
        quick: Help of `--quick`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, help="Markdown file with a section per CPU.")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="Measure CPU seconds instead of seconds, for a busy machine; with --threads 1.",
    )
    return parser


def choose_clock(cpu_time: bool) -> tuple[Callable[[], float], str]:
    """Return the clock that `--cpu-time` asks for, and its name."""
    return (time.process_time, "CPU time") if cpu_time else (time.perf_counter, "wall-clock time")


def pin_threads(num_threads: int) -> None:
    """Let this process use the first cores only, with a thread of torch on each.

    Args:
        num_threads: Number of cores.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])
    torch.set_num_threads(num_threads)


def machine() -> str:
    """Return the name of the CPU and the instructions that matter for speed."""
    return f"{processor_name()} ({describe_cpu()})"


def versions(packages: Iterable[str]) -> str:
    """Return the installed packages with their versions, in one line."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def format_times(
    times: Mapping[str, Times], baseline: str, unit: str, per_call: int, note: str = "cosine"
) -> str:
    """Return a table with the rate of each program and its ratio to one of them.

    Args:
        times: Times by name.
        baseline: Name of the program that the others are compared with.
        unit: What is counted: "images/s".
        per_call: Number of them in a call.
        note: Title of the notes; "" for no such column.
    """
    header = ("", unit, "ratio", "smallest to largest", *([note] if note else []))
    rows: list[tuple[str, ...]] = [header, ("---",) * len(header)]
    for name, found in times.items():
        median, low, high = found.ratio_to(times[baseline])
        rate = f"{per_call / found.median:.1f}"
        row = (name, rate, f"{median:.2f}", f"{low:.2f} to {high:.2f}", found.note)
        rows.append(row[: len(header)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_section(path: Path, title: str, text: str) -> None:
    """Replace the section of a page that has this title, or add it.

    Args:
        path: Markdown file.
        title: Title of the section, without the marks before it.
        text: New content.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    head, *sections = page.split("\n## ")
    kept = [section for section in sections if section.partition("\n")[0] != title]
    parts = [head.rstrip("\n"), *(s.strip("\n") for s in [*kept, f"{title}\n\n{text}"])]
    path.write_text("\n\n## ".join(parts) + "\n", encoding="utf-8")


__all__ = [
    "Times",
    "build_parser",
    "choose_clock",
    "format_times",
    "machine",
    "measure",
    "pin_threads",
    "versions",
    "write_section",
]
