"""The options of `selfvit train`, read from its parser."""

import argparse
import re
from collections import defaultdict
from dataclasses import fields

import pytest
import typer.main

from selfvit.cli import app
from selfvit.sharing.published_files import LOCAL_PATHS
from selfvit.training.config.arguments import (
    build_parser,
    flags_of,
    normalize_options,
    parse_arguments,
)
from selfvit.training.config.training_config import SECTION_OF, SECTIONS
from selfvit.training.recipes import RECIPES

PLACES = ["--data", "images", "--output", "out"]
FORBIDDEN_STARTS = re.compile(r"(of|that|as for|what|whether it is)\b", re.IGNORECASE)


def options_of(recipe):
    """Return the options of a recipe: (name, help without the default, choices or type)."""
    for action in build_parser(RECIPES[recipe](None, None))._actions:
        if action.dest != "help":
            yield action.option_strings[0], re.sub(r" \(default: .*\)\.?$", "", action.help), action


def parse(*words):
    return parse_arguments([*words, *PLACES], RECIPES).options


@pytest.mark.parametrize("recipe", RECIPES)
def test_option_names_are_kebab_case_and_help_texts_start_with_a_noun(recipe):
    for name, text, _ in options_of(recipe):
        assert re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*", name)
        assert text and text[0].isupper() and text.endswith("."), f"{name}: {text!r}"
        assert not FORBIDDEN_STARTS.match(text), f"{name}: {text!r}"


def commands_below(group):
    for command in getattr(group, "commands", {}).values():
        yield command
        yield from commands_below(command)


def test_an_option_has_the_same_help_text_in_all_recipes_and_commands():
    texts = defaultdict(set)
    for recipe in RECIPES:
        for name, text, _ in options_of(recipe):
            texts[name].add(text)
    shared = set()
    for command in commands_below(typer.main.get_command(app)):
        for option in command.params:
            if option.param_type_name == "option" and option.opts[0] in texts:
                texts[option.opts[0]].add(option.help)
                shared.add(option.opts[0])
    assert {name: found for name, found in texts.items() if len(found) > 1} == {}
    assert {"--data", "--output", "--split", "--image-size", "--pooling", "--seed"} <= shared


def test_help_is_grouped_by_section_and_shows_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        build_parser(RECIPES["dino_demo"](None, None)).parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    titles = [section._argument_group_name for section in SECTIONS.values()]
    positions = [shown.index(f"{title}: ") for title in [*titles, "augmentation", "model"]]
    assert positions == sorted(positions)
    assert re.search(r"--base-learning-rate X .*?\(default: 0\.004\)", shown)
    assert re.search(r"--blur-sigma X \[X \.\.\.\] .*?\(default: 0\.1 1\.0\)", shown)
    assert "--resume, --no-resume" in shown and "{warn,stop,rollback}" in shown
    assert "_" not in re.sub(r"[a-z0-9{},]+_[a-z0-9_{},.]+", "", shown.split("options")[0])


def test_every_field_of_a_section_is_an_option_with_a_unique_name():
    names = [entry.name for section in SECTIONS.values() for entry in fields(section)]
    assert len(names) == len(set(names)) == len(SECTION_OF)
    assert {action.dest for *_, action in options_of("dino_demo")} >= set(names)
    assert all(3 <= len(fields(section)) <= 9 for section in SECTIONS.values())
    assert set(LOCAL_PATHS) <= set(names)  # these are removed from a published training.yaml


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_steps", "3"], {"max_steps": 3}),
        (["--max-steps=3"], {"max_steps": 3}),
        (["--resume"], {"resume": True}),
        (["--resume", "true"], {"resume": True}),
        (["--resume", "false"], {"resume": False}),
        (["--no-save-code"], {"save_code": False}),
        (["--no_save_code"], {"save_code": False}),
        (["--save_code", "false"], {"save_code": False}),
        (["--save-code=false"], {"save_code": False}),
        (["--no-qkv-bias"], {"qkv_bias": False}),
        (["--qkv_bias", "false"], {"qkv_bias": False}),
        (["--image-size", "224"], {"image_size": 224}),
        (["--image-size", "224", "336"], {"image_size": [224, 336]}),
        (["--image_size", "[224, 336]"], {"image_size": [224, 336]}),
        (["--lora-targets", "q_proj", "v_proj"], {"lora_targets": ["q_proj", "v_proj"]}),
        (["--split", "train_a"], {"split": "train_a"}),
    ],
)
def test_current_and_former_spellings_of_options_parse(words, expected):
    options = parse("dino_demo", *words)
    assert {name: options[name] for name in expected} == expected


def test_values_and_flags_are_not_changed_by_normalization():
    flags = flags_of(build_parser(RECIPES["dino_demo"](None, None)))
    words = ["--data", "my_images", "--seed=1", "--cpu", "--tracker", "none"]
    assert normalize_options(words, flags) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dino_demo", "--max-step", "3"], "no option '--max-step'. Did you mean --max-steps"),
        (["dino_dem"], "no recipe or YAML file 'dino_dem'. Did you mean 'dino_demo'"),
        (["dino_dem"], "Recipes: dino, dinov2"),
        (["dino_demo", "--learning-rat", "3"], "Did you mean --.*learning-rate"),
        (
            ["dino_demo", "stray"],
            "'stray' is not an option; images to train on are named with --data",
        ),
        (["--output", "run", "--resume"], "selfvit train RUN/training.yaml --resume"),
        (["dino_demo", "--max-steps", "many"], "argument --max-steps: invalid int value"),
        (["dino_demo", "--image-size", "1", "2", "3"], "give one number, or height and width"),
        (["dino_demo", "--max-steps", "0"], r"max_steps \(0\) must be at least 1: Number of"),
        ([], "name a recipe"),
    ],
)
def test_a_wrong_command_line_is_an_error_with_a_fix(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*words, *(PLACES if words else [])], RECIPES).sections  # noqa: B018


def test_building_the_parser_does_not_change_the_section_classes():
    before = argparse.Namespace(**{entry.name: entry.type for entry in fields(SECTIONS["start"])})
    build_parser(RECIPES["dino_demo"](None, None))
    assert argparse.Namespace(**{e.name: e.type for e in fields(SECTIONS["start"])}) == before
