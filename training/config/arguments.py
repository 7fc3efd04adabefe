"""From the command line to a run: a recipe or a YAML, and options for each of its values."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from .from_checkpoint import read_config, read_preprocessing
from .run_config import Recipe, Run, chosen, model_fields, own_fields
from .training_config import TRAINING_FIELDS, TrainingConfig


def _plain_value(text: str) -> Any:
    """Read "3", "1e-3", "true", "null", "[224, 96]" as what they are, anything else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


NOT_GIVEN = object()


class _RunParser(HfArgumentParser):
    """Says what is wrong in a line: argparse prints a hundred lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. selfvit train RECIPE --help lists the options.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:  # an option, and what was meant as its value
            self.error(self._unknown(unknown[0]))
        return parsed

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        options = [option.lstrip("-") for option in self._option_string_actions]
        close = difflib.get_close_matches(name, [n for n in options if "-" not in n], cutoff=0.5)
        if not word.startswith("-") or not close:
            return f"{word!r} is no option"
        return f"{word!r} is no option (near it: --{', --'.join(close)})"


def build_parser(run: Run) -> argparse.ArgumentParser:
    """Return a parser with an option for every value of the run; the default is NOT_GIVEN."""
    parser = _RunParser(
        [TrainingConfig, type(run.augmentation)],  # type: ignore[list-item]
        prog="selfvit train RECIPE",
        description="Options are fields of the recipe; --max_steps and --max-steps are the same.",
        formatter_class=argparse.HelpFormatter,
        allow_abbrev=False,
    )
    model_names = sorted(model_fields())
    for part in run.objectives().values():
        model_names += sorted(own_fields(part))
    parser.add_argument(
        "--no-code", dest="save_code", action="store_false", help="the same as --save_code false"
    )
    group = parser.add_argument_group("model", "fields of the configuration; see its documentation")
    for name in model_names:
        flags = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        group.add_argument(*flags, dest=name, type=_plain_value, metavar="VALUE")
    names = [
        entry.name for kind in (TrainingConfig, type(run.augmentation)) for entry in fields(kind)
    ]
    parser.set_defaults(**dict.fromkeys(names + model_names, NOT_GIVEN))
    return parser


def make_run(
    arguments: list[str],
    recipes: dict[str, Recipe],
    count_images: Callable[[TrainingConfig], int | None],
) -> Run:
    """Build a run from the command line.

    Args:
        arguments: a recipe's name or the path of a run's YAML, then options.
        recipes: recipe by name; called with the number of images and the batch size that the
            command line asks for, each None where it is not known.
        count_images: opens the data and says how many images it has; None where unknown.

    Raises:
        ValueError: if there is no such recipe, or values do not fit together.
    """
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"name a recipe or a run's YAML first; recipes: {', '.join(recipes)}.")
    name, *rest = arguments
    if name in recipes:
        draft = recipes[name](None, None)
    elif Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        draft = Run.from_yaml(Path(name).read_text(encoding="utf-8"))
    else:
        raise ValueError(
            f"there is no recipe or YAML file {name!r}; recipes: {', '.join(recipes)}."
        )
    given = vars(build_parser(draft).parse_args(rest))
    options = {name: value for name, value in given.items() if value is not NOT_GIVEN}
    training = replace(draft.training, **chosen(options, TRAINING_FIELDS))
    if not training.data:
        raise ValueError("name the images to train on: --data FOLDER_OR_DATASET.")
    if not training.output:
        raise ValueError("name a folder for the run: --output FOLDER.")
    run = draft
    if name in recipes:
        run = recipes[name](count_images(training), options.get("batch_size"))
    is_written_down = name not in recipes and training.init_from == draft.training.init_from
    if training.init_from is None or is_written_down:  # in a YAML: with what the checkpoint brought
        return run.with_options(options)
    # geometry and preprocessing of the checkpoint, then the command line
    options = {**read_preprocessing(training.init_from), **options}
    return run.with_options(options, encoder=read_config(training.init_from))


__all__ = ["build_parser", "make_run"]
