"""Measure training and embedding on one GPU, beside Lightly, transformers and timm.

    pip install -e ".[bench]"
    python -m benchmarks.gpu --output benchmarks/results/gpu.md
    python -m benchmarks.gpu --device cpu --quick

Everything computes in bfloat16 (training through autocast), on random pixels that are on the device
already, with and without `torch.compile`. Programs run one after the other; compilation and warm-up
are not counted. After six and a half minutes, the programs that are left are not measured, and the
table says so. The second command makes one step of tiny models, to see that the benchmark runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from benchmarks.interleaved import versions, write_section
from selfvit import SelfViTConfig, SelfViTForDINO, SelfViTForMAE, SelfViTModel

PACKAGES = ("torch", "transformers", "lightly", "timm")
SECONDS = 390.0  # in which programs may start; the last one ends before eight minutes
# Peak of dense matrix products in bfloat16, 10^12 operations per second, from NVIDIA's data sheets;
# the first name that the name of the device contains.
PEAKS = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
MAX_NORM = 3.0  # DINO, main_dino.py
STEP, NUM_STEPS = 50, 100  # of the schedules
Build = Callable[["Plan"], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        device: Device.
        fields: Fields that make the encoders smaller.
        batch_sizes: Images per batch, by objective.
        num_prototypes: Number of prototypes of DINO.
        num_decoder_layers: Number of blocks of the decoder of MAE.
        num_warmups: Number of calls before those that are measured.
        num_calls: Number of calls that are measured.
        compiles: Whether to compile, in turn.
    """

    device: torch.device
    fields: dict[str, int]
    batch_sizes: dict[str, int]
    num_prototypes: int
    num_decoder_layers: int
    num_warmups: int
    num_calls: int
    compiles: tuple[bool, ...]

    def config(self, name: str, **fields: Any) -> SelfViTConfig:
        """Return the configuration of an encoder by name."""
        return SelfViTConfig.from_name(name, **{**self.fields, **fields})

    def views(self, objective: str, *count: int, size: int = 224) -> Tensor:
        """Return random pixels, (*count, B, 3, size, size)."""
        shape = (*count, self.batch_sizes[objective], 3, size, size)
        return torch.randn(shape, device=self.device)


def plan_of(device: torch.device, is_quick: bool) -> Plan:
    """Return the plan of a run; a quick one has tiny models."""
    if is_quick:
        tiny = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2}
        sizes = {"dino": 2, "mae": 2, "embed": 2}
        return Plan(device, tiny, sizes, 64, 1, 1, 1, (False,))
    sizes = {"dino": 64, "mae": 256, "embed": 256}
    return Plan(device, {}, sizes, 65_536, 8, 3, 20, (False, True))


def selfvit_dino(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build DINO of selfvit with S/16, two views of 224 and six of 96 pixels."""
    config = plan.config("vits16", dino_config={"num_prototypes": plan.num_prototypes})
    views = {
        "global_views": plan.views("dino", 2),
        "local_views": plan.views("dino", 6, size=96),
    }
    return SelfViTForDINO(config), views


def lightly_dino(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build DINO of Lightly's example, with the same weights."""
    from benchmarks.lightly_models import LightlyDINO

    model, views = selfvit_dino(plan)
    assert isinstance(model, SelfViTForDINO)
    return LightlyDINO(model), views


def selfvit_mae(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build MAE of selfvit with B/16; its decoder has 8 blocks of 512."""
    model = SelfViTForMAE(
        plan.config("vitb16", mae_config={"decoder_num_layers": plan.num_decoder_layers})
    )
    return model, {"pixel_values": plan.views("mae")}


def transformers_mae(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build MAE of transformers with the same sizes."""
    config = ViTMAEConfig(
        **_sizes(plan.config("vitb16")),
        decoder_num_hidden_layers=plan.num_decoder_layers,
        norm_pix_loss=True,
    )
    config._attn_implementation = "sdpa"
    return ViTMAEForPreTraining(config), {"pixel_values": plan.views("mae")}


def selfvit_encoder(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the encoder of selfvit with S/16."""
    return SelfViTModel(plan.config("vits16")), {"pixel_values": plan.views("embed")}


def transformers_encoder(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the encoder of transformers with S/16."""
    config = ViTConfig(**_sizes(plan.config("vits16")))
    config._attn_implementation = "sdpa"
    return ViTModel(config, add_pooling_layer=False), {"pixel_values": plan.views("embed")}


def timm_encoder(plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build the encoder of timm with S/16."""
    from timm.models.vision_transformer import VisionTransformer

    config = plan.config("vits16")
    model = VisionTransformer(
        img_size=config.image_height_width,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_classes=0,
    )
    return model, {"x": plan.views("embed")}


def _sizes(config: SelfViTConfig) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {name: getattr(config, name) for name in (*names, "patch_size")}


# Title of a table, objective, and its programs with the package that each needs.
TABLES: list[tuple[str, str, dict[str, tuple[Build, str]]]] = [
    (
        "DINO, S/16, a training step",
        "dino",
        {"Lightly": (lightly_dino, "lightly"), "selfvit": (selfvit_dino, "torch")},
    ),
    (
        "MAE, B/16, a training step",
        "mae",
        {"transformers": (transformers_mae, "transformers"), "selfvit": (selfvit_mae, "torch")},
    ),
    (
        "Embedding, S/16",
        "embed",
        {
            "transformers": (transformers_encoder, "transformers"),
            "timm": (timm_encoder, "timm"),
            "selfvit": (selfvit_encoder, "torch"),
        },
    ),
]


def train_step(
    model: Any, forward: Any, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Make a step: forward, backward, clip, optimizer, teacher."""
    scheduled = {}
    if hasattr(model, "scheduled_values"):
        scheduled = model.scheduled_values(STEP, NUM_STEPS)
    device = next(iter(inputs.values())).device
    with torch.autocast(device.type, torch.bfloat16):
        loss = forward(**inputs, **scheduled).loss
    loss.backward()
    if hasattr(model, "before_optimizer_step"):
        model.before_optimizer_step(STEP, NUM_STEPS)
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()
    if hasattr(model, "after_optimizer_step"):
        model.after_optimizer_step(STEP, NUM_STEPS)


@torch.inference_mode()
def embed(forward: Any, inputs: dict[str, Tensor]) -> None:
    """Compute the vectors of a batch."""
    forward(**inputs)


def program_of(build: Build, objective: str, plan: Plan, compiles: bool) -> Callable[[], None]:
    """Return a function that makes one training step, or embeds one batch."""
    torch.manual_seed(0)
    model, inputs = build(plan)
    model = model.to(plan.device)
    if objective == "embed":
        model = model.to(torch.bfloat16).eval()
        inputs = {name: pixels.to(torch.bfloat16) for name, pixels in inputs.items()}
        return partial(embed, torch.compile(model) if compiles else model, inputs)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    forward = torch.compile(model) if compiles else model
    return partial(train_step, model, forward, inputs, optimizer)


def seconds_of(program: Callable[[], None], plan: Plan) -> float:
    """Return the median seconds of a call, after a warm-up."""

    def wait() -> None:
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)

    for _ in range(plan.num_warmups):
        program()
    wait()
    times = []
    for _ in range(plan.num_calls):
        start = time.perf_counter()
        program()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def operations_of(build: Build, objective: str, plan: Plan) -> float:
    """Return the floating-point operations of a call, as torch counts them."""
    program = program_of(build, objective, plan, compiles=False)
    program()  # creates the states of the optimizer
    with FlopCounterMode(display=False) as counter:
        program()
    return float(counter.get_total_flops())


def peak_of(device: torch.device) -> float | None:
    """Return the peak of a device in operations per second; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value * 1e12 for part, value in PEAKS.items() if part in name), None)


def row_of(
    label: str, build: Build, objective: str, plan: Plan, compiles: bool, operations: float
) -> tuple[str, ...]:
    """Measure one program, and return its row: images/s, peak memory, share of the peak."""
    is_cuda = plan.device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(plan.device)
    torch._dynamo.reset()
    try:
        seconds = seconds_of(program_of(build, objective, plan, compiles), plan)
    except Exception as error:  # a peer that cannot be compiled is a result
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return label, f"failed: {reason[:80]}", "", ""
    memory = f"{torch.cuda.max_memory_allocated(plan.device) / 2**30:.2f}" if is_cuda else ""
    peak = peak_of(plan.device)
    share = "" if peak is None else f"{operations / seconds / peak:.1%}"
    return label, f"{plan.batch_sizes[objective] / seconds:.1f}", memory, share


def measure_table(
    objective: str, programs: dict[str, tuple[Build, str]], plan: Plan, deadline: float
) -> str:
    """Measure the programs of a table that can start before a deadline, and return it."""
    header = ("", "images/s", "peak memory in GiB", "share of the bfloat16 peak")
    rows: list[tuple[str, ...]] = [header, ("---",) * len(header)]
    operations = operations_of(programs["selfvit"][0], objective, plan)
    for compiles in plan.compiles:
        for name, (build, package) in programs.items():
            label = f"{name}, compiled" if compiles else name
            if find_spec(package) is None:
                rows.append((label, "not installed", "", ""))
            elif time.monotonic() > deadline:
                rows.append((label, "not measured: no time left", "", ""))
            else:
                rows.append(row_of(label, build, objective, plan, compiles, operations))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="Device: cuda or cpu.")
    parser.add_argument("--quick", action="store_true", help="One step of tiny models.")
    parser.add_argument("--output", type=Path, help="Markdown file with a section per GPU.")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a GPU, and torch finds none; nothing was measured.")
    plan, deadline = plan_of(device, options.quick), time.monotonic() + SECONDS
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU, tiny models"
    lines = [
        f"{versions(PACKAGES)}; bfloat16; median of {plan.num_calls} calls after "
        f"{plan.num_warmups}. The operations of a share are those of selfvit without compilation, "
        "as torch's FlopCounterMode counts them, in all rows of a table.",
    ]
    for title, objective, programs in TABLES:
        table = measure_table(objective, programs, plan, deadline)
        title = f"{title}, batch {plan.batch_sizes[objective]}"
        lines += [f"### {title}", table]
        print(f"\n{title}\n{table}", flush=True)
    if options.output is not None:
        write_section(options.output, name, "\n\n".join(lines))


if __name__ == "__main__":
    main()
