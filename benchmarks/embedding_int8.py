"""Measure the engine in 8 bits with trained weights, beside transformers and quantized peers.

    pip install -e ".[openvino,onnx,bench]" nncf
    python -m benchmarks.embedding_int8 --images FOLDER --runs RUNS --quick
    python -m benchmarks.embedding_int8 --images FOLDER --runs RUNS --output TABLES.md

Rounding depends on the weights, so the encoders are trained first: RUNS/S-16 and RUNS/B-32 are runs
of `selfvit train` on the images, which this command starts where they are missing (about 12 minutes
on two cores), and which may be replaced by any other checkpoint of these sizes. Images are embedded
at 224 pixels in batches of 8. Everything runs in turns in one process, pinned to --threads cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.embedding import BASELINE, Program, size_of, stock_model
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
from selfvit import SelfViTConfig, SelfViTModel, build_processor, open_images
from selfvit.conversion.exporters.onnx import INT8_MODEL, Int8, write_onnx
from selfvit.embedding.embedder import Preparation
from selfvit.embedding.engines.choice import build
from selfvit.embedding.engines.cpu import multiplies_bfloat16
from selfvit.embedding.engines.fidelity import Fidelity
from selfvit.embedding.engines.int8 import calibrate
from selfvit.embedding.engines.interface import Engine, Selection
from selfvit.embedding.preprocessing import pixel_format_of
from selfvit.embedding.statistics import sample_images

PACKAGES = ("torch", "transformers", "openvino", "onnxruntime", "nncf", "timm")
BATCH_SIZE, IMAGE_SIZE, NUM_IMAGES = 8, 224, 192
SIZES = {  # name of selfvit and timm, and pixels of the training images
    "S/16": ("vits16", "vit_small_patch16_224", 64),
    "B/32": ("vitb32", "vit_base_patch32_224", 64),
}
TRAINING = (
    "--num-local-views 0 --num-prototypes 512 --head-hidden-size 256 --head-bottleneck-size 64 "
    "--batch-size 16 --max-steps 300 --warmup-ratio 0.1 --base-learning-rate 0.004 --cpu"
)
COLUMNS = (
    "Ratios are the time of the first row divided by that of the row, within a round: median, "
    "smallest and largest. The last column is the mean centered cosine to selfvit in float32, and "
    "the share of the 10 nearest neighbors kept, on the held-out images."
)


def train(name: str, images: Path, runs: Path) -> Path:
    """Return the checkpoint of a size, which is trained if it is missing."""
    run = runs / name.replace("/", "-")
    if (run / "config.json").exists():
        return run
    encoder, _, image_size = SIZES[name]
    config = size_of(encoder)
    command = [sys.executable, "-m", "selfvit.cli", "train", "dino_vits16_in1k", *TRAINING.split()]
    command += ["--data", str(images), "--output", str(run), "--image-size", str(image_size)]
    for field in ("hidden_size", "num_attention_heads", "patch_size"):
        command += ["--" + field.replace("_", "-"), str(getattr(config, field))]
    subprocess.run(command, check=True)
    return run


def pixels_of(images: Path) -> Tensor:
    """Return a sample of the images, preprocessed, (N, C, 224, 224) float32."""
    processor = build_processor(SelfViTConfig.from_name("vits16", image_size=IMAGE_SIZE))
    preparation = Preparation(processor, pixel_format_of(processor))
    sample = sample_images(open_images(str(images)), NUM_IMAGES)
    read = preparation.read(sample, [range(len(sample))], BATCH_SIZE)
    pixels = torch.cat([batch.pixels[0] for _, batch in read if batch.pixels is not None])
    return preparation.normalize(pixels)


def own_engines(model: SelfViTModel, pixels: Tensor) -> dict[str, Engine]:
    """Return the engines of OpenVINO in all precisions, the last one through the gate."""
    precisions = [torch.float32, torch.bfloat16] if multiplies_bfloat16() else [torch.float32]
    engines: dict[str, Engine] = {}
    for dtype in precisions:
        selection = Selection("openvino", dtype)
        engines[f"selfvit, openvino, {selection.dtype_name}"] = build(selection, model)
    with torch.inference_mode():
        engines["selfvit, openvino, int8"] = calibrate(model, pixels)
    return engines


def onnxruntime_int8(model: SelfViTModel, pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the graph of `selfvit export --to onnx --int8`: dynamic quantization."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        settings = Int8(-1.0, pixels[:BATCH_SIZE])
        write_onnx(model, build_processor(model.config), Path(place), int8=settings)
        session = onnxruntime.InferenceSession(Path(place) / INT8_MODEL, options)
    return lambda images: torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])


def nncf_int8(name: str, pixels: Tensor) -> Program:
    """Return timm's encoder in OpenVINO, with random weights and quantized by NNCF."""
    import nncf
    import openvino
    import timm

    nncf.set_log_level("ERROR")
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    batch = pixels[:BATCH_SIZE].contiguous()
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=batch, input=[batch.shape])
    quantized = nncf.quantize(
        converted,
        nncf.Dataset([part.numpy() for part in pixels[: 4 * BATCH_SIZE].split(BATCH_SIZE)]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=4,
    )
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if multiplies_bfloat16() else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(quantized, "CPU", options)
    return lambda: compiled([batch.numpy()], share_inputs=True)[0]


def table_of(
    name: str, checkpoint: Path, pixels: Tensor, num_rounds: int, clock: Callable[[], float]
) -> tuple[str, str]:
    """Measure one size, and return what the gate measured and a table."""
    model = SelfViTModel.from_pretrained(checkpoint).eval()
    stock = stock_model(size_of(SIZES[name][0]), "sdpa", torch.float32)
    embeds: dict[str, Callable[[Tensor], Tensor]] = dict(own_engines(model, pixels))
    rounding = str(embeds["selfvit, openvino, int8"].selection.quantization)  # type: ignore[attr-defined]
    if find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None:
        embeds["selfvit's graph in ONNX Runtime, dynamic int8"] = onnxruntime_int8(model, pixels)
    batch = pixels[:BATCH_SIZE].contiguous()

    def run_stock() -> Tensor:
        with torch.inference_mode():
            return stock(batch).last_hidden_state[:, 0]  # type: ignore[no-any-return]

    programs: dict[str, Program] = {BASELINE: run_stock}
    for label, embed in embeds.items():
        programs[label] = partial(embed, batch)
    if find_spec("nncf") is not None and find_spec("timm") is not None:
        programs["timm in OpenVINO, int8 by NNCF"] = nncf_int8(SIZES[name][1], pixels)
    times = measure(programs, num_rounds, clock=clock)
    held_out = pixels[torch.arange(len(pixels)) % 3 > 0].split(BATCH_SIZE)
    found = {
        label: torch.cat([embed(part) for part in held_out]) for label, embed in embeds.items()
    }
    expected = found["selfvit, openvino, float32"]
    for label, vectors in found.items():
        fidelity = Fidelity.measure(expected, vectors)
        note = f"{fidelity.mean_centered_cosine:.4f}, {fidelity.neighbors_kept:.1%}"
        times[label] = replace(times[label], note=note)
    return rounding, format_times(times, BASELINE, "images/s", BATCH_SIZE)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = build_parser("embedding_int8", __doc__, "Fewer rounds.")
    parser.add_argument("--images", type=Path, required=True, help="Folder of images.")
    parser.add_argument("--runs", type=Path, required=True, help="Folder of the trained encoders.")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    checkpoints = {name: train(name, options.images, options.runs) for name in options.sizes}
    pin_threads(options.threads)
    num_rounds = 5 if options.quick else 30
    clock, clock_name = choose_clock(options.cpu_time)
    lines = [
        f"{options.threads} threads; {versions(PACKAGES)}; {num_rounds} rounds; "
        f"{clock_name}. {COLUMNS}",
    ]
    pixels = pixels_of(options.images)
    for name, checkpoint in checkpoints.items():
        rounding, table = table_of(name, checkpoint, pixels, num_rounds, clock)
        lines += [f"### {name}, batch {BATCH_SIZE}", f"The gate: {rounding}.", table]
        print(f"\n{name}, batch {BATCH_SIZE}: {rounding}\n{table}", flush=True)
    if options.output is not None:
        write_section(options.output, machine(), "\n\n".join(lines))


if __name__ == "__main__":
    main()
