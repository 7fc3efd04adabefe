"""--mixed-precision auto takes bfloat16 where it is native, and says so."""

from __future__ import annotations

import pytest

from selfvit.embedding.engines.cpu import multiplies_bfloat16
from selfvit.training.config.training_config import RuntimeConfig
from selfvit.training.runtime.precision import mixed_precision_of, precision_line
from selfvit.training.train import main

from .tiny_runs import arguments

NATIVE = "bf16" if multiplies_bfloat16() else "no"
EMULATED = "bfloat16 and emulates it"


def on_cpu(mixed_precision: str | None) -> RuntimeConfig:
    return RuntimeConfig(mixed_precision=mixed_precision, cpu=True)


@pytest.mark.parametrize("requested", [None, "no", "bf16", "fp16", "auto"])
def test_only_auto_is_chosen_by_the_device(requested):
    expected = NATIVE if requested == "auto" else requested
    assert mixed_precision_of(on_cpu(requested)) == expected


def test_auto_and_emulation_are_said():
    assert precision_line(on_cpu("auto"), "bf16") == (
        "precision: bf16, because the device has instructions for bfloat16"
    )
    assert precision_line(on_cpu("auto"), "no") == (
        "precision: float32, because the device has no instructions for bfloat16"
    )
    assert precision_line(on_cpu(None), "no") is None
    warning = precision_line(on_cpu("bf16"), "bf16")
    assert warning is None if NATIVE == "bf16" else EMULATED in str(warning)


def test_a_run_prints_its_choice(two_classes, tmp_path, capsys):
    options = (
        "--mixed-precision",
        "auto",
        "--cpu",
        "--dry-run",
        "--max-steps",
        1,
        "--batch-size",
        8,
    )
    main(arguments("mae", two_classes, tmp_path / "run", *options))
    name = "bf16" if NATIVE == "bf16" else "float32"
    assert f"precision: {name}, because" in capsys.readouterr().out
