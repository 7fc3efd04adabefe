"""Compare training steps of selfvit with those of Lightly and transformers.

    pip install -e ".[train,bench]"
    python -m benchmarks.training --quick
    python -m benchmarks.training --output benchmarks/results/training.md

Weights and images are random, and reading images is not part of a step. Each implementation has a
process of its own, with a peak of memory of its own. Processes make steps in turns, so that a slow
moment of the machine affects all, and ratios are those within a round. All share the code of the
step: AdamW in its fused form, clipped gradients, autocast for bfloat16.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from benchmarks.interleaved import Times, build_parser, machine, versions, write_section
from benchmarks.training_sides import Case, Process
from selfvit.embedding.engines.cpu import multiplies_bfloat16

PACKAGES = ("torch", "transformers", "lightly", "timm")
MANY_PROTOTYPES = 65_536  # DINO, Sec. 4.1
QUICK_BATCH_SIZE = 4
Cases = dict[str, Case]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        num_rounds: Number of rounds.
        num_threads: Number of cores.
        clock: "cpu" or "wall".
    """

    num_rounds: int
    num_threads: int
    clock: str


def dino_cases(num_prototypes: int) -> Cases:
    """Return the cases of DINO S/16, batch 8, with 2 views of 224 and 6 of 96 pixels."""
    case = Case("lightly_dino", "vits16", 8, num_prototypes=num_prototypes)
    cases = {
        "Lightly's example, float32": case,
        "selfvit, float32": replace(case, builder="selfvit_dino"),
    }
    if multiplies_bfloat16():
        cases["Lightly's example, bfloat16"] = replace(case, in_bfloat16=True)
        cases["selfvit, bfloat16"] = replace(case, builder="selfvit_dino", in_bfloat16=True)
    return cases


def mae_cases(in_bfloat16: bool) -> Cases:
    """Return the cases of MAE B/16, batch 16, with a decoder of 8 blocks, in one precision."""
    stock = Case("transformers_mae", "vitb16", 16, in_bfloat16=in_bfloat16)
    name = "bfloat16" if in_bfloat16 else "float32"
    return {
        f"transformers ViTMAE, sdpa, {name}": stock,
        f"transformers ViTMAE, eager, {name}": replace(stock, attention="eager"),
        f"selfvit, {name}": replace(stock, builder="selfvit_mae"),
    }


def titled_cases(is_quick: bool) -> dict[str, Cases]:
    """Return the cases of each table by its title, the baseline first."""
    tables = {
        "DINO S/16, 4,096 prototypes": dino_cases(4096),
        "DINO S/16, 65,536 prototypes": dino_cases(MANY_PROTOTYPES),
        "MAE B/16, float32": mae_cases(False),
    }
    if multiplies_bfloat16():
        tables["MAE B/16, bfloat16"] = mae_cases(True)
    if is_quick:
        tables = {
            title: {
                name: replace(case, batch_size=QUICK_BATCH_SIZE)
                for name, case in cases.items()
                if "eager" not in name and name != "Lightly's example, bfloat16"
            }
            for title, cases in tables.items()
            if cases is not tables["DINO S/16, 65,536 prototypes"]
        }
    return tables


@dataclass(frozen=True)
class Measured:
    """Result of a case.

    Args:
        times: Seconds of each step.
        peak: Largest resident memory of the process without the libraries, in bytes.
        limit: Seconds of the matrix products of the linear layers alone.
    """

    times: Times
    peak: int
    limit: float


def measure(cases: Cases, plan: Plan) -> dict[str, Measured]:
    """Measure cases in turns, after one step of each that is not counted."""
    names = list(cases)
    times = {name: Times() for name in names}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(Process(case, plan.clock, plan.num_threads))
            for name, case in cases.items()
        }
        for process in processes.values():
            process.ask("step")
        for number in range(plan.num_rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                times[name].seconds.append(processes[name].ask("step"))
        return {
            name: Measured(times[name], process.ask("peak"), process.ask("limit"))
            for name, process in processes.items()
        }


def table_of(measured: dict[str, Measured]) -> str:
    """Return a table of cases; the first one is the baseline of the ratios."""
    header = ("", "s/step", "ratio", "smallest to largest", "peak memory, GiB", "memory", "limit")
    rows: list[tuple[str, ...]] = [header, ("---",) * len(header)]
    baseline = next(iter(measured.values()))
    for name, found in measured.items():
        median, low, high = found.times.ratio_to(baseline.times)
        rows.append(
            (
                name,
                f"{found.times.median:.2f}",
                f"{median:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{found.peak / 2**30:.2f}",
                f"{found.peak / baseline.peak:.0%}",
                f"{found.limit:.2f} s, {found.limit / found.times.median:.0%}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = build_parser(
        "training",
        __doc__,
        "Batches of 4 images and 3 rounds, without 65,536 prototypes: under two minutes.",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    clock = "cpu" if options.cpu_time else "wall"
    plan = Plan(3 if options.quick else 7, options.threads, clock)
    lines = [
        f"{options.threads} threads; {versions(PACKAGES)}; {plan.num_rounds} rounds; "
        f"{'CPU time' if options.cpu_time else 'wall-clock time'}. Ratios are the time of the "
        "first row divided by that of the row, within a round: median, smallest and largest. "
        "Memory is the largest resident memory of the process, less that of the imported "
        "libraries. The limit is the time "
        "of the matrix products of the linear layers alone, on the same shapes, and its share of "
        "the step.",
    ]
    for title, cases in titled_cases(options.quick).items():
        batch_size = next(iter(cases.values())).batch_size
        table = table_of(measure(cases, plan))
        lines += [f"### {title}, batch {batch_size}", table]
        print(f"\n{title}, batch {batch_size}\n{table}", flush=True)
    if options.output is not None:
        write_section(options.output, machine(), "\n\n".join(lines))


if __name__ == "__main__":
    main()
