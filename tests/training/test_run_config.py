import copy
import shutil

import pytest
import torch
from PIL.Image import Resampling

from selfvit import LeJEPAConfig, SelfViTForMAE
from selfvit.embedding.preprocessing import build_processor
from selfvit.training.augmentations.registry import AUGMENTATIONS
from selfvit.training.config.arguments import build_run, parse_arguments
from selfvit.training.config.from_checkpoint import image_size_line
from selfvit.training.config.run_config import RunConfig
from selfvit.training.config.teacher_momentum import FINETUNING, finetuning_momentum
from selfvit.training.config.training_config import ScheduleConfig
from selfvit.training.model import build_trainable
from selfvit.training.recipes import RECIPES
from selfvit.training.recipes.dino import dino_finetune
from selfvit.training.recipes.supervised import mae_classify

from ..objectives import tiny_config, tiny_mae_config

PLACES = ["--data", "images", "--output", "out"]


def run_of(*arguments, num_images=1000):
    return build_run(parse_arguments([*arguments, *PLACES], RECIPES), num_images)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_round_trip_through_yaml(name):
    run = run_of(name)
    again = RunConfig.from_yaml(run.to_yaml())
    assert again.to_dict() == run.to_dict()
    assert again.model.to_dict() == run.model.to_dict()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_own_name_and_documents_its_command(name):
    assert RECIPES[name](None, None).recipe == name
    assert "Command:" in RECIPES[name].__doc__


def test_a_training_yaml_reproduces_its_run(tmp_path):
    run = run_of("dino_demo", "--max-steps", "7", "--num-prototypes", "64")
    (tmp_path / "training.yaml").write_text(run.to_yaml())
    again = build_run(parse_arguments([str(tmp_path / "training.yaml")], RECIPES), None)
    assert again.to_dict() == run.to_dict()


def test_options_set_values_of_sections_augmentation_and_model():
    run = run_of(
        "dino_demo", "--max-steps", "12", "--num-local-views", "0", "--hidden-size", "64",
        "--teacher-momentum", "0.9", "--pooling", "concat:2", "--global-crop-scale", "0.5", "0.9",
        "--base-learning-rate", "1e-3",
    )  # fmt: skip
    assert run.schedule.max_steps == 12
    assert run.schedule.base_learning_rate == 1e-3
    assert run.augmentation.num_local_views == 0
    assert run.augmentation.global_crop_scale == [0.5, 0.9]
    assert run.model.hidden_size == 64
    assert run.model.pooling == "concat:2"
    assert run.model.dino_config.teacher_momentum == 0.9
    assert (
        run.model.dino_config.num_prototypes
        == RECIPES["dino_demo"](None, None).model.dino_config.num_prototypes
    )


def test_out_features_of_the_backbone_follow_the_number_of_layers():
    run = run_of("dino_demo", "--num-hidden-layers", "5")
    assert run.model.out_features == ["stage5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dino_demo", "--batch-size", "0"], r"batch_size \(0\) must be at least 1"),
        (
            ["dino_demo", "--num-local-views", "1", "--local-view-size", "15"],
            r"view size \(15 x 15\).*patch_size.*nearest is",
        ),
        (
            ["dino_demo", "--tracker", "abacus"],
            "--tracker .abacus. must be none, or one",
        ),
        (["dino_demo", "--eval-train", "x"], "--eval-train and --eval-test go together"),
        (
            ["dinov2_demo", "--gram-resolution-factor", "2"],
            r"gram_resolution_factor \(2\).*--gram-weight above 0",
        ),
        (
            ["dinov2_demo", "--masked-view-ratio", "0"],
            r"patch_loss_weight \(1.0\) needs masked patches.*--patch-loss-weight 0",
        ),
        (["dino_demo", "--warmup-ratio", "2"], r"warmup_ratio \(2.0\) must be between 0 and 1"),
    ],
)
def test_invalid_values_are_errors_with_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_of(*arguments)


@pytest.mark.parametrize(
    ("recipe", "option", "values", "rule"),
    [
        (
            "dino_demo",
            "global_crop_scale",
            ["0.5"],
            r"\(\[0.5\]\) must be 2 numbers: Smallest",
        ),
        ("dino_demo", "global_crop_scale", ["1", "0.25"], "positive, the smaller number first"),
        ("dino_demo", "global_crop_scale", ["0", "2"], "must be between 0 and 1"),
        (
            "dino_demo",
            "num_local_views",
            ["-1"],
            r"\(-1\) must be at least 0: Number of local",
        ),
        ("dino_demo", "local_view_size", ["0"], "must be at least 1"),
        ("dino_demo", "blur_sigma", ["0", "0"], "positive, the smaller number first"),
        ("dino_demo", "flip_probability", ["2"], "must be between 0 and 1"),
        ("pmsn_demo", "num_random_views", ["0"], "must be at least 1"),
        ("mae_classify", "erased_area", ["0.3"], "must be 2 numbers"),
        ("mae_classify", "rand_augment_magnitude", ["50"], "must be between 0 and 10"),
        ("dino_demo", "max_gradient_norm", ["0"], "must be above 0: Norm that gradients"),
        ("dino_demo", "layer_decay", ["-1"], "must be above 0 and at most 1"),
        ("dino_demo", "image_std", ["0", "1", "1"], "must be above 0"),
        ("dino_demo", "image_mean", ["0.5", "0.5"], "must be 3 numbers"),
        ("dino_demo", "num_workers", ["-1"], "must be at least 0"),
        ("dino_demo", "epochs", ["0"], "must be above 0: Passes over the data"),
    ],
)
def test_numbers_outside_their_limits_are_errors_with_the_rule(recipe, option, values, rule):
    with pytest.raises(ValueError, match=rf"{option} .*{rule}"):
        run_of(recipe, f"--{option}", *values)


def test_a_text_for_a_number_is_an_error():  # YAML reads 1e-6, without a point, as a text
    with pytest.raises(ValueError, match=r"base_learning_rate \('1e-3'\) must be a number, not a"):
        ScheduleConfig(base_learning_rate="1e-3")


def test_the_default_settings_of_every_augmentation_are_valid():
    for kind in AUGMENTATIONS.values():
        kind()


def test_data_and_output_are_required():
    with pytest.raises(ValueError, match="--data"):
        build_run(parse_arguments(["dino_demo", "--output", "out"], RECIPES), 1)
    with pytest.raises(ValueError, match="--output"):
        build_run(parse_arguments(["dino_demo", "--data", "images"], RECIPES), 1)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "recipe: x",
        "a: [",
        "recipe: a\narchitecture: b\nmodel: {}\ntraining: {}\naugmentation: {kind: none}",
    ],
)
def test_a_yaml_file_that_is_not_a_run_is_an_error(content):
    with pytest.raises(ValueError, match="YAML|kind"):
        RunConfig.from_yaml(content)


def test_an_unknown_name_in_a_yaml_file_is_an_error():
    text = run_of("dino_demo").to_yaml().replace("warmup_ratio", "warm_up_ratio")
    with pytest.raises(ValueError, match="warm_up_ratio"):
        RunConfig.from_yaml(text)


def test_dino_finetune_chooses_the_number_of_prototypes_from_the_number_of_images():
    def prototypes(num_images):
        return dino_finetune(num_images, None).model.dino_config.num_prototypes

    assert [prototypes(n) for n in (50, 5_000, 100_000, 10_000_000)] == [256, 1024, 16384, 65536]


@pytest.mark.parametrize("recipe", FINETUNING)
def test_the_teacher_momentum_of_fine_tuning_follows_the_length_that_is_asked_for(recipe):
    start = ["--lora-rank", "2"] if recipe == "dino_lora" else []

    def momentum(*options):
        model = run_of(recipe, *start, *options).model
        return next(part.teacher_momentum for part in parts_of(model) if part is not None)

    assert momentum("--max-steps", "50") == finetuning_momentum(64, 50) == 0.9
    assert momentum("--epochs", "10") == finetuning_momentum(64, 150) > 0.9
    assert momentum("--max-steps", "50", "--batch-size", "32") == finetuning_momentum(32, 50)
    assert momentum("--max-steps", "50", "--teacher-momentum", "0.99") == 0.99


def parts_of(model):
    return model.dino_config, model.dinov2_config, model.pmsn_config


def test_dino_finetune_chooses_the_teacher_momentum_from_batch_size_and_length():
    def momentum(num_images, batch_size):
        return dino_finetune(num_images, batch_size).model.dino_config.teacher_momentum

    assert momentum(1_000_000, 1024) == pytest.approx(0.996)  # value and batch size of the paper
    assert momentum(1_000_000, 64) == pytest.approx(0.99975)
    assert momentum(2_000, 64) == pytest.approx(1 - 10 / 930, abs=1e-6)  # a tenth of the run
    assert momentum(70, 64) == 0.9  # a run of 30 steps


def test_options_override_the_values_that_a_recipe_chooses_from_the_data():
    run = run_of("dino_finetune", "--num-prototypes", "77", "--batch-size", "32", num_images=5000)
    assert run.model.dino_config.num_prototypes == 77
    assert run.schedule.batch_size == 32


def test_a_run_uses_the_geometry_of_its_initial_checkpoint(tiny_checkpoint):
    run = run_of("dino_finetune", "--init-from", str(tiny_checkpoint))
    assert (run.model.hidden_size, run.model.patch_size, run.model.image_size) == (32, 8, 32)
    assert run.model.dino_config.head_hidden_size == 2048  # the recipe's, not the checkpoint's
    assert run.model.drop_path_rate == 0.1


def test_values_in_a_yaml_file_override_those_of_its_initial_checkpoint(tiny_checkpoint, tmp_path):
    start = ("dino_finetune", "--init-from", str(tiny_checkpoint))
    run = run_of(*start, "--pooling", "gem", "--image-mean", "0.5", "0.5", "0.5")
    written = tmp_path / "training.yaml"
    written.write_text(run.to_yaml())
    assert build_run(parse_arguments([str(written)], RECIPES), 1000).to_dict() == run.to_dict()
    # with another checkpoint, geometry and preprocessing come from that checkpoint
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    again = build_run(parse_arguments([str(written), "--init-from", str(other)], RECIPES), 1000)
    assert again.model.pooling == "cls"


def test_local_and_focal_view_sizes_scale_with_the_image_unless_given(tiny_checkpoint):
    start = ("dino_finetune", "--init-from", str(tiny_checkpoint))  # 32 pixels, patches of 8
    assert run_of(*start).augmentation.local_view_size == 16
    assert run_of(*start, "--local-view-size", "24").augmentation.local_view_size == 24
    for options, size in (
        ((), 96),
        (("--patch-size", "14"), 98),
        (("--image-size", "448"), 192),
        (("--image-size", "448", "224"), 96),
        (("--image-size", "32"), 16),  # at least one patch
    ):
        assert run_of("dino_vits16_in1k", *options).augmentation.local_view_size == size
        assert run_of("msn_vits16_in1k", *options).augmentation.focal_view_size == size
    again = RunConfig.from_yaml(run_of(*start).to_yaml()).with_options({"max_steps": 3})
    assert again.augmentation.local_view_size == 16


def test_a_run_uses_the_preprocessing_of_its_initial_checkpoint(
    tiny_config, tiny_checkpoint, tmp_path
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    build_processor(tiny_config, resize="square", mean=mean, std=std).save_pretrained(checkpoint)
    start = ("dino_finetune", "--init-from", str(checkpoint))
    preprocessing = run_of(*start).preprocessing
    assert (preprocessing.image_mean, preprocessing.image_std) == (mean, std)
    assert preprocessing.resize == "square"
    assert run_of(*start, "--image-mean", "0", "0", "0").preprocessing.image_mean == [0, 0, 0]
    resizing = {"crop_ratio": 1.25, "resample": Resampling.BILINEAR}
    build_processor(tiny_config, **resizing).save_pretrained(checkpoint)
    preprocessing = run_of(*start).preprocessing
    assert (preprocessing.resize, preprocessing.crop_ratio) == ("shortest_edge", 1.25)
    assert preprocessing.resample == "bilinear"
    build_processor(tiny_config, resample=Resampling.BOX).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"resample \('box'\).*nearest, bilinear, bicubic"):
        run_of(*start)
    assert run_of(*start, "--resample", "bicubic").preprocessing.resample == "bicubic"


def test_a_run_has_the_image_size_of_the_image_processor(tiny_config, tiny_checkpoint, tmp_path):
    checkpoint = tmp_path / "checkpoint"  # as DINOv2, with positions for larger images
    shutil.copytree(tiny_checkpoint, checkpoint)
    stored = tiny_config.image_size
    for resize in ("square", "shortest_edge"):
        small = copy.deepcopy(tiny_config)
        small.image_size = stored // 2
        build_processor(small, resize=resize).save_pretrained(checkpoint)
        run = run_of("dino_finetune", "--init-from", str(checkpoint))
        assert run.model.image_size == stored // 2
        line = f"the positions of {checkpoint} are for {stored} x {stored}, and are resized"
        assert str(image_size_line(run)).endswith(line)
        larger = ("--image-size", str(stored))
        run = run_of("dino_finetune", "--init-from", str(checkpoint), *larger)
        assert run.model.image_size == stored and image_size_line(run) is None


def test_fixed_positions_of_a_run_at_another_image_size_are_interpolated(tmp_path):
    config = tiny_config(position_embedding_type="sincos", mae_config=tiny_mae_config())
    model = SelfViTForMAE(config).eval()
    model.save_pretrained(tmp_path)
    build_processor(config).save_pretrained(tmp_path)
    start = ("--init-from", str(tmp_path), "--init-scope", "all", "--image-size", "48")
    run = run_of("mae_finetune", *start)  # with the decoder of the checkpoint
    found = build_trainable(run).eval()
    weights = found.state_dict()
    positions = [name for name in weights if name.endswith("position_embeddings")]
    assert [weights[name].shape[1] for name in positions] == [1 + 6 * 6] * 2
    # as if the stored model saw larger images
    pixels, noise = torch.rand(2, 3, 48, 48), torch.rand(2, 36)
    with torch.inference_mode():
        expected = model(pixels, noise=noise).loss
        torch.testing.assert_close(found(pixels, noise=noise).loss, expected)


def test_solarization_of_four_channels_stays_as_it_was_asked_for(tmp_path):
    start = tmp_path / "start"
    tiny_config(num_channels=4).save_pretrained(start)
    options = ("--init-from", str(start), "--solarize-probability", "0", "0.3", "0")
    run = run_of("dino_finetune", *options)
    assert run.augmentation.solarize_probability == [0, 0.3, 0]
    assert run.augmentation.color_jitter[2:] == [0, 0]
    (tmp_path / "training.yaml").write_text(run.to_yaml())
    again = run_of(str(tmp_path / "training.yaml"), "--max-steps", "5")
    assert again.augmentation == run.augmentation


def test_a_whole_checkpoint_keeps_what_its_heads_depend_on(tmp_path):
    mae = {"decoder_num_attention_heads": 4, "norm_pix_loss": False, "mask_ratio": 0.5}
    lejepa = {"head_activation": "gelu", "head_input": "pooled", "head_hidden_size": 24}
    for name, config in (
        ("mae", tiny_config(mae_config=tiny_mae_config(**mae))),
        ("lejepa", tiny_config(lejepa_config=LeJEPAConfig(**lejepa))),
    ):
        config.save_pretrained(tmp_path / name)
    start = ("--init-from", str(tmp_path / "mae"))
    found = run_of("mae_finetune", *start, "--init-scope", "all").model.mae_config
    assert (found.decoder_num_attention_heads, found.norm_pix_loss) == (4, False)
    assert found.mask_ratio == 0.75  # that of the recipe
    assert run_of("mae_finetune", *start).model.mae_config.norm_pix_loss
    chosen = run_of("mae_finetune", *start, "--init-scope", "all", "--norm-pix-loss")
    assert chosen.model.mae_config.norm_pix_loss
    start = ("--init-from", str(tmp_path / "lejepa"))
    found = run_of("lejepa_finetune", *start, "--init-scope", "all").model.lejepa_config
    assert lejepa.items() <= found.to_dict().items()


def test_init_from_another_kind_of_checkpoint_is_an_error(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'vit' checkpoint"):
        run_of("dino_finetune", "--init-from", str(tmp_path))
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run_of("dino_finetune", "--init-from", str(tmp_path / "nothing"))


def test_the_number_of_steps_follows_from_max_steps_or_epochs(tiny_checkpoint):
    schedule = ScheduleConfig(epochs=2, batch_size=32)
    assert schedule.num_steps(100) == 6
    assert ScheduleConfig(epochs=2, batch_size=32, max_steps=5).num_steps(100) == 5
    with pytest.raises(ValueError, match="--max-steps"):
        schedule.num_steps(None)
    # a length in epochs replaces the steps of a recipe or file
    high = ("dinov2_high_resolution", "--init-from", str(tiny_checkpoint), "--batch-size", "64")
    assert run_of(*high).schedule.num_steps(1000) == 10_000
    assert run_of(*high, "--epochs", "2").schedule.num_steps(1000) == 30
    assert run_of(*high, "--epochs", "2", "--max-steps", "5").schedule.num_steps(1000) == 5


def test_the_paper_recipe_of_dino_has_the_numbers_of_the_paper():
    run = RECIPES["dino_vits16_in1k"](None, None)
    assert run.schedule.learning_rate == 0.002  # 0.0005 * 1024 / 256
    assert run.schedule.num_steps(1_281_167) == 100 * 1251
    assert run.model.dino_config.num_prototypes == 65536


def test_the_paper_recipe_of_mae_has_the_numbers_of_the_paper():
    run = RECIPES["mae_vitb16_in1k"](None, None)
    assert run.schedule.learning_rate == pytest.approx(2.4e-3)  # 1.5e-4 * 4096 / 256
    assert run.schedule.num_steps(1_281_167) == 800 * 312
    assert run.schedule.warmup_ratio * 800 == 40
    assert (run.optimizer.adam_beta1, run.optimizer.adam_beta2) == (0.9, 0.95)
    assert run.augmentation.crop_scale == [0.2, 1.0]
    assert run.model.mae_config.mask_ratio == 0.75 and run.model.mae_config.norm_pix_loss
    assert (run.model.position_embedding_type, run.model.pooling) == ("sincos", "mean")


@pytest.mark.parametrize("arguments", [(), ("--pooling", "cls"), ("--pooling", "cls+mean")])
def test_the_pooling_of_a_mae_run_survives_a_round_trip_through_yaml(arguments):
    # "cls", the default of other recipes, must not be replaced by MAE's own default
    run = run_of("mae_finetune", *arguments)
    expected = arguments[1] if arguments else "mean"
    assert run.model.pooling == expected
    assert RunConfig.from_yaml(run.to_yaml()).model.pooling == expected


def test_mae_finetune_keeps_the_pooling_of_its_initial_checkpoint(tiny_checkpoint):
    assert run_of("mae_finetune", "--init-from", str(tiny_checkpoint)).model.pooling == "cls"


def test_classify_keeps_the_pooling_of_an_initial_mae_checkpoint(tmp_path):
    tiny_config(mae_config=tiny_mae_config()).save_pretrained(tmp_path)
    run = run_of("classify", "--init-from", str(tmp_path))
    assert run.model.mae_config is None
    assert run.model.pooling == "mean"


def test_mae_classify_has_the_numbers_of_the_paper_on_imagenet():
    run = mae_classify(1_281_167, None)
    assert run.schedule.batch_size == 1024
    assert run.schedule.learning_rate == 0.002  # 0.0005 * 1024 / 256
    assert run.schedule.num_steps(1_281_167) == 100 * 1251
    assert (run.model.hidden_size, run.model.pooling) == (768, "mean")
    assert mae_classify(None, None).schedule.batch_size == 1024


def test_mae_classify_chooses_a_smaller_batch_size_for_fewer_images():
    sizes = [mae_classify(n, None).schedule.batch_size for n in (20, 500, 6500, 16_400, 100_000)]
    assert sizes == [16, 16, 256, 1024, 1024]
    assert run_of("mae_classify", "--batch-size", "48").schedule.batch_size == 48


def test_linear_probe_has_a_batch_norm_and_the_frozen_encoder_of_its_checkpoint(tiny_checkpoint):
    run = run_of("linear_probe", "--init-from", str(tiny_checkpoint))
    assert run.model.classifier_batch_norm and run.model.drop_path_rate == 0
    assert (run.model.hidden_size, run.model.pooling) == (32, "cls")
    assert run.schedule.freeze_encoder_ratio == 1


def test_classify_from_a_linear_probe_has_no_batch_norm(tiny_config, tmp_path):
    from selfvit import SelfViTConfig

    probe = SelfViTConfig(**{**tiny_config.to_diff_dict(), "classifier_batch_norm": True})
    probe.save_pretrained(tmp_path)
    assert not run_of("classify", "--init-from", str(tmp_path)).model.classifier_batch_norm


def test_the_paper_recipes_of_msn_and_pmsn_have_the_numbers_of_the_papers():
    msn, pmsn = (RECIPES[name](None, None) for name in ("msn_vits16_in1k", "pmsn_vits16_in1k"))
    for run in (msn, pmsn):
        assert run.schedule.learning_rate == pytest.approx(0.001)  # at a batch of 1024
        assert run.schedule.num_steps(1_281_167) == 800 * 1251
        assert run.model.pmsn_config.num_prototypes == 1024
        assert run.augmentation.num_focal_views == 10
    assert msn.model.pmsn_config.prior == "uniform"
    assert pmsn.model.pmsn_config.prior == "power_law"


def test_pmsn_finetune_chooses_prototypes_and_teacher_momentum_from_the_data():
    small, large = (RECIPES["pmsn_finetune"](size, 64).model for size in (600, 100_000))
    assert (small.pmsn_config.num_prototypes, large.pmsn_config.num_prototypes) == (64, 1024)
    assert small.pmsn_config.teacher_momentum < large.pmsn_config.teacher_momentum < 1
