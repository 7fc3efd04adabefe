"""Training steps of selfvit and of its peers, each implementation in a process of its own.

A process makes a step when it is asked to, so that the processes take turns, and each has a peak
of memory of its own.
"""

# B batch · R rows (tokens) · I, O width of the input and the output of a linear layer

from __future__ import annotations

import importlib
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.interleaved import pin_threads

SEED = 0
NUM_STEPS = 100  # of the schedules; the steps measured are from the middle
MAX_NORM = 3.0  # DINO, main_dino.py


@dataclass(frozen=True)
class Case:
    """Implementation to measure.

    Args:
        builder: Name of a function of this module that builds model and inputs, from `BUILDERS`.
        size: Name of the encoder's size.
        batch_size: Images of a step.
        in_bfloat16: Whether matrix products compute in bfloat16, through autocast.
        num_prototypes: Number of prototypes of DINO.
        attention: Attention implementation of transformers.
    """

    builder: str
    size: str
    batch_size: int
    in_bfloat16: bool = False
    num_prototypes: int = 4096
    attention: str = "sdpa"


def dino_start(case: Case) -> Any:
    """Return selfvit's DINO with random weights."""
    from selfvit import SelfViTConfig, SelfViTForDINO

    prototypes = {"num_prototypes": case.num_prototypes}
    return SelfViTForDINO(SelfViTConfig.from_name(case.size, dino_config=prototypes))


def dino_inputs(case: Case) -> dict[str, Tensor]:
    """Return 2 views of 224 and 6 of 96 pixels per image."""
    return {
        "global_views": torch.randn(2, case.batch_size, 3, 224, 224),
        "local_views": torch.randn(6, case.batch_size, 3, 96, 96),
    }


def selfvit_dino(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """Build DINO of selfvit."""
    return dino_start(case), dino_inputs(case)


def lightly_dino(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """Build DINO of Lightly's example."""
    from benchmarks.lightly_models import LightlyDINO

    return LightlyDINO(dino_start(case)), dino_inputs(case)


def selfvit_mae(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """Build MAE of selfvit; its decoder has 8 blocks of 512."""
    from selfvit import SelfViTConfig, SelfViTForMAE

    model = SelfViTForMAE(SelfViTConfig.from_name(case.size, mae_config={}))
    return model, {"pixel_values": torch.randn(case.batch_size, 3, 224, 224)}


class TransformersMAE(nn.Module):
    """MAE of transformers, with the hooks of a selfvit model."""

    def __init__(self, case: Case):
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        from selfvit import SelfViTConfig

        size = SelfViTConfig.from_name(case.size)
        config = ViTMAEConfig(
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            intermediate_size=size.intermediate_size,
            patch_size=size.patch_size,
            norm_pix_loss=True,
        )
        config._attn_implementation = case.attention
        self.model = ViTMAEForPreTraining(config)

    def forward(self, **inputs: Tensor) -> Any:
        """Return the output of the model."""
        return self.model(**inputs)

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return no arguments."""
        return {}

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Do nothing."""

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Do nothing."""


def transformers_mae(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """Build MAE of transformers; its decoder has 8 blocks of 512."""
    return TransformersMAE(case), {"pixel_values": torch.randn(case.batch_size, 3, 224, 224)}


BUILDERS = {
    builder.__name__: builder
    for builder in (selfvit_dino, lightly_dino, selfvit_mae, transformers_mae)
}

# Modules that a builder imports, in addition to selfvit
LIBRARIES = {
    "lightly_dino": "benchmarks.lightly_models",
    "transformers_mae": "transformers.models.vit_mae.modeling_vit_mae",
}


class Trainer:
    """Model, inputs and optimizer of a case; all cases share the code of the step.

    Args:
        case: What to build.
    """

    def __init__(self, case: Case):
        torch.manual_seed(SEED)
        self.case = case
        if case.builder.startswith("selfvit"):
            from selfvit.training.runtime.memory import freed_memory_kept

            self.memory = freed_memory_kept(torch.device("cpu"))  # as in `selfvit train`
            self.memory.__enter__()
        self.model, self.inputs = BUILDERS[case.builder](case)
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def step(self) -> float:
        """Make a step: forward, backward, clip, optimizer, teacher; return the loss."""
        progress = NUM_STEPS // 2, NUM_STEPS
        scheduled = self.model.scheduled_values(*progress)
        with torch.autocast("cpu", torch.bfloat16) if self.case.in_bfloat16 else nullcontext():
            loss = self.model(**self.inputs, **scheduled).loss
        loss.backward()
        self.model.before_optimizer_step(*progress)
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.after_optimizer_step(*progress)
        return loss.item()

    def products(self) -> Counter[tuple[int, int, int, bool]]:
        """Return the linear layers of a step: how often (R, I, O, whether gradients are needed)."""
        found: Counter[tuple[int, int, int, bool]] = Counter()

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Linear)
            rows = output.numel() // module.out_features
            found[rows, module.in_features, module.out_features, output.requires_grad] += 1

        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        hooks = [layer.register_forward_hook(record) for layer in layers]
        self.step()
        for hook in hooks:
            hook.remove()
        return found

    def limit(self, clock: Callable[[], float]) -> float:
        """Return the seconds of the matrix products of the linear layers alone.

        A step cannot be faster than these, however the rest is computed: forward, and with
        gradients the products with the weight and with the input.
        """
        dtype = torch.bfloat16 if self.case.in_bfloat16 else torch.float32
        seconds = 0.0
        for (rows, width, out, has_gradient), count in self.products().items():
            shapes = [((rows, width), (width, out))]
            if has_gradient:
                shapes += [((rows, out), (out, width)), ((out, rows), (rows, width))]
            for left, right in shapes:
                a, b = torch.randn(left, dtype=dtype), torch.randn(right, dtype=dtype)
                seconds += count * fastest(partial(torch.mm, a, b), clock)
        return seconds


def fastest(program: Callable[[], object], clock: Callable[[], float], num_calls: int = 5) -> float:
    """Return the seconds of the fastest of some calls."""
    program()
    times = []
    for _ in range(num_calls):
        start = clock()
        program()
        times.append(clock() - start)
    return min(times)


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")  # of this process alone; getrusage has that of its parent
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def serve(case: Case, clock_name: str, num_threads: int, connection: Connection) -> None:
    """Answer requests in the process of a case.

    Requests are "step" (seconds of a step), "peak" (bytes, without the libraries) and "limit"
    (seconds).
    """
    pin_threads(num_threads)
    importlib.import_module(LIBRARIES.get(case.builder, "selfvit"))
    of_libraries = peak_memory()
    clock, trainer = CLOCKS[clock_name], Trainer(case)
    while (request := connection.recv()) is not None:
        if request == "step":
            start = clock()
            trainer.step()
            connection.send(clock() - start)
        else:
            is_peak = request == "peak"
            connection.send(peak_memory() - of_libraries if is_peak else trainer.limit(clock))


class Process:
    """Process of a case.

    Args:
        case: What it trains.
        clock_name: "cpu" or "wall".
        num_threads: Number of cores and of torch's threads.
    """

    def __init__(self, case: Case, clock_name: str, num_threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(case, clock_name, num_threads, other), daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, request: str) -> Any:
        """Return the answer to a request of `serve`.

        Raises:
            EOFError: If the process has died.
        """
        self.connection.send(request)
        return self.connection.recv()

    def __enter__(self) -> Process:
        """Return the process itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        if kind is None:
            self.connection.send(None)
        else:
            self.process.terminate()
        self.process.join()


__all__ = ["Case", "Process", "Trainer", "peak_memory"]
