"""--mixed-precision auto takes bfloat16 where it is native, and says so."""

from __future__ import annotations

import json

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


def test_a_run_has_its_own_precision_after_another_one_in_the_same_process(two_classes, tmp_path):
    options = ("--max-steps", 1, "--batch-size", 8)
    for name, precision in [("first", "bf16"), ("second", None), ("third", "bf16")]:
        given = () if precision is None else ("--mixed-precision", precision)
        main(arguments("mae", two_classes, tmp_path / name, *options, *given))
        state = json.loads((tmp_path / name / "trainer_state.json").read_text(encoding="utf-8"))
        assert state["mixed_precision"] == (precision or "no")


def test_a_resume_warns_of_another_precision(two_classes, tmp_path, capsys, monkeypatch):
    command = arguments("mae", two_classes, tmp_path, "--max-steps", 1, "--batch-size", 8)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    main([*command, "--save-steps", "1"])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    main([*command, "--save-steps", "1", "--resume"])
    assert "mixed precision bf16 then, no now" in capsys.readouterr().out
