"""Detect runs from random weights that are too short for anything to be learned."""

from __future__ import annotations

from .config.run_config import RunConfig

# Images, repeated ones too. After as many, `dino_demo` is 6 points of k-NN above the untrained
# encoder (benchmarks/results/demo_curve_dino.md); on 300 images, 19,200 gained nothing.
MIN_IMAGES_SEEN = 32_000


def explain_too_short(run: RunConfig, num_steps: int) -> str | None:
    """Return why a run is too short, and the length to give it; None if it is long enough.

    Runs from pretrained weights are never too short: few steps may be what they need.

    Args:
        run: Configuration of the run.
        num_steps: Number of optimizer steps of the run.
    """
    batch_size = run.schedule.batch_size
    if run.start.init_from is not None or num_steps * batch_size >= MIN_IMAGES_SEEN:
        return None
    needed = -(-MIN_IMAGES_SEEN // batch_size)
    return (
        f"{num_steps:,} steps of {batch_size} images are too few to learn from random weights; "
        f"give --max-steps {needed} or more."
    )


__all__ = ["MIN_IMAGES_SEEN", "explain_too_short"]
