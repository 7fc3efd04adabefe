"""The grammar that all commands share, read from the commands themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
import typing
from collections import defaultdict

import pytest
import typer.main
from typer.testing import CliRunner

from selfvit import __version__
from selfvit.cli import app
from selfvit.commands.grammar import join_image_size, kebab_case
from selfvit.commands.options import parse_image_size
from selfvit.recipe_overview import recipe_summaries

# Heavy packages, and those that only a running command needs.
HEAVY = {
    "torch", "transformers", "torchvision", "accelerate", "datasets", "cv2", "numpy", "PIL",
    "pyarrow", "sklearn", "matplotlib", "huggingface_hub", "safetensors", "tqdm",
}  # fmt: skip
# Words that no help text starts with: it names the thing first.
FORBIDDEN_STARTS = re.compile(r"(of|that|as for|what|whether it is)\b", re.IGNORECASE)
ROOT_OPTIONS = {"--install-completion", "--show-completion", "--help"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="selfvit")


def walk(command, words=()):
    """Return every command below a group, by its words: ("visualize", "pca")."""
    found = {words: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= walk(child, (*words, name))
    return found


COMMANDS = walk(typer.main.get_command(app))
RUNNABLE = [words for words, command in COMMANDS.items() if not hasattr(command, "commands")]
OPTIONS = [
    (words, option)
    for words, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not ROOT_OPTIONS & set(option.opts)
]


def describe(words, option):
    return " ".join([*words, option.opts[0]])


class TestEveryOption:
    def test_it_is_kebab_case(self):
        pattern = re.compile(r"--[a-z0-9]+(-[a-z0-9]+)*|-[a-z]")
        names = {name for _, option in OPTIONS for name in [*option.opts, *option.secondary_opts]}
        assert not [name for name in sorted(names) if not pattern.fullmatch(name)]

    def test_its_help_names_the_thing_first(self):
        for words, option in OPTIONS:
            text = option.help
            assert text and text[0].isupper() and text.endswith("."), describe(words, option)
            assert not FORBIDDEN_STARTS.match(text), describe(words, option)

    def test_an_unset_default_is_explained(self):
        for words, option in OPTIONS:
            if not option.required and option.default is None and "--data" not in option.opts:
                assert isinstance(option.show_default, str), (
                    f"{describe(words, option)} shows no default"
                )

    def test_a_name_has_one_type_one_help_text_and_one_short_form(self):
        meanings = defaultdict(set)
        for words, option in OPTIONS:
            hints = typing.get_type_hints(COMMANDS[words].callback.__wrapped__)
            hint = hints[option.name]
            is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
            kinds = {*(typing.get_args(hint) if is_union else [hint])} - {type(None)}
            meanings[option.opts[0]].add((option.help, frozenset(kinds), tuple(option.opts)))
        assert {name: found for name, found in meanings.items() if len(found) > 1} == {}

    def test_a_name_has_one_text_for_its_default(self):
        texts = defaultdict(set)
        for _, option in OPTIONS:
            # what is written, and in which type, depends on the command
            if isinstance(option.show_default, str) and option.opts[0] != "--output":
                texts[option.opts[0]].add(option.show_default)
        assert {name: found for name, found in texts.items() if len(found) > 1} == {}

    def test_the_shared_options_are_found(self):
        names = [option.opts[0] for _, option in OPTIONS]
        assert names.count("--device") >= 7 and names.count("--pooling") == 4
        assert len(OPTIONS) > 60


OTHER_ARGUMENTS = {"convert": "SOURCE"} | dict.fromkeys(
    ("search", "index", "duplicates", "outliers", "select", "cluster", "label", "map", "explore"),
    "VECTORS",
)


class TestGrammar:
    def test_the_checkpoint_is_the_first_argument(self):
        for words in RUNNABLE:
            # the training script reads the recipe of train, and stats has no checkpoint
            if words in (("train",), ("stats",)):
                continue
            first = next(p for p in COMMANDS[words].params if p.param_type_name == "argument")
            assert first.metavar == OTHER_ARGUMENTS.get(words[0], "CHECKPOINT"), words
            assert COMMANDS[words].params[0] is first, words

    @pytest.mark.parametrize(
        "words, usage",
        [
            (["embed"], "embed CHECKPOINT --data IMAGES --output VECTORS [OPTIONS]"),
            (["evaluate"], "evaluate CHECKPOINT --train IMAGES [OPTIONS]"),
            (["convert"], "convert SOURCE --output CHECKPOINT [OPTIONS]"),
            (["export"], "export CHECKPOINT --to FORMAT [OPTIONS]"),
            (["audit"], "audit CHECKPOINT [OPTIONS]"),
            (["publish"], "publish CHECKPOINT USER/NAME [OPTIONS]"),
            (["visualize", "pca"], "visualize pca CHECKPOINT --data IMAGES --output PNG [OPTIONS]"),
            (["train"], "train RECIPE --data IMAGES --output RUN [--init-from CHECKPOINT]"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_the_usage_line_shows_all_that_is_required(self, words, usage):
        result = run(*words, "--help")
        assert result.exit_code == 0, result.output
        assert f"Usage: selfvit {usage}" in " ".join(result.stdout.split())

    def test_snake_case_options_commands_and_choices_parse(self, tmp_path):
        assert kebab_case("--batch_size") == "--batch-size"
        result = run(
            *("embed", tmp_path, "--data", "/nowhere", "-o", tmp_path / "out"),
            *("--batch_size", 4, "--num_workers=0", "--label_column", "a_b"),
        )
        assert result.exit_code == 2 and "'/nowhere'" in result.stderr
        result = run("export", tmp_path, "--to", "sentence_transformers", "--device", "nowhere:1")
        assert result.exit_code == 2 and "device ('nowhere:1')" in result.stderr

    @pytest.mark.parametrize(
        ("words", "joined"),
        [
            ("--image-size 224 336 --seed 1", "--image-size 224x336 --seed 1"),
            ("--image_size 224 336", "--image_size 224x336"),
            ("--image-size 224 model", "--image-size 224 model"),
            ("--image-size 224x336 336", "--image-size 224x336 336"),
            ("--seed 224 336", "--seed 224 336"),
        ],
    )
    def test_an_image_size_may_be_two_words(self, words, joined):
        assert join_image_size(words.split()) == joined.split()

    def test_an_image_size_is_height_and_width(self):
        assert parse_image_size("224") == (224, 224)
        assert parse_image_size("224x336") == (224, 336)

    @pytest.mark.parametrize("size", ["0", "224x", "x224", "2.5", "224x336x3", "-8", "[224, 336]"])
    def test_another_image_size_is_refused(self, size, tmp_path):
        arguments = (tmp_path, "--data", tmp_path, "--output", tmp_path / "a.png")
        result = run("visualize", "pca", *arguments, f"--image-size={size}")
        assert result.exit_code == 2 and "224, or 224 336" in result.stderr


class TestErrors:
    def test_a_misspelt_option_suggests_the_right_one(self):
        result = run("embed", "model", "--data", "a", "--output", "b", "--poolin", "cls")
        assert result.exit_code == 2
        assert "No such option: --poolin" in result.stderr and "--pooling" in result.stderr

    @pytest.mark.parametrize(
        ("words", "right"), [(["embd"], "embed"), (["visualize", "atention"], "attention")]
    )
    def test_a_misspelt_command_suggests_the_right_one(self, words, right):
        result = run(*words)
        assert result.exit_code == 2 and f"Did you mean '{right}'?" in result.stderr

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                "embed --model X --data D --output O",
                "first argument: selfvit embed CHECKPOINT --data IMAGES --output VECTORS",
            ),
            ("embed --model=X --data D --output O", "selfvit embed CHECKPOINT"),
            ("visualize pca --model X --data D --output O", "selfvit visualize pca CHECKPOINT"),
            ("evaluate --model X --train D", "selfvit evaluate CHECKPOINT --train IMAGES"),
            ("convert S --output O --no-code", "There is no --no-code. The option is --no-save-c"),
            ("convert SOURCE OUT", "Missing option '--output'"),
            ("convert SOURCE OUT --output O", "The output is an option: --output OUT"),
            ("export CHECKPOINT OUT --to timm", "The output is an option: --output OUT"),
            ("embed X --data D --output O --normalize true", "Flags take no value; leave it out"),
            ("embed --data D --output O", "Missing argument 'CHECKPOINT'"),
        ],
    )
    def test_a_former_spelling_names_the_new_one(self, words, message):
        result = run(*words.split())
        assert result.exit_code == 2 and message in " ".join(result.stderr.split())

    def test_an_unknown_choice_is_named_without_the_words_of_pydantic(self):
        result = run("export", "CHECKPOINT", "--to", "tensorflow")
        assert result.exit_code == 2  # "Value error, 'tensorflow' is not ..." before
        assert "Invalid value for '--to': 'tensorflow' is not one of 'transformers'," in (
            " ".join(result.stderr.split())
        )


# Imports the command line in a new process, since this one has imported heavy modules already, and
# prints help and modules of each command, which runs in a fork.
EVERY_HELP = """
import contextlib, io, json, os, sys
from selfvit.cli import app
for words in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    sys.argv, code, printed = ["selfvit", *words], 0, io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            app()
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([words, code, printed.getvalue(), sorted(sys.modules)]), flush=True)
    os._exit(0)
"""


class TestStartUp:
    def test_help_imports_nothing_heavy(self):
        every = [*([*words, "--help"] for words in COMMANDS), ["train"]]
        result = subprocess.run(
            [sys.executable, "-c", EVERY_HELP, json.dumps(every)], capture_output=True, text=True
        )
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [words for words, *_ in found] == every, result.stderr
        for words, code, printed, modules in found:
            assert code == 0 and "Usage: selfvit" in printed, words
            assert "selfvit.cli" in modules and not set(modules) & HEAVY, words

    def test_help_takes_less_than_0_7_seconds_of_processor_time(self):
        before = os.times()
        for words in ([], ["embed"], ["train"]):
            command = [sys.executable, "-m", "selfvit.cli", *words, "--help"]
            subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        seconds = after.children_user - before.children_user
        seconds += after.children_system - before.children_system
        assert seconds / 3 < 0.7

    def test_train_lists_every_recipe_with_its_summary(self):
        from selfvit.training.recipes import RECIPES

        summaries = recipe_summaries()
        assert list(summaries) == list(RECIPES)
        printed = run("train", "--help").stdout
        for name, recipe in RECIPES.items():
            assert summaries[name] == recipe.__doc__.partition("\n")[0] != ""
            assert f"  {name} " in printed and summaries[name] in printed

    def test_version_is_printed(self):
        assert run("--version").stdout.strip() == __version__
