"""Train a recipe on images: one script for every objective.

selfvit train RECIPE --data IMAGES --output RUN [OPTION ...]
accelerate launch -m selfvit.training.train RECIPE --data IMAGES --output RUN [OPTION ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from PIL.Image import Resampling
from transformers.utils import CONFIG_NAME
from transformers.utils.logging import disable_progress_bar

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import ImageSource
from ..data.inventory import opening_lines
from ..data.pixel_format import each_warning_once
from ..data.sources import Data, open_images
from ..embedding.preprocessing import build_processor
from ..errors import one_line_errors
from ..recipe_overview import overview
from .callbacks.base import close_all, notify
from .callbacks.build import build_callbacks
from .checkpoints.checkpointer import Checkpointer
from .checkpoints.model_writer import ModelWriter
from .checkpoints.rollback import roll_back
from .checkpoints.run_folder import (
    check_run_folder,
    check_shared_filesystem,
    prepare_run_folder,
    update_data_path,
)
from .config.arguments import RunRequest, build_run, open_request, parse_arguments, request_with
from .config.from_checkpoint import image_size_line
from .config.run_config import RunConfig
from .config.training_config import DataConfig
from .dataloader.loader import build_run_loader
from .dataloader.streaming import partition_stream
from .exceptions import CollapseError, NotPublishedError, RunInterrupted
from .loop import fit
from .model import build_trainable, channel_adaptation
from .optimization import build_optimizer
from .preflight.batch_size import with_saved_accumulation
from .preflight.checks import check, labeled_images
from .preflight.dry_run import describe_plan
from .preflight.folder import fit_to_folder
from .recipes import RECIPES, check_start
from .run_length import explain_too_short
from .runtime.accelerator import build_accelerator, shut_down, synchronize
from .runtime.compiler import check_compile, compile_encoders
from .runtime.errors import translate_errors
from .runtime.fsdp import FullModel, num_shards
from .runtime.memory import freed_memory_kept
from .runtime.precision import precision_line
from .runtime.signals import StopSignal
from .state import CheckedRun, TrainState

Source = ImageSource | StreamingImageSource


def train(
    run: RunConfig,
    source: Source,
    stop: StopSignal | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, float]:
    """Train a model and write it to the run folder.

    Args:
        run: Configuration of the run.
        source: Training images.
        stop: Signal handlers that ask the run to stop; without them, signals are not handled.
        remarks: Lines to print first.

    Returns:
        Metrics of the last evaluation or of the before/after report, by name; empty without.

    Raises:
        ValueError: If the run and its data contradict each other; nothing is written then.
        FileExistsError: If the run folder is not empty and may not be used.
        PermissionError: If the run is to be pushed to the Hub without the permission to do so.
        NonFiniteError: If the loss or the gradient norm is infinite or not a number.
        CollapseError: If the outputs collapse and `on_collapse` is not "warn".
        NoImprovementError: If the encoder had to improve and did not; everything is saved.
        NotPublishedError: If the model is trained, but could not be published.
        TimeoutError: If reading an image takes longer than `data_timeout`.
        RunInterrupted: If a signal asked to stop; the run is saved.
    """
    accelerator = _start(run)
    _print_inventory(source, accelerator, remarks)
    source = labeled_images(source, run, accelerator.print)
    checked = check(run, source, accelerator)
    run = checked.run
    set_seed(run.start.seed)
    model = build_trainable(run)
    check_run_folder(run)  # in all processes, so that each of them reports an error
    if run.start.dry_run:
        for line in [*_start_lines(checked, accelerator), _describe(checked, model, accelerator)]:
            accelerator.print(line)
        return {}
    _print_start(checked, accelerator)
    _open_run_folder(run, accelerator)

    state, checkpointer = _prepare(checked, model, accelerator)
    stop = stop or StopSignal()
    callbacks = build_callbacks(checked, state, checkpointer, stop)
    try:
        notify(callbacks, "on_init", state)
        saved = _resume(checked, state, checkpointer)
        _restore(callbacks, saved)
        if state.step == state.num_steps and (Path(run.start.output) / CONFIG_NAME).exists():
            accelerator.print(f"{run.start.output} is already trained to its end.")
            notify(callbacks, "on_result", state)
            return {}
        plan = replace(checked.plan, start_step=state.step)
        state.loader = build_run_loader(run, source, plan, saved.get("stream"))
        with freed_memory_kept(accelerator.device):
            fit(state, iter(state.loader), callbacks)
        if state.step == state.num_steps:
            state.stop_signal = stop.agreed(accelerator)  # while the result was measured or saved
        if state.step == state.num_steps and state.stop_signal is None:
            shut_down(accelerator)
            stop.release()
            notify(callbacks, "on_result", state)
            return state.evaluation
    finally:
        close_all(callbacks)
    raise _interrupted(state)


def _interrupted(state: TrainState) -> RunInterrupted:
    """Print that a signal stopped the run, and return the exception; collective."""
    assert state.stop_signal is not None
    interrupted = RunInterrupted(state.stop_signal, state.step, state.num_steps)
    state.accelerator.print(interrupted.message)
    shut_down(state.accelerator)
    return interrupted


def _restore(callbacks: Sequence[Any], saved: dict[str, Any]) -> None:
    """Give callbacks the states that were saved, under the names of their classes."""
    states = saved.get("callbacks", {})
    for callback in callbacks:
        if type(callback).__name__ in states:
            callback.load_state_dict(states[type(callback).__name__])


def _describe(checked: CheckedRun, model: Any, accelerator: Accelerator) -> str:
    def batches_of(plan: Any) -> Any:
        return build_run_loader(checked.run, checked.source, plan)

    precision, shards = accelerator.mixed_precision, num_shards(accelerator)
    return describe_plan(
        checked.run, model, checked.source, checked.plan, batches_of, precision, shards
    )


def _print_start(checked: CheckedRun, accelerator: Accelerator) -> None:
    """Print what a run does that its options do not say."""
    source, num_workers = checked.source, checked.run.data.num_workers
    if isinstance(source, StreamingImageSource):
        partition = partition_stream(source, checked.plan.num_processes, num_workers)
        accelerator.print(f"stream: {partition}")
    for line in _start_lines(checked, accelerator):
        accelerator.print(line)


def _start_lines(checked: CheckedRun, accelerator: Accelerator) -> list[str]:
    """Return what a run does that its options do not say, in lines to print."""
    run = checked.run
    lines, num_channels = [], run.model.num_channels
    precision = precision_line(run.runtime, accelerator.mixed_precision)
    if precision is not None:
        lines.append(precision)
    too_short = explain_too_short(run, checked.plan.num_steps)
    if too_short is not None:
        lines.append(f"warning: {too_short}")
    for objective in run.objectives().values():
        lines += [f"warning: {text}" for text in objective.contradictions()]
    if run.is_classifier and run.start.init_from is None:
        lines.append(
            f"warning: {run.recipe} starts from random weights, and its values are for a "
            "pretrained encoder; --init-from CHECKPOINT names one."
        )
    if run.is_classifier and not run.measures_accuracy:
        lines.append(
            "accuracy is not measured; give labeled images that are not trained on with "
            "--eval-train and --eval-test"
        )
    if num_channels != 3:
        plain = run.augmentation.describe_color()
        lines.append(f"augmentation for {num_channels} channels: {plain}")
    adaptation = channel_adaptation(run)
    return lines if adaptation is None else [*lines, f"{run.start.init_from}: {adaptation}"]


def _open_run_folder(run: RunConfig, accelerator: Accelerator) -> None:
    """Create or clean up the run folder, when all processes have checked it; collective."""
    synchronize(accelerator)
    if accelerator.is_main_process:
        prepare_run_folder(run)
    accelerator.wait_for_everyone()
    check_shared_filesystem(Path(run.start.output))


def _prepare(
    checked: CheckedRun, model: Any, accelerator: Accelerator
) -> tuple[TrainState, Checkpointer]:
    """Prepare the model and its optimizer for the processes and devices."""
    run, preprocessing = checked.run, checked.run.preprocessing
    if run.runtime.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    processor = build_processor(
        run.model,
        resize=preprocessing.resize,
        mean=preprocessing.image_mean,
        std=preprocessing.image_std,
        crop_ratio=preprocessing.crop_ratio,
        resample=Resampling[preprocessing.resample.upper()],
        pixel_range=preprocessing.declared_range,
    )
    full_model = FullModel(accelerator, model)
    if run.runtime.compile:
        compile_encoders(model)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, run.optimizer))
    writer = ModelWriter(full_model, processor, save_code=run.checkpoints.save_code)
    set_seed(run.start.seed, device_specific=True)  # drop path differs between processes
    state = TrainState(run, accelerator, model, wrapped, optimizer, checked.plan.num_steps)
    return state, Checkpointer(accelerator, optimizer, writer, run)


def _resume(checked: CheckedRun, state: TrainState, checkpointer: Checkpointer) -> dict[str, Any]:
    """Load the newest checkpoint of a resumed run; return what was saved with it, or {}.

    Raises:
        ValueError: If the dataset has changed since the checkpoint was saved.
    """
    run, source = checked.run, checked.source
    if not run.start.resume:
        return {}
    checkpoint = checkpointer.newest()
    saved = {} if checkpoint is None else checkpointer.load(checkpoint)
    if saved and saved["data"] != source.fingerprint:
        raise ValueError(
            f"the dataset has changed since {checkpoint} was saved: it was "
            f"{saved.get('images', run.data.data)}, and is {source.description}. Restore it "
            "(--data USER/NAME@REVISION for a Hub dataset), or start a new run with --init-from."
        )
    state.step = saved.get("step", 0)
    state.evaluation = saved.get("evaluation", {})
    if state.accelerator.is_main_process:
        update_data_path(run)
    return saved


def train_or_roll_back(
    run: RunConfig, source: Source, stop: StopSignal, remarks: Sequence[str] = ()
) -> dict[str, float]:
    """Train; after a collapse, continue from the last checkpoint before it, if the run asks to."""
    try:
        return train(run, source, stop, remarks)
    except CollapseError as error:
        if run.monitoring.on_collapse != "rollback" or error.kept is None:
            raise
        started = with_saved_accumulation(run) if run.runtime.find_batch_size else run
        again = roll_back(started, error.with_traceback(None))  # it would keep the model in memory
    return train(again, source, stop)


def open_source(data: DataConfig) -> Source:
    """Open the images of a run."""
    return open_images(
        data.data,
        split=data.split,
        streaming=data.streaming,
        image_column=data.image_column,
        label_column=data.label_column,
    )


def train_recipe(
    recipe: str | Path, *, data: Data, output: str | Path, **options: Any
) -> dict[str, float]:
    """Train a recipe, as `selfvit train` does; `selfvit.train` is this function.

    Args:
        recipe: Name of a recipe, or path of a run's `training.yaml`.
        data: Images, as in `open_images`.
        output: Run folder.
        options: Options of the command line by name, for example `max_steps=100`.

    Returns:
        Metrics of the last evaluation or of the before/after report, by name; empty without.

    Raises:
        ValueError: If a name or value is not allowed, or the run contradicts its data.
        OSError: If a file cannot be read or written.
    """
    if not isinstance(data, (str, Path)):
        data = [str(name) for name in data]
    values: dict[str, Any] = {"data": data, "output": output, **options}
    values = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return run_request(request_with(open_request(str(recipe), RECIPES), values))


def run_request(request: RunRequest) -> dict[str, float]:
    """Open the data of a request, build its run, and train."""
    if not request.start.resume:  # a run of an earlier version may have started without
        check_start(request.sections)
    source = open_source(request.data)
    if request.data.strict and source.inventory.left_out:
        first = source.inventory.left_out[0]
        raise ValueError(
            f"--strict allows no image to be left out, but {len(source.inventory.left_out)} are, "
            f"for example {first.name}: {first.reason}; repair or remove them."
        )
    num_images = None if isinstance(source, StreamingImageSource) else len(source)
    request, remarks = fit_to_folder(request, source)
    run = build_run(request, num_images)
    if not run.start.resume and (line := image_size_line(run)) is not None:
        remarks.append(line)
    with StopSignal() as stop, translate_errors(), each_warning_once():
        return train_or_roll_back(run, source, stop, remarks)


def _start(run: RunConfig) -> Accelerator:
    """Return the accelerator of a run, and prepare the process for it."""
    accelerator = build_accelerator(run)
    if run.runtime.compile:
        check_compile(accelerator)
    return accelerator


def _print_inventory(source: Source, accelerator: Accelerator, remarks: Sequence[str]) -> None:
    lines = opening_lines(source.inventory, source.label_rule)
    summary = source.inventory.summary()
    found = [] if summary is None else [summary]
    for line in [*remarks, *found, *lines]:
        accelerator.print(line)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(overview())
        return
    disable_progress_bar()  # that of transformers when it writes files
    request = parse_arguments(arguments, RECIPES)
    try:
        run_request(request)
    except NotPublishedError as error:
        print(f"trained: {request.start.output}")
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    if not request.start.dry_run:
        PartialState().print(f"trained: {request.start.output}")
        if request.data.strict and list(Path(request.start.output).glob("skipped*.csv")):
            PartialState().print("images were left out, with reasons in skipped.csv (--strict)")
            raise SystemExit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
