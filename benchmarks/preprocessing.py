"""Compare decoding and preprocessing of JPEG files with transformers and torchvision.

    pip install -e ".[train]"
    python -m benchmarks.preprocessing --quick
    python -m benchmarks.preprocessing --output benchmarks/results/preprocessing.md

From files to normalized pixel values of 224 x 224, in turns in one process, pinned to one core
unless --threads says otherwise. The files are cut from photos of --photos; without photos that are
large enough, they are synthesized.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import load_image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

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
from benchmarks.photos import FOLDERS, find_photos, write_photos
from selfvit import SelfViTConfig, SelfViTModel, build_processor, open_images
from selfvit.embedding.engines.choice import smallest_cosine
from selfvit.embedding.preparation import Preparation
from selfvit.embedding.preprocessing import pixel_format_of

PACKAGES = ("torch", "torchvision", "transformers", "pillow", "simplejpeg")
BATCH_SIZE = 8
SEED = 0
Program = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """Files to measure.

    Args:
        size: (width, height) in pixels.
        num_files: Number of files.
        num_rounds: Number of rounds.
    """

    size: tuple[int, int]
    num_files: int
    num_rounds: int

    @property
    def title(self) -> str:
        """Title of the table."""
        return f"{self.num_files} JPEG files of {self.size[0]} x {self.size[1]} pixels"


QUICK = (Case((500, 375), 16, 5), Case((4000, 3000), 4, 3))
FULL = (Case((500, 375), 64, 15), Case((4000, 3000), 12, 7))


def stock_programs(files: Sequence[str], config: SelfViTConfig) -> dict[str, Program]:
    """Return the programs of transformers and torchvision by name, the baseline first."""
    processor: Any = build_processor(config)
    processors = {type(processor).__name__: processor}
    settings = {name: getattr(processor, name) for name in ("size", "crop_size", "resample")}
    settings |= {"image_mean": processor.image_mean, "image_std": processor.image_std}
    processors["BitImageProcessorPil"] = BitImageProcessorPil(**settings)
    programs: dict[str, Program] = {}
    for name, one in processors.items():

        def run(one: Any = one) -> Tensor:
            images = [one(load_image(file), return_tensors="pt") for file in files]
            return torch.cat([image["pixel_values"] for image in images])

        programs[f"transformers {name}"] = run
    if find_spec("torchvision") is not None:
        programs["torchvision.io, transforms.v2"] = _torchvision_program(files, processor)
    return programs


def _torchvision_program(files: Sequence[str], processor: Any) -> Program:
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(processor.size["shortest_edge"], v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(processor.crop_size["height"]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    return lambda: torch.stack(
        [transform(decode_image(file, mode=ImageReadMode.RGB)) for file in files]
    )


def own_programs(folder: Path, config: SelfViTConfig) -> dict[str, Program]:
    """Return the program of selfvit by name."""
    processor = build_processor(config)
    preparation = Preparation(processor, pixel_format_of(processor))
    source = open_images(str(folder))

    def run() -> Tensor:
        read = preparation.read(source, [range(source.num_positions)], BATCH_SIZE)
        return torch.cat([preparation.normalize(batch.pixels[0]) for _, batch in read])

    return {"selfvit": run}


def table_of(case: Case, photos: Sequence[Path], clock: Callable[[], float]) -> str:
    """Measure files of one size, and return a table."""
    config = SelfViTConfig.from_name("vits16")
    torch.manual_seed(SEED)
    model = SelfViTModel(config).eval()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder, case.num_files, case.size, find_photos(photos, case.size))
        files = sorted(str(path) for path in folder.glob("*.jpg"))
        programs = {**stock_programs(files, config), **own_programs(folder, config)}
        baseline = next(iter(programs))
        times = measure(programs, case.num_rounds, clock=clock)
        expected = _vectors(model, programs[baseline]())
        for name, program in programs.items():
            cosine = smallest_cosine(_vectors(model, program()), expected)
            times[name] = replace(times[name], note=f"{cosine:.5f}")
    return format_times(times, baseline, "images/s", case.num_files)


def _vectors(model: SelfViTModel, pixel_values: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model.embed(part) for part in pixel_values.split(BATCH_SIZE)])


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = build_parser(
        "preprocessing", __doc__, "Fewer files and rounds: in less than two minutes."
    )
    parser.add_argument("--threads", type=int, default=1, help="Number of cores.")
    parser.add_argument(
        "--photos", type=Path, nargs="*", default=FOLDERS, help="Folders with photos."
    )
    options = parser.parse_args(arguments)
    pin_threads(options.threads)
    clock, clock_name = choose_clock(options.cpu_time)
    cases = QUICK if options.quick else FULL
    lines = [
        f"{options.threads} threads; {versions(PACKAGES)}; {cases[0].num_rounds} and "
        f"{cases[1].num_rounds} rounds; {clock_name}. "
        "Ratios are the time of the first row divided by that of the row, within a round: median, "
        "smallest and largest. Cosines are the smallest to the first row, of the vectors of a "
        "ViT-S/16 with random weights.",
    ]
    for case in cases:
        num_photos = len(find_photos(options.photos, case.size))
        title = f"{case.title}, {f'of {num_photos} photos' if num_photos else 'synthesized'}"
        table = table_of(case, options.photos, clock)
        lines += [f"### {title}", table]
        print(f"\n{title}\n{table}", flush=True)
    if options.output is not None:
        write_section(options.output, machine(), "\n\n".join(lines))


if __name__ == "__main__":
    main()
