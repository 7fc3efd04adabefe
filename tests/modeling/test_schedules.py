"""Schedules, compared with the reference at every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfvit.modeling.schedules import cosine_schedule, linear_schedule
from tests.golden import load_golden


@pytest.mark.parametrize(
    ("name", "start", "end", "num_warmup_steps"),
    [("lr", 5e-4, 1e-6, 21), ("weight_decay", 0.04, 0.4, 0), ("momentum", 0.996, 1.0, 0)],
)
def test_cosine_matches_the_reference_at_every_step(name, start, end, num_warmup_steps):
    golden = load_golden("schedules")[0][name]
    ours = [
        cosine_schedule(step, len(golden), start, end, num_warmup_steps=num_warmup_steps)
        for step in range(len(golden))
    ]
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64), golden, rtol=1e-12, atol=1e-15
    )


def test_warm_up_starts_at_zero_and_ends_at_the_start_value():
    values = [cosine_schedule(step, 10, 2.0, 0.0, num_warmup_steps=4) for step in range(10)]
    assert values[0] == 0
    assert values[3] == values[4] == 2.0
    assert all(later <= earlier for earlier, later in zip(values[3:], values[4:], strict=False))


def test_a_warm_up_of_one_step_has_no_effect():
    assert cosine_schedule(0, 10, 2.0, 0.0, num_warmup_steps=1) == 2.0


def test_a_cosine_is_halfway_in_the_middle():
    assert cosine_schedule(5, 10, 1.0, 0.0) == pytest.approx(0.5)


def test_a_run_with_warm_up_only_stays_finite():
    assert cosine_schedule(3, 4, 1.0, 0.0, num_warmup_steps=4) == 1.0


@pytest.mark.parametrize("num_warmup_steps", [2, 3, 30])
def test_linear_matches_linspace_then_stays_constant(num_warmup_steps):
    reference = np.concatenate([np.linspace(0.04, 0.07, num_warmup_steps), np.full(5, 0.07)])
    ours = [linear_schedule(s, num_warmup_steps, 0.04, 0.07) for s in range(num_warmup_steps + 5)]
    np.testing.assert_allclose(ours, reference, rtol=1e-12)


@pytest.mark.parametrize("num_warmup_steps", [0, 1])
def test_linear_without_a_warm_up_is_the_end_value(num_warmup_steps):
    assert linear_schedule(0, num_warmup_steps, 0.04, 0.07) == 0.07


def test_linear_matches_the_temperatures_of_the_reference():
    golden, config = load_golden("dino_loss")
    for epoch in range(5):
        temperature = linear_schedule(
            epoch,
            config["warmup_teacher_temp_epochs"],
            config["warmup_teacher_temp"],
            config["teacher_temp"],
        )
        assert temperature == pytest.approx(golden[f"step{epoch}.teacher_temp"].item(), rel=1e-12)
