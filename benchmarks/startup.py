"""Measure how long each command takes on almost nothing: its help, and a run on ten images.

    python -m benchmarks.startup --quick
    python -m benchmarks.startup --output benchmarks/results/startup.md

Each command runs in a process of its own, in turns. Its time is nearly all imports, as the encoder
and the images are tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.interleaved import machine, versions, write_section
from selfvit import SelfViTConfig, SelfViTModel, build_processor

PACKAGES = ("torch", "torchvision", "transformers", "typer")
HEAVY = ("torch", "transformers", "datasets", "sklearn", "matplotlib")
COMMANDS = {  # by title, in the order in which they run: later ones read what earlier ones wrote
    "--help": "--help",
    "embed --help": "embed --help",
    "train --help": "train --help",
    "stats": "stats --data images",
    "embed": "embed checkpoint --data images --output vectors --num-workers 0 --overwrite",
    "evaluate": "evaluate checkpoint --train images --num-workers 0",
    "search, a row": "search vectors --like a/0.png",
    "search, a new image": "search vectors images/a/0.png",
    "outliers": "outliers vectors",
    "select": "select vectors -n 4 --output chosen.txt --overwrite",
    "duplicates": "duplicates vectors",
    "export": "export checkpoint --to timm --output exported --overwrite",
    "visualize pca": "visualize pca checkpoint --data images --output pca.png --overwrite",
}
RUN = """
import atexit, json, sys
def write():
    found = [name for name in {heavy!r} if name in sys.modules]
    print(json.dumps([len(sys.modules), found]), file=sys.stderr)
atexit.register(write)
sys.argv[0] = "selfvit"
from selfvit.cli import app
app(prog_name="selfvit")
"""


@dataclass
class Started:
    """Runs of one command.

    Args:
        seconds: Seconds of each run.
        cpu_seconds: Processor seconds of each run.
        num_modules: Number of modules that it had imported at its end.
        heavy: Names of the imported packages of `HEAVY`.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    num_modules: int = 0
    heavy: list[str] = field(default_factory=list)

    def add_run(self, words: list[str], folder: Path) -> None:
        """Run the command in a new process.

        Raises:
            RuntimeError: If it fails.
        """
        command = [sys.executable, "-c", RUN.format(heavy=HEAVY), *words]
        before, begun = os.times(), time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        self.seconds.append(time.perf_counter() - begun)
        after = os.times()
        used = after.children_user - before.children_user
        self.cpu_seconds.append(used + after.children_system - before.children_system)
        if done.returncode:
            raise RuntimeError(f"selfvit {' '.join(words)} failed:\n{done.stderr}")
        self.num_modules, self.heavy = json.loads(done.stderr.splitlines()[-1])


def write_inputs(folder: Path) -> None:
    """Write a tiny checkpoint and ten images of two classes."""
    config = SelfViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    SelfViTModel(config).save_pretrained(folder / "checkpoint")
    build_processor(config).save_pretrained(folder / "checkpoint")
    generator = np.random.default_rng(0)
    for number in range(10):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def table_of(started: dict[str, Started]) -> str:
    """Return a table with a row per command."""
    header = ("selfvit", "seconds", "smallest to largest", "CPU seconds", "modules", "imports")
    rows: list[tuple[str, ...]] = [header, ("---",) * len(header)]
    for title, found in started.items():
        low, high = min(found.seconds), max(found.seconds)
        rows.append(
            (
                title,
                f"{np.median(found.seconds):.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{np.median(found.cpu_seconds):.2f}",
                str(found.num_modules),
                ", ".join(found.heavy),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="One round: less than two minutes.")
    parser.add_argument("--output", type=Path, help="Markdown file with a section per CPU.")
    options = parser.parse_args(arguments)
    num_rounds = 1 if options.quick else 7
    started = {title: Started() for title in COMMANDS}
    with tempfile.TemporaryDirectory() as place:
        write_inputs(Path(place))
        for _ in range(num_rounds):
            for title, words in COMMANDS.items():
                started[title].add_run(words.split(), Path(place))
    table = table_of(started)
    print(table)
    if options.output is not None:
        head = f"{versions(PACKAGES)}; medians of {num_rounds} rounds."
        write_section(options.output, machine(), f"{head}\n\n{table}")


if __name__ == "__main__":
    main()
