"""LoRA adapters that train in place of the encoder: training, output files and resuming."""

import json
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from selfvit import SelfViTConfig, SelfViTForImageClassification, SelfViTModel
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.schedules import cosine_schedule
from selfvit.sharing.published_files import choose_files
from selfvit.training.config.run_config import RunConfig
from selfvit.training.config.training_config import LORA_TARGETS, LoRAConfig
from selfvit.training.lora import (
    UNMERGED,
    add_adapters,
    check_adapters,
    count_parameters,
    load_unmerged,
    merged_weights,
    save_adapter,
)
from selfvit.training.model import build_trainable
from selfvit.training.optimization import build_optimizer
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main

from ..objectives import DINOV3, tiny_config
from .processes import AtLogLine, kill_self, run_two, start_training
from .tiny_runs import LOOP, OBJECTIVES, log_of, weights_of

# Recipe and options of each kind of model that trains with adapters. The learning rate is high,
# because adapters start at zero.
KINDS = {
    "dino": ["dino_lora", *OBJECTIVES["dino"][1:]],
    "dinov2": [*OBJECTIVES["dinov2"], "--lora-rank", "4"],
    "distill": [*OBJECTIVES["distill"], "--lora-rank", "4"],
    "lejepa": [*OBJECTIVES["lejepa"], "--lora-rank", "4"],
    "mae": [*OBJECTIVES["mae"], "--lora-rank", "4"],
    "pmsn": [*OBJECTIVES["pmsn"], "--lora-rank", "4"],
    "classifier": ["classify", "--lora-rank", "4"],
}
FAST = ("--base-learning-rate", "0.2", "--warmup-ratio", "0", "--batch-size", "8")


def command(kind, checkpoint, data, output, *options):
    return [
        *KINDS[kind], *LOOP, *FAST, "--init-from", str(checkpoint), "--data", str(data),
        "--output", str(output), *map(str, options),
    ]  # fmt: skip


def equal(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])] == []


def adapted_model(output, step):
    """Return the model of a run with unmerged adapters, as a resumed run loads it."""
    checkpoint = output / "checkpoints" / f"step-{step:08d}"
    run = RunConfig.from_yaml((checkpoint / "training.yaml").read_text())
    if run.is_classifier:
        run.model.id2label = {0: "bright", 1: "dark"}
    model = build_trainable(run)
    load_unmerged(model, checkpoint)
    return model.eval()


def embed(model, checkpoint, data):
    """Embed the images of a folder with a model and the preprocessing of a checkpoint."""
    embedder = Embedder.from_pretrained(str(checkpoint))
    embedder.model = model.eval()
    return embedder([str(path) for path in sorted(data.rglob("*.png"))])


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tiny_checkpoint, two_classes, tmp_path_factory):
    """Return the kind of a model and the output folder of its run of six steps."""
    output = tmp_path_factory.mktemp("adapted") / "out"
    options = ("--max-steps", 6, "--save-steps", 3, "--eval-steps", 3)
    main(command(request.param, tiny_checkpoint, two_classes, output, *options))
    return request.param, output


def test_the_merged_weights_give_the_embeddings_of_the_model_with_adapters(
    trained, tiny_checkpoint, two_classes
):
    _, output = trained
    adapted = adapted_model(output, 6)
    expected = embed(adapted.vit, output, two_classes)
    merged = embed(AutoModel.from_pretrained(output), output, two_classes)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5)
    before = embed(AutoModel.from_pretrained(tiny_checkpoint), output, two_classes)
    assert np.abs(merged - before).max() > 1e-3
    if adapted.trained_encoder is not adapted.vit:
        student = load_strictly(SelfViTModel, output, network="student")
        expected = embed(adapted.trained_encoder, output, two_classes)
        merged = embed(student, output, two_classes)
        np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5)


def test_peft_loads_the_adapter_on_top_of_the_initial_weights(
    trained, tiny_checkpoint, two_classes
):
    _, output = trained
    expected = embed(AutoModel.from_pretrained(output), output, two_classes)
    base = AutoModel.from_pretrained(tiny_checkpoint)
    opened = {
        "base given": PeftModel.from_pretrained(base, str(output / "adapter")),
        "base loaded by PEFT": AutoPeftModel.from_pretrained(
            str(output / "adapter"), import_allowlist=["selfvit"]
        ),
    }
    for model in opened.values():
        vectors = embed(model.base_model.model, output, two_classes)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_student_and_teacher_share_base_weights_that_training_does_not_change(
    trained, tiny_checkpoint
):
    kind, output = trained
    base = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    model = adapted_model(output, 6)
    kept = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.vit.named_parameters()
        if ".lora_" not in name
    }
    token = kept.pop("embeddings.mask_token", None)  # new, and trained
    assert (token is not None and bool(token.abs().max() > 0)) == (kind == "dinov2")
    assert equal({name: base[name] for name in kept}, kept)
    others = dict(model.trained_encoder.named_parameters())
    for name, parameter in model.vit.named_parameters():
        if ".lora_" not in name and not name.endswith("mask_token"):
            assert others[name] is parameter
        elif model.trained_encoder is not model.vit:
            assert others[name] is not parameter and not torch.equal(others[name], parameter)
    stored = load_file(output / "checkpoints" / "step-00000006" / UNMERGED)
    encoders = [name for name in stored if name.endswith("vit.embeddings.cls_token")]
    assert len(encoders) == 1


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
import torch
import selfvit
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
from transformers.utils import is_peft_available
from selfvit.modeling.checkpoints.loading import load_strictly
assert not is_peft_available()
for auto_class in (AutoModel, {auto_class}):
    model, info = auto_class.from_pretrained({folder!r}, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
load_strictly(type(model), {folder!r})
load_strictly(selfvit.SelfViTModel, {folder!r})
print(sorted(model.state_dict()))
"""


def test_results_and_checkpoints_load_without_peft_and_without_settings_of_adapters(
    trained, python_with_torch
):
    kind, output = trained
    auto_class = AutoModelForPreTraining.__name__
    if kind == "classifier":
        auto_class = "AutoModelForImageClassification"
    code = WITHOUT_PEFT.format(folder=str(output), auto_class=auto_class)
    result = subprocess.run([python_with_torch, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    folders = [output, output / "checkpoints" / "step-00000003"]
    folders += [output / "best"] if kind != "classifier" else []  # no evaluation metric, so no best
    for folder in folders:
        config = (folder / "config.json").read_text()
        assert "lora" not in config and "peft" not in config
        stored = weights_of(folder)
        assert str(sorted(stored)) == result.stdout.strip()
        assert all(tensor.dtype == torch.float32 for tensor in stored.values())
        assert (folder / "adapter" / "adapter_config.json").is_file()


def test_all_files_of_a_run_have_the_mode_of_a_new_file(trained, tmp_path):
    # safetensors alone would create weights and adapters that only the owner can read
    (tmp_path / "new").touch()
    expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    _, output = trained
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"adapter_model.safetensors", UNMERGED, "optimizer.bin"}
    wrong = [str(path) for path in files if stat.S_IMODE(path.stat().st_mode) != expected]
    assert not wrong


def test_an_adapted_encoder_starts_with_the_embeddings_of_the_initial_checkpoint(
    trained, two_classes, tiny_checkpoint
):
    kind, output = trained
    run = RunConfig.from_yaml((output / "training.yaml").read_text())
    model = build_trainable(run)
    initial = embed(AutoModel.from_pretrained(tiny_checkpoint), output, two_classes)
    for encoder in (model.vit, model.trained_encoder):
        np.testing.assert_array_equal(embed(encoder, output, two_classes), initial)
    trained_names = {
        name for name, value in model.trained_encoder.named_parameters() if value.requires_grad
    }
    others = {name for name in trained_names if ".lora_" not in name}
    assert others == ({"embeddings.mask_token"} if kind == "dinov2" else set())
    layers = {name.split(".lora_")[0] for name in trained_names - others}
    assert len(layers) == len(LORA_TARGETS) * model.config.num_hidden_layers


# with and without a teacher, whose base is the initial checkpoint, too
@pytest.mark.parametrize("trained", ["dino", "mae", "classifier"], indirect=True)
def test_a_killed_run_resumes_exactly_even_if_its_initial_checkpoint_has_changed(
    trained, tiny_checkpoint, two_classes, tmp_path
):
    kind, uninterrupted = trained
    initial, output = tmp_path / "initial", tmp_path / "killed"
    shutil.copytree(tiny_checkpoint, initial)
    options = ("--max-steps", 6, "--save-steps", 3, "--eval-steps", 3)
    arguments = command(kind, initial, two_classes, output, *options)
    killed = start_training(arguments, tmp_path / "printed.txt", AtLogLine(5, kill_self))
    assert killed.exit_code() == -signal.SIGKILL, killed.printed
    assert not (output / "config.json").exists()
    torch.manual_seed(7)
    config = SelfViTConfig.from_pretrained(initial)
    SelfViTModel(config).save_pretrained(initial)

    main([*arguments, "--resume"])
    assert log_of(output) == log_of(uninterrupted)
    assert equal(weights_of(output), weights_of(uninterrupted))
    for name in ("adapter/adapter_model.safetensors", f"checkpoints/step-00000006/{UNMERGED}"):
        assert equal(load_file(output / name), load_file(uninterrupted / name))


@pytest.mark.parametrize("trained", ["dino", "pmsn"], indirect=True)
def test_the_adapters_of_the_teacher_are_the_moving_average_of_those_of_the_student(trained):
    kind, output = trained
    run = RunConfig.from_yaml((output / "training.yaml").read_text())
    model = build_trainable(run).train()
    optimizer = build_optimizer(model, run.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    generator = torch.Generator().manual_seed(0)
    first = {name: value.clone() for name, value in model.vit.named_parameters()}
    expected = {name: value.clone() for name, value in first.items() if ".lora_" in name}
    for step in range(4):
        views = torch.randn(2, 4, 3, 32, 32, generator=generator)
        inputs = {"dino": {"global_views": views}}.get(
            kind, {"target_view": views[0], "random_views": views[1:]}
        )
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        momentum = model.after_optimizer_step(step, 4)["teacher_momentum"]
        if kind == "dino":
            assert momentum == cosine_schedule(
                step, 4, model.config.dino_config.teacher_momentum, 1
            )
        for name, value in model.trained_encoder.named_parameters():
            if ".lora_" in name:
                expected[name] = momentum * expected[name] + (1 - momentum) * value.detach()
    for name, value in model.vit.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
            assert name.endswith("lora_A.default.weight") or value.abs().max() > 0
        else:
            assert torch.equal(value, first[name])


def test_two_processes_train_adapters_like_one_process(tiny_checkpoint, two_classes, tmp_path):
    options = ("--max-steps", 3, "--drop-path-rate", 0)
    main(command("dino", tiny_checkpoint, two_classes, tmp_path / "one", *options))
    two = command("dino", tiny_checkpoint, two_classes, tmp_path / "two", *options)
    codes, printed = run_two(two, tmp_path)
    assert codes == [0, 0], printed
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for step in (1, 2, 3):
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-5)
        assert two[step]["gradient_norm"] == pytest.approx(one[step]["gradient_norm"], rel=1e-3)
    before = weights_of(tiny_checkpoint)
    ours, theirs = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name in before:
        if name.endswith(("v_proj.weight", "fc1.weight")):
            moved = (ours[name] - before[name]).norm()
            assert moved > 0 and (ours[name] - theirs[name]).norm() <= 1e-2 * moved, name


@pytest.mark.parametrize("kind", ["dino", "mae"])
def test_activation_checkpointing_and_accumulation_do_not_change_the_loss(
    kind, tiny_checkpoint, two_classes, tmp_path
):
    options = ("--max-steps", 3, "--drop-path-rate", 0)
    main(command(kind, tiny_checkpoint, two_classes, tmp_path / "plain", *options))
    saving = {
        "checkpointing": ("--activation-checkpointing",),
        "accumulation": ("--gradient-accumulation-steps", 4),
    }
    for name, more in saving.items():
        main(command(kind, tiny_checkpoint, two_classes, tmp_path / name, *options, *more))
        plain, other = log_of(tmp_path / "plain"), log_of(tmp_path / name)
        for step in (1, 2, 3):
            assert other[step]["loss"] == pytest.approx(plain[step]["loss"], rel=1e-5)
            assert other[step]["gradient_norm"] == pytest.approx(
                plain[step]["gradient_norm"], rel=1e-3
            )


def test_bf16_trains_close_to_float32(tiny_checkpoint, two_classes, tmp_path):
    options = ("--max-steps", 3, "--drop-path-rate", 0, "--mixed-precision")
    for precision in ("bf16", "no"):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        output = tmp_path / precision
        main(command("dino", tiny_checkpoint, two_classes, output, *options, precision))
    for step, line in log_of(tmp_path / "no").items():
        assert log_of(tmp_path / "bf16")[step]["loss"] == pytest.approx(line["loss"], rel=0.05)


def test_adapters_do_not_change_while_the_encoder_is_frozen(tiny_checkpoint, two_classes, tmp_path):
    options = ("--max-steps", 4, "--save-steps", 1, "--save-total-limit", 4)
    frozen = ("--freeze-encoder-ratio", 0.5)
    main(command("dino", tiny_checkpoint, two_classes, tmp_path / "out", *options, *frozen))
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    for step, unchanged in ((2, True), (3, False)):
        folder = tmp_path / "out" / "checkpoints" / f"step-{step:08d}"
        student = load_strictly(SelfViTModel, folder, network="student").state_dict()
        assert equal(student, before) is unchanged


def test_init_scope_all_loads_the_heads_and_the_teacher_as_the_base_of_both_encoders(
    tiny_checkpoint, two_classes, tmp_path
):
    sizes = ("--num-prototypes", 16, "--head-hidden-size", 24, "--head-bottleneck-size", 8)
    options = ("--max-steps", 2, "--init-scope", "all", "--freeze-encoder-ratio", 0)
    main(command("dino", tiny_checkpoint, two_classes, tmp_path / "out", *options, *sizes))
    run = RunConfig.from_yaml((tmp_path / "out" / "training.yaml").read_text())
    model = build_trainable(run)
    initial = AutoModelForPreTraining.from_pretrained(tiny_checkpoint)
    for part in ("head", "student.head", "loss"):
        expected = initial.get_submodule(part).state_dict()
        assert equal(model.get_submodule(part).state_dict(), expected)
    pixels = torch.randn(2, 3, 32, 32)
    expected = initial.vit.eval()(pixels).pooler_output
    for encoder in (model.vit, model.trained_encoder):
        assert torch.equal(encoder.eval()(pixels).pooler_output, expected)


def test_the_adapter_of_a_hub_checkpoint_records_its_revision(tmp_path):
    model = SelfViTForImageClassification(tiny_config(num_labels=2))
    add_adapters(model, LoRAConfig(lora_rank=2, lora_alpha=6), "someone/encoder@v1")
    save_adapter(model.vit, tmp_path / "adapter")
    config = PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (config.base_model_name_or_path, config.revision) == ("someone/encoder", "v1")
    assert (config.r, config.lora_alpha, config.inference_mode) == (2, 6, True)


def test_every_linear_layer_of_a_gated_mlp_gets_an_adapter():
    model = SelfViTForImageClassification(tiny_config(num_labels=2, **DINOV3))
    names = set(model.state_dict())
    add_adapters(model, LoRAConfig(lora_rank=2), "someone/encoder")
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2]
        for name, parameter in model.vit.named_parameters()
        if parameter.requires_grad
    }
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert adapted == attention | {"gate_proj", "up_proj", "down_proj"}
    assert set(merged_weights(model)) == names


# --- memory


@pytest.fixture(scope="module")
def vits16(tmp_path_factory):
    """ViT-S/16 for images of 32 pixels; only its position embeddings are smaller."""
    folder = tmp_path_factory.mktemp("vits16")
    config = SelfViTConfig.from_name("vits16", image_size=32)
    SelfViTModel(config).save_pretrained(folder)
    build_processor(config).save_pretrained(folder)
    return folder


def stepped_optimizer(recipe, checkpoint, **options):
    """Return the optimizer of a run from a checkpoint after one step."""
    config = SelfViTConfig.from_pretrained(checkpoint)
    options = {"init_from": str(checkpoint), "local_view_size": 16, **options}
    run = RECIPES[recipe](None, None).with_options(options, encoder=config)
    model = build_trainable(run).train()
    optimizer = build_optimizer(model, run.optimizer)
    model(global_views=torch.randn(2, 2, 3, 32, 32)).loss.backward()
    optimizer.step()
    return optimizer


def bytes_of_states(optimizer):
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.numel() > 1  # no step counts
    }
    return sum(storages.values())


@pytest.mark.parametrize("num_prototypes", [256, 16384])
def test_adapters_need_less_than_a_fifth_of_the_optimizer_memory(vits16, num_prototypes):
    with_adapters, full = (
        bytes_of_states(stepped_optimizer(recipe, vits16, num_prototypes=num_prototypes))
        for recipe in ("dino_lora", "dino_finetune")
    )
    assert full > 200e6  # 27 million parameters with two moments each
    assert with_adapters < 0.2 * full


def test_a_dry_run_with_adapters_plans_the_sizes_of_the_run(
    tiny_checkpoint, two_classes, tmp_path, capsys
):
    output = tmp_path / "out"
    arguments = command("dino", tiny_checkpoint, two_classes, output, "--max-steps", 1)
    # a rank that is large enough to be visible in the plan
    arguments += ["--hidden-size", "32", "--lora-rank", "64"]
    main([*arguments, "--dry-run"])
    plan = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    main(arguments)
    checkpoint = output / "checkpoints" / "step-00000001"
    model = adapted_model(output, 1)
    counts = count_parameters(model.vit)
    trained = sum(value.numel() for _, value in model.trained_parameters() if value.requires_grad)
    assert f"encoder {counts.own:,}, trained {trained:,}," in plan["parameters"]
    assert (
        f"rank 64, alpha 64, on {', '.join(LORA_TARGETS)}: {counts.adapters:,}" in plan["adapters"]
    )

    def mebibytes(*tensors):
        return f"{sum(tensor.nbytes for tensor in tensors) / 2**20:,.1f} MiB"

    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].values()
    moments = [entry[name] for entry in state for name in ("exp_avg", "exp_avg_sq")]
    unmerged = load_file(checkpoint / UNMERGED).values()
    result = [*weights_of(output).values()]
    result += load_file(output / "adapter" / "adapter_model.safetensors").values()
    assert f"weights {mebibytes(*unmerged)}" in plan["memory"]
    assert f"AdamW {mebibytes(*moments)}" in plan["memory"]
    assert f"{mebibytes(*result, *unmerged, *moments)} each" in plan["checkpoints"]
    assert f"trained model {mebibytes(*result)}" in plan["checkpoints"]


def test_a_run_with_8_bit_adamw_resumes_exactly_and_stays_close_to_32_bits(
    tiny_checkpoint, two_classes, tmp_path
):
    pytest.importorskip("bitsandbytes")
    options = ("--max-steps", 6, "--save-steps", 3, "--lora-rank", 64, "--drop-path-rate", 0)
    in_8_bits = (*options, "--optimizer", "adamw_bnb_8bit")
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for output in (uninterrupted, resumed):
        main(command("dino", tiny_checkpoint, two_classes, output, *in_8_bits))
    main(command("dino", tiny_checkpoint, two_classes, tmp_path / "in_32_bits", *options))
    shutil.rmtree(resumed / "checkpoints" / "step-00000006")
    (resumed / "config.json").unlink()
    again = (*in_8_bits, "--resume")
    main(command("dino", tiny_checkpoint, two_classes, resumed, *again))
    assert log_of(resumed) == log_of(uninterrupted)
    assert equal(weights_of(resumed), weights_of(uninterrupted))
    name = "student.vit.layers.0.mlp.fc1.weight"
    before, exact = weights_of(tiny_checkpoint), weights_of(tmp_path / "in_32_bits")
    initial = before[name.removeprefix("student.")]
    moved, difference = exact[name] - initial, exact[name] - weights_of(uninterrupted)[name]
    assert 0 < difference.norm() < 0.2 * moved.norm()
    sizes = {
        run: (tmp_path / run / "checkpoints" / "step-00000006" / "optimizer.bin").stat().st_size
        for run in ("uninterrupted", "in_32_bits")
    }
    # most tensors of this model are too small to be stored in 8 bits
    assert sizes["uninterrupted"] < 0.75 * sizes["in_32_bits"]


# --- card, publishing and errors


def test_the_card_counts_adapters_separately_from_encoder_parameters(trained, tiny_checkpoint):
    kind, output = trained
    card = (output / "README.md").read_text()
    assert "| Adapters | LoRA of rank " in card and "on q_proj, k_proj, v_proj, o_proj" in card
    encoder = load_strictly(SelfViTModel, tiny_checkpoint)
    mask_token = 32 if kind == "dinov2" else 0  # the checkpoint has none
    assert f"| Encoder parameters | {encoder.num_parameters() + mask_token:,} |" in card
    assert "`adapter/` has them separately, in PEFT's format, and is not published" in card


def test_an_adapter_is_published_only_if_its_base_is_on_the_hub(trained):
    _, output = trained
    files = choose_files(output)
    assert "adapter/" in files.left_out and not any("adapter" in path for path in files.sent)
    path = output / "adapter" / "adapter_config.json"
    content = path.read_text()
    try:
        on_the_hub = json.loads(content) | {"base_model_name_or_path": "someone/encoder"}
        path.write_text(json.dumps(on_the_hub))
        sent = choose_files(output).sent
    finally:
        path.write_text(content)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(sent)
    assert not any(UNMERGED in path for path in sent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, r"lora_rank \(0\) must be at least 1"),
        ({"lora_rank": 4, "lora_alpha": -1}, r"lora_alpha \(-1\) must be at least 1"),
        ({"lora_targets": ["q_proj", "qkv"]}, r"lora_targets \(qkv\) must be some of: q_proj"),
        ({"lora_targets": []}, r"lora_targets \(none\) must be some of"),
        ({"lora_rank": 4, "freeze_encoder_ratio": 1.0}, "never trains it"),
        ({"optimizer": "adam"}, r"optimizer \('adam'\) must be one of: adamw_torch_fused"),
    ],
)
def test_invalid_lora_and_optimizer_settings_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        RECIPES["dino_demo"](None, None).replace(**options)


def test_adapters_of_a_sharded_model_are_an_error():
    config = LoRAConfig(lora_rank=4)
    with pytest.raises(ValueError, match=r"--lora-rank \(4\).*use DDP"):
        check_adapters(config, sharded=True)
    check_adapters(config, sharded=False)
    check_adapters(LoRAConfig(), sharded=True)


def test_adapters_without_init_from_are_an_error(two_classes, tmp_path):
    arguments = [*KINDS["dino"], *LOOP, "--data", str(two_classes), "--batch-size", "8"]
    with pytest.raises(ValueError, match="dino_lora .*needs --init-from CHECKPOINT"):
        main([*arguments, "--image-size", "32", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_peft_the_error_says_what_to_install(
    tiny_checkpoint, two_classes, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'selfvit\[lora\]'"):
        main(command("dino", tiny_checkpoint, two_classes, tmp_path / "out", "--max-steps", 1))
    assert not (tmp_path / "out").exists()
