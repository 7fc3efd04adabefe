"""The recipes with the names of the objectives, which choose their sizes from the images."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from selfvit.data.sources import open_images
from selfvit.training.config.arguments import build_run, parse_arguments
from selfvit.training.config.run_config import RunConfig
from selfvit.training.preflight.folder import FEW_IMAGES, fit_to_folder, image_facts
from selfvit.training.recipes import RECIPES
from selfvit.training.recipes.scale import (
    CPU_STEPS_A_CORE,
    MIN_STEPS,
    ImageFacts,
    Machine,
    choose_scale,
)
from selfvit.training.recipes.small_folder import SMALL_FOLDER
from selfvit.training.run_length import MIN_IMAGES_SEEN, explain_too_short
from selfvit.training.train import main

from ..image_files import noise
from .tiny_runs import LOOP, assert_equal_tensors, weights_of

CPU, GPU = Machine(has_accelerator=False, num_cores=2), Machine(has_accelerator=True, num_cores=16)
PHOTOS = ImageFacts(num_images=800, side=113, num_channels=3, has_color=True)
NO_REPORT = ("--report-images", "0")


@pytest.mark.parametrize(
    ("side", "machine", "sizes"),
    [
        (28, CPU, (28, 7)),
        (113, CPU, (56, 14)),
        (50, CPU, (48, 12)),
        (113, GPU, (112, 8)),
        (900, GPU, (224, 16)),
        (1, CPU, (4, 1)),  # at least one pixel a patch
    ],
)
def test_images_are_not_enlarged_and_patches_are_a_fraction_of_them(side, machine, sizes):
    scale = choose_scale(ImageFacts(800, side, 3, True), machine, {})
    assert (scale.image_size, scale.patch_size) == sizes


def test_the_length_follows_from_the_images_and_the_machine():
    def steps(num_images, cores, **given):
        facts = ImageFacts(num_images, 113, 3, True)
        return choose_scale(facts, Machine(False, cores), given).num_steps

    assert steps(300, 8) == MIN_STEPS  # few images are repeated more often
    assert MIN_STEPS < steps(2000, 8) < steps(50_000, 8)
    assert steps(50_000, 2) == 2 * CPU_STEPS_A_CORE  # less than 20 minutes on two cores
    assert steps(None, 8) == steps(50_000, 8) == steps(50_000, 64)
    assert steps(800, 2, epochs=5) is None  # an option takes the place of the choice
    assert choose_scale(PHOTOS, GPU, {}).batch_size > choose_scale(PHOTOS, CPU, {}).batch_size
    assert choose_scale(ImageFacts(40, 113, 3, True), CPU, {}).batch_size == 32


def test_the_rest_fits_the_options_that_are_given():
    given = {"image_size": [28, 56], "batch_size": 16, "num_channels": 4}
    scale = choose_scale(PHOTOS, CPU, given)
    assert (scale.patch_size, scale.batch_size, scale.has_color) == (7, 16, False)
    assert choose_scale(PHOTOS, CPU, {"patch_size": 14}).image_size == 56
    taught = choose_scale(PHOTOS, CPU, {"teacher": "facebook/dinov2-small"})
    assert (taught.image_size % 14, taught.image_size % 16, taught.patch_size) == (0, 0, 28)


@pytest.mark.parametrize("recipe", SMALL_FOLDER, ids=lambda recipe: recipe.__name__)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_recipe_is_valid_for_color_gray_and_other_channels(recipe, machine):
    for num_channels, has_color in ((3, True), (3, False), (5, False)):
        facts = ImageFacts(800, 113, num_channels, has_color)
        run = recipe(800, None, choose_scale(facts, machine, {})).with_options({})
        assert run.model.num_channels == num_channels
        hue = getattr(run.augmentation, "color_jitter", [0.0] * 4)[3]
        assert hue == 0 or has_color
        assert run.preprocessing.image_mean == []  # measured on the images
        assert RunConfig.from_yaml(run.to_yaml()).to_dict() == run.to_dict()


def test_facts_are_those_of_the_images(tmp_path):
    for index in range(6):
        noise(50, 40, index).save(tmp_path / f"{index}.png")
    assert image_facts(open_images(tmp_path)) == ImageFacts(6, 40, 3, True)


def test_colors_are_judged_in_the_declared_range(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1024, (40, 40, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    words = ["dino", "--data", str(tmp_path), "--output", str(tmp_path / "run"), "--bits", "10"]
    _, lines = fit_to_folder(parse_arguments(words, RECIPES), open_images(tmp_path))
    assert "1 color images" in lines[-1]
    gray = tmp_path / "gray"
    gray.mkdir()
    for index in range(6):
        noise(30, 40, index).convert("L").convert("RGB").save(gray / f"{index}.jpg")
    assert image_facts(open_images(gray)) == ImageFacts(6, 30, 3, False)
    bands = tmp_path / "bands"
    bands.mkdir()
    for index in range(3):
        np.save(bands / f"{index}.npy", np.full((20, 24, 5), index, dtype=np.uint8))
    assert image_facts(open_images(bands)) == ImageFacts(3, 20, 5, False)


def test_unreadable_images_are_an_error_that_names_the_last_one(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"none of 1 images tried .*broken.png"):
        image_facts(open_images(tmp_path))


def test_few_images_get_the_advice_first_with_a_command_that_parses(two_classes, tmp_path):
    words = ["mae", "--data", str(two_classes), "--output", str(tmp_path / "my run")]
    _, lines = fit_to_folder(parse_arguments(words, RECIPES), open_images(two_classes))
    advice, chosen = lines
    assert advice.startswith("advice: 24 images are too few")
    command = advice.partition("selfvit train ")[2]
    assert f"--output '{tmp_path / 'my run'}'" in command
    start = parse_arguments(command.replace("my run", "run").replace("'", "").split(), RECIPES)
    assert start.name == "mae_finetune" and start.start.init_from == "facebook/vit-mae-base"
    assert chosen.startswith("chosen for 24 color images and a CPU with ")
    assert "image_size 36 (median side 36), patch_size 9" in chosen and "2,000 steps" in chosen
    enough = parse_arguments(words, RECIPES)
    many = [Image.new("RGB", (8, 8), (index % 256, 0, 0)) for index in range(FEW_IMAGES)]
    folder = tmp_path / "many"
    folder.mkdir()
    for index, image in enumerate(many):
        image.save(folder / f"{index}.bmp")
    _, lines = fit_to_folder(enough, open_images(folder))
    assert len(lines) == 1


def test_a_resumed_run_takes_what_was_chosen_from_its_training_yaml(two_classes, tmp_path, capsys):
    fixed = ("--max-steps", "4", "--save-steps", "2", "--image-size", "16", "--batch-size", "6")
    places = {name: tmp_path / name for name in ("whole", "resumed")}
    for output in places.values():
        main(
            ["dino", *LOOP, *NO_REPORT, "--data", str(two_classes), "--output", str(output), *fixed]
        )
    assert "chosen for 24 color images" in capsys.readouterr().out
    shutil.rmtree(places["resumed"] / "checkpoints" / "step-00000004")
    (places["resumed"] / "config.json").unlink()
    # without the options: chosen again, size and length would differ, and the run be refused
    resumed = ["dino", "--data", str(two_classes), "--output", str(places["resumed"]), "--resume"]
    main([*resumed, *LOOP, *NO_REPORT])
    assert_equal_tensors(weights_of(places["whole"]), weights_of(places["resumed"]))
    run = RunConfig.from_yaml((places["whole"] / "training.yaml").read_text())
    assert (run.recipe, run.model.patch_size, run.schedule.max_steps) == ("dino", 4, 4)
    assert len(run.preprocessing.image_mean) == 3
    with pytest.raises(ValueError, match="these differ: .*image_size: 16 then, 24 now"):
        main([*resumed, "--image-size", "24"])
    with pytest.raises(ValueError, match="holds a run of dino, not of lejepa"):
        main(["lejepa", *resumed[1:]])


def test_init_from_is_an_error_that_names_the_recipe_for_it(two_classes, tiny_checkpoint, tmp_path):
    words = ["dino", "--data", str(two_classes), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"use dino_finetune --init-from .*checkpoint"):
        main([*words, "--init-from", str(tiny_checkpoint)])
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_too_short_says_so_before_and_after(two_classes, tmp_path, capsys):
    words = ["--data", str(two_classes), "--output", str(tmp_path / "out"), "--max-steps", "1"]
    main(["mae", *words, "--batch-size", "8", *LOOP])
    lines = capsys.readouterr().out.splitlines()
    text = "1 steps of 8 images are too few to learn from random weights; give --max-steps 4000"
    first = next(index for index, line in enumerate(lines) if line.startswith(f"warning: {text}"))
    last = next(index for index, line in enumerate(lines) if text in line and index > first)
    report = next(index for index, line in enumerate(lines) if line.startswith("neighbors kept"))
    assert first < report < last
    assert text in json.loads((tmp_path / "out" / "report.json").read_text())["too_short"]


def test_a_run_warns_once_of_transparency_though_it_reads_the_images_many_times(
    two_classes, tmp_path, capsys, caplog
):
    data = shutil.copytree(two_classes, tmp_path / "data")
    for path in sorted(data.rglob("*.png"))[1:]:
        with Image.open(path) as image:
            image.putalpha(9)
        image.save(path)
    words = ["--data", str(data), "--output", str(tmp_path / "out"), "--max-steps", "1"]
    main(["mae", *words, "--batch-size", "8", *LOOP])
    lines = [*capsys.readouterr().out.splitlines(), *caplog.messages]
    (warning,) = [line for line in lines if "transparent" in line]
    assert "others. Transparency is not read" in warning


def test_only_short_runs_from_random_weights_are_too_short():
    words = ["dino_demo", "--data", "x", "--output", "y", "--batch-size", "64"]
    run = build_run(parse_arguments(words, RECIPES), 8000)
    assert explain_too_short(run, MIN_IMAGES_SEEN // 64) is None
    assert explain_too_short(run, MIN_IMAGES_SEEN // 64 - 1) is not None
    continued = run.replace(init_from="x")
    assert explain_too_short(continued, 1) is None


def test_the_recipes_have_no_sizes_that_only_this_machine_knows():
    # as called for `--help` and docs/configuration.md
    for recipe in SMALL_FOLDER:
        run = recipe(None, None)
        assert (run.model.image_size, run.schedule.max_steps) == (56, MIN_STEPS)
