"""FSDP2 with two processes compared with one process; sharded_runs.py explains the patch."""

import json
import re
import shutil
import signal

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModel

from selfvit.training.checkpoints.integrity import find_corruption
from selfvit.training.config.training_config import OptimizerConfig
from selfvit.training.optimization import build_optimizer
from selfvit.training.preflight.dry_run import memory_without_activations
from selfvit.training.runtime.fsdp import configure_fsdp
from selfvit.training.train import main

from ..objectives import OBJECTIVES as CONTRACTS
from .processes import AtLogLine, Pause, kill_self, wait_until
from .sharded_runs import (
    LAUNCH_FILES,
    call_sharded,
    environment_of,
    output_of_failed_run,
    run_sharded,
    start_sharded,
)
from .test_errors import fill
from .test_train import assert_equal_tensors, assert_trained_alike
from .tiny_runs import ENCODER, LOOP, OBJECTIVES, arguments, log_of, weights_of

# drop path draws different numbers in each process, so it is disabled
COMPARABLE = ("--batch-size", 8, "--drop-path-rate", 0, "--no-save-code")

VERSION_1 = {
    "FSDP_VERSION": "1",
    "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "false",
}


def assert_same_metrics(one, two):
    for step in one:
        for name in ("loss", "gradient_norm"):
            assert two[step][name] == pytest.approx(one[step][name], rel=1e-4), (step, name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_sharded_processes_train_like_one_process(objective, two_classes, tmp_path):
    options = (
        *(*COMPARABLE, "--max-steps", 3, "--gradient-accumulation-steps", 2, "--monitor-steps", 1),
        *("--max-gradient-norm", 1, "--layer-decay", 0.9),
    )
    main(arguments(objective, two_classes, tmp_path / "one", *options))
    command = arguments(objective, two_classes, tmp_path / "two", *options)
    run_sharded([*command, "--activation-checkpointing"], tmp_path)
    checkpoint = tmp_path / "two" / "checkpoints" / "step-00000003"
    assert len(list((checkpoint / "optimizer").glob("*.distcp"))) == 2
    assert_same_metrics(log_of(tmp_path / "one"), log_of(tmp_path / "two"))
    assert_trained_alike(tmp_path / "one", tmp_path / "two", objective, two_classes, tmp_path)
    assert AutoModel.from_pretrained(checkpoint).config.hidden_size == 32


def _describe_sharding(name, file):
    """Take one step and write the FSDP units and the shapes of the shards to a file."""
    objective = next(objective for objective in CONTRACTS if objective.name == name)
    accelerator = Accelerator()
    configure_fsdp(accelerator, "adamw_torch_fused")
    torch.manual_seed(0)
    model = objective.model_class(objective.config())
    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5))
    memory = memory_without_activations(model, optimizer, num_processes=2, num_shards=2)
    groups = [(group["scale"], group["decays"]) for group in optimizer.param_groups]
    model, optimizer = accelerator.prepare(model, optimizer)
    assert [(group["scale"], group["decays"]) for group in optimizer.param_groups] == groups
    inputs = objective.inputs(torch.Generator().manual_seed(accelerator.process_index), 4)
    accelerator.backward(model(**inputs).loss)
    optimizer.step()
    model.after_optimizer_step(0, 2)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    for buffer in model.buffers():
        assert not isinstance(buffer, DTensor)
        assert torch.equal(accelerator.reduce(buffer, "mean"), buffer)  # equal in both
    if accelerator.is_main_process:
        shards = [parameter.to_local() for parameter in model.parameters()]
        assert memory.weights == sum(tensor.nbytes for tensor in [*shards, *model.buffers()])
        moments = [values["exp_avg"].to_local() for values in optimizer.state.values()]
        assert memory.optimizer == 2 * sum(tensor.nbytes for tensor in moments)
        sharding = {
            "units": [
                name for name, module in model.named_modules() if isinstance(module, FSDPModule)
            ],
            "shapes": {
                name: list(parameter.to_local().shape)
                for name, parameter in model.named_parameters()
            },
        }
        file.write_text(json.dumps(sharding))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_block_is_an_fsdp_unit_and_the_teacher_is_sharded_like_the_student(
    objective, tmp_path
):
    call_sharded(_describe_sharding, objective, tmp_path / "sharding.json")
    sharding = json.loads((tmp_path / "sharding.json").read_text())
    units, shapes = set(sharding["units"]), sharding["shapes"]
    teacher = {f"vit.layers.{index}" for index in range(3)} | {"vit.embeddings"}
    student = {f"student.{unit}" for unit in teacher}
    without_teacher = {
        "distill": {"head"},
        "lejepa": {"head"},
        "mae": {"decoder", "decoder.layers.0", "decoder.layers.1"},
    }
    heads = without_teacher.get(objective, student | {"head", "student.head"})
    assert teacher | heads | {""} <= units
    for name, shape in shapes.items():
        if name.startswith("student."):
            assert shapes[name.removeprefix("student.")] == shape, name
    assert shapes["vit.layers.0.mlp.fc1.weight"] == [64, 32]  # half of (128, 32)


def test_a_killed_sharded_run_resumes_exactly_and_can_switch_between_one_process_and_shards(
    two_classes, tmp_path
):
    # the encoder is frozen when the checkpoint is saved, so it has no optimizer state there
    options = (*COMPARABLE, "--max-steps", 4, "--save-steps", 2, "--freeze-encoder-ratio", 0.5)

    def command(name, *more):
        return arguments("dino", two_classes, tmp_path / name, *options, *more)

    resume = ("--resume",)
    run_sharded(command("uninterrupted"), tmp_path)
    hooks = (AtLogLine(3, kill_self), None)
    processes = start_sharded(command("killed"), tmp_path, hooks)
    assert [process.exit_code() for process in processes] == [-signal.SIGKILL, 2]
    shutil.copytree(tmp_path / "killed", tmp_path / "gathered")
    run_sharded(command("killed", *resume), tmp_path)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "uninterrupted")
    assert_equal_tensors(weights_of(tmp_path / "killed"), weights_of(tmp_path / "uninterrupted"))

    main(command("one"))
    main(command("gathered", *resume))
    assert_same_metrics(log_of(tmp_path / "one"), log_of(tmp_path / "gathered"))

    shutil.copytree(tmp_path / "one", tmp_path / "sharded")
    (tmp_path / "sharded" / "config.json").unlink()
    shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "step-00000004")
    run_sharded(command("sharded", *resume), tmp_path)
    assert_same_metrics(log_of(tmp_path / "one"), log_of(tmp_path / "sharded"))


def test_a_full_disk_is_an_error_in_all_processes_that_leaves_the_last_checkpoint_intact(
    two_classes, small_disk, tmp_path
):
    output = small_disk / "out"
    options = (*COMPARABLE, "--max-steps", 4, "--save-steps", 2, "--save-total-limit", 1)
    pause = Pause(tmp_path / "paused")
    hooks = (AtLogLine(3, pause), None)
    processes = start_sharded(arguments("dino", two_classes, output, *options), tmp_path, hooks)
    wait_until(pause.path.exists, processes[0])
    saved = output / "checkpoints" / "step-00000002"
    state = sum(path.stat().st_size for path in (saved / "optimizer").glob("*.distcp"))
    fill(small_disk / "ballast", shutil.disk_usage(small_disk).free - state // 2)
    pause.path.unlink()
    assert [process.exit_code() for process in processes] == [2, 2]
    for process in processes:
        assert f"the disk of {output} is full, or" in process.printed
    assert find_corruption(saved) is None
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_two_replicas_of_two_shards_train_like_one_process(two_classes, tmp_path):
    options = (*COMPARABLE, "--max-steps", 2)
    main(arguments("dino", two_classes, tmp_path / "one", *options))
    replicas = environment_of(LAUNCH_FILES / "4_nodes_fsdp2.yaml") | {
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    command = arguments("dino", two_classes, tmp_path / "four", *options)
    run_sharded(command, tmp_path, num_processes=4, **replicas)
    assert_same_metrics(log_of(tmp_path / "one"), log_of(tmp_path / "four"))


def test_sharded_processes_have_the_report_and_the_best_checkpoint_of_one_process(
    two_classes, tiny_checkpoint, tmp_path
):
    pytest.importorskip("sklearn")

    def command(name):
        return [
            *("dino_finetune", "--init-from", str(tiny_checkpoint), "--data", str(two_classes)),
            *("--output", str(tmp_path / name), "--max-steps", "3", "--eval-steps", "1"),
            *("--local-view-size", "16", "--num-local-views", "2", "--card-picture"),
            *("--save-steps", "1", "--save-total-limit", "3"), *map(str, COMPARABLE), *LOOP,
        ]  # fmt: skip

    main(command("one"))
    # the default of `accelerate config`, which would leave the second process without weights
    run_sharded(command("two"), tmp_path, FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")
    )
    assert two["best"]["step"] == one["best"]["step"]
    for name, metric in one["metrics"].items():
        for when in ("before", "after"):
            assert two["metrics"][name][when]["value"] == pytest.approx(
                metric[when]["value"], rel=1e-3
            )
    checkpoints, best = tmp_path / "two" / "checkpoints", tmp_path / "two" / "best"
    saved = weights_of(checkpoints / f"step-{two['best']['step']:08d}")
    assert_equal_tensors(weights_of(best), saved)
    assert AutoModel.from_pretrained(best).config.hidden_size == 32
    assert (tmp_path / "two" / "attention.png").is_file()


# Not MAE: its fixed position embeddings keep the residual in float32, and a layer norm with bf16
# weights accepts float32 under autocast on GPUs only.
@pytest.mark.parametrize("recipe", ["dino", "pmsn", "classify"])
def test_the_loss_in_bf16_equals_that_in_float32_up_to_rounding(recipe, two_classes, tmp_path):
    def command(name):
        options = (*COMPARABLE, "--max-steps", 2)
        if recipe in OBJECTIVES:
            return arguments(recipe, two_classes, tmp_path / name, *options)
        place = ("--data", str(two_classes), "--output", str(tmp_path / name))
        return [recipe, *ENCODER, *LOOP, *place, *map(str, options)]

    main(command("one"))
    run_sharded(command("two"), tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for step in one:
        assert two[step]["loss"] != one[step]["loss"]
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=2e-2)
    assert all(
        tensor.dtype == weights_of(tmp_path / "one")[name].dtype
        for name, tensor in weights_of(tmp_path / "two").items()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (VERSION_1, "fsdp_version .1. must be 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "give --activation-checkpointing instead"),
    ],
)
def test_fsdp_1_and_its_activation_checkpointing_are_errors(
    changes, message, two_classes, tmp_path
):
    command = arguments("dino", two_classes, tmp_path / "out", *COMPARABLE, "--max-steps", 1)
    printed = output_of_failed_run(command, tmp_path, **changes)
    assert re.search(message, printed), printed
    assert not (tmp_path / "out").exists()
