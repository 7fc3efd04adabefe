"""Compare the engines of selfvit with transformers, and with timm's encoder in OpenVINO.

    pip install -e ".[openvino,onnx,bench]"
    python -m benchmarks.embedding --quick
    python -m benchmarks.embedding --output benchmarks/results/embedding.md

Weights are random. The first tables are of preprocessed images at 224 pixels, the last one is of
JPEG files of 500 x 375 pixels. Everything runs in turns in one process, pinned to --threads cores.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel, pipeline

from benchmarks.interleaved import (
    build_parser,
    choose_clock,
    format_times,
    machine,
    measure,
    pin_threads,
    versions,
    write_section,
)
from benchmarks.photos import write_photos
from selfvit import Embedder, SelfViTConfig, SelfViTModel, build_processor, open_images
from selfvit.embedding.engines.choice import build, smallest_cosine
from selfvit.embedding.engines.cpu import multiplies_bfloat16
from selfvit.embedding.engines.interface import Selection

BASELINE = "transformers ViTModel, sdpa, float32"
PACKAGES = ("torch", "transformers", "openvino", "onnxruntime", "timm")
SIZES = {  # names of selfvit and timm
    "S/16": ("vits16", "vit_small_patch16_224"),
    "B/32": ("vitb32", "vit_base_patch32_224"),
    "B/16": ("vitb16", "vit_base_patch16_224"),
}
SEED = 0
Program = Callable[[], Any]


def size_of(name: str) -> SelfViTConfig:
    """Return the configuration of a size by name; B/32 has that of B/16 with larger patches."""
    if name == "vitb32":
        return SelfViTConfig.from_name("vitb16", patch_size=32)
    return SelfViTConfig.from_name(name)


def stock_model(config: SelfViTConfig, attention: str, dtype: torch.dtype) -> ViTModel:
    """Return the model of transformers with the same size."""
    stock = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        patch_size=config.patch_size,
        image_size=config.image_height_width[0],
        layer_norm_eps=config.layer_norm_eps,
    )
    stock._attn_implementation = attention
    return ViTModel(stock, add_pooling_layer=False).to(dtype).eval()


def precisions() -> list[torch.dtype]:
    """Return float32, and bfloat16 if this CPU does not emulate it."""
    return [torch.float32, torch.bfloat16] if multiplies_bfloat16() else [torch.float32]


def stock_programs(
    config: SelfViTConfig, pixels: Tensor, attentions: tuple[str, ...]
) -> dict[str, Program]:
    """Return the programs of transformers by name, the baseline first."""
    programs: dict[str, Program] = {}
    for dtype in precisions():
        for attention in attentions:
            model = stock_model(config, attention, dtype)
            images = pixels.to(dtype)

            def run(model: ViTModel = model, images: Tensor = images) -> Tensor:
                with torch.inference_mode():
                    return model(images).last_hidden_state[:, 0]

            name = str(dtype).removeprefix("torch.")
            programs[f"transformers ViTModel, {attention}, {name}"] = run
    assert next(iter(programs)) == BASELINE
    return programs


def selections(is_quick: bool = False) -> list[Selection]:
    """Return the engines that are installed, in the precisions that this CPU has.

    Args:
        is_quick: Whether to leave out ONNX Runtime, whose conversion takes 16 s.
    """
    found = [Selection("torch", dtype) for dtype in precisions()]
    if find_spec("openvino") is not None:
        found += [Selection("openvino", dtype) for dtype in precisions()]
    has_onnx = find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None
    if has_onnx and not is_quick:
        found.append(Selection("onnxruntime", torch.float32))
    return found


def own_programs(
    config: SelfViTConfig, pixels: Tensor, engines: list[Selection]
) -> dict[str, Program]:
    """Return the engines of selfvit by name, torch in float32 first."""
    torch.manual_seed(SEED)
    model = SelfViTModel(config).eval()
    programs: dict[str, Program] = {}
    for selection in engines:
        engine = build(selection, model)

        def run(engine: Any = engine) -> Tensor:
            with torch.inference_mode():
                return engine(pixels)

        programs[f"selfvit, {selection.engine}, {selection.dtype_name}"] = run
    return programs


def openvino_programs(name: str, pixels: Tensor) -> dict[str, Program]:
    """Return timm's encoder in OpenVINO, for the very shape of the images."""
    if find_spec("openvino") is None or find_spec("timm") is None:
        return {}
    import openvino
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=pixels, input=[pixels.shape])
    programs: dict[str, Program] = {}
    for dtype in precisions():
        precision = "f32" if dtype == torch.float32 else "bf16"
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(converted, "CPU", options)

        def run(compiled: Any = compiled) -> Any:
            return compiled([pixels.numpy()], share_inputs=True)[0]

        label = str(dtype).removeprefix("torch.")
        programs[f"timm in OpenVINO, {label}"] = run
    return programs


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        attentions: Attention of transformers.
        engines: Engines of selfvit.
        cases: Sizes of the encoders, each with a batch size.
        num_rounds: Number of rounds.
        num_files: Number of JPEG files.
        num_file_rounds: Number of rounds with these files.
        workers: Numbers of processes that decode.
        clock: Clock in seconds.
    """

    attentions: tuple[str, ...]
    engines: list[Selection]
    cases: tuple[tuple[str, int], ...]
    num_rounds: int
    num_files: int
    num_file_rounds: int
    workers: tuple[int, ...]
    clock: Callable[[], float]


def plan_of(is_quick: bool, num_threads: int, cpu_time: bool) -> Plan:
    """Return the plan of a run.

    Args:
        is_quick: Whether it takes less than two minutes.
        num_threads: Number of cores.
        cpu_time: Whether to measure CPU time, which does not include that of workers.
    """
    clock, _ = choose_clock(cpu_time)
    cases = (("S/16", 8), ("B/32", 8))
    if is_quick:
        return Plan(("sdpa",), selections(is_quick), cases, 5, 16, 3, (0,), clock)
    workers = (0,) if cpu_time else (0, num_threads)
    cases += (("S/16", 1), ("B/32", 1), ("B/16", 8))
    return Plan(("sdpa", "eager"), selections(), cases, 20, 128, 7, workers, clock)


def encoder_table(size: tuple[str, str], batch_size: int, plan: Plan) -> str:
    """Measure all encoders on preprocessed images, and return a table."""
    config = size_of(size[0])
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(batch_size, 3, *config.image_height_width, generator=generator)
    own = own_programs(config, pixels, plan.engines)
    programs = {
        **stock_programs(config, pixels, plan.attentions),
        **own,
        **openvino_programs(size[1], pixels),
    }
    num_calls = max(1, 4 // batch_size)
    times = measure(programs, plan.num_rounds, num_calls, plan.clock)
    expected = own["selfvit, torch, float32"]()
    for name, program in own.items():
        cosine = smallest_cosine(program(), expected)
        times[name] = replace(times[name], note=f"{cosine:.5f}")
    return format_times(times, BASELINE, "images/s", batch_size)


def files_table(plan: Plan) -> str:
    """Measure JPEG files to vectors with S/16, and return a table."""
    config = size_of("vits16")
    torch.manual_seed(SEED)
    model, processor = SelfViTModel(config).eval(), build_processor(config)
    stock = stock_model(config, "sdpa", torch.float32)
    task: Any = "image-feature-extraction"
    extract: Any = pipeline(
        task, model=stock, image_processor=processor, device="cpu", batch_size=8
    )
    with tempfile.TemporaryDirectory() as place:
        write_photos(Path(place), plan.num_files)
        files = sorted(str(path) for path in Path(place).glob("*.jpg"))
        source = open_images(place)
        programs: dict[str, Program] = {
            "transformers pipeline, batch 8": lambda: list(extract(files, return_tensors=True))
        }
        for selection in plan.engines:
            for num_workers in plan.workers:
                embedder = Embedder(
                    copy.deepcopy(model),
                    processor,
                    batch_size=8,
                    num_workers=num_workers,
                    engine=selection.engine,
                    dtype=selection.dtype,
                )
                label = (
                    f"selfvit, {selection.engine}, {selection.dtype_name}, {num_workers} workers"
                )
                programs[label] = lambda embedder=embedder: embedder.embed(source)  # type: ignore[misc]
        times = measure(programs, plan.num_file_rounds, clock=plan.clock)
    return format_times(times, "transformers pipeline, batch 8", "images/s", plan.num_files)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = build_parser(
        "embedding", __doc__, "Fewer rounds, without ONNX Runtime: in less than two minutes."
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    pin_threads(options.threads)
    plan = plan_of(options.quick, options.threads, options.cpu_time)
    lines = [
        f"{options.threads} threads; {versions(PACKAGES)}; {plan.num_rounds} rounds; "
        f"{choose_clock(options.cpu_time)[1]}. Ratios "
        "are the time of the first row divided by that of the row, within a round: median, "
        "smallest and largest. Cosines are the smallest to selfvit in torch and float32.",
    ]
    for name, batch_size in plan.cases:
        table = encoder_table(SIZES[name], batch_size, plan)
        lines += [f"### {name}, batch {batch_size}", table]
        print(f"\n{name}, batch {batch_size}\n{table}", flush=True)
    table = files_table(plan)
    lines += [f"### S/16, {plan.num_files} JPEG files of 500 x 375 pixels to vectors", table]
    print(f"\nJPEG files\n{table}", flush=True)
    if options.output is not None:
        write_section(options.output, machine(), "\n\n".join(lines))


if __name__ == "__main__":
    main()
