"""Parse the command line of a run: a recipe or YAML file, and an option for each of its values."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers.utils.chat_template_utils import parse_google_format_docstring

from ...configuration.configuration_selfvit import SelfViTConfig
from ...option_help import HELP
from .from_checkpoint import read_config, read_preprocessing
from .run_config import STATISTICS, Recipe, RunConfig, model_fields, own_fields, select
from .teacher_momentum import with_finetuning_momentum
from .training_config import SECTION_OF, SECTIONS, DataConfig, StartConfig

SHORT_NAMES = {"output": ("-o",)}
METAVARS: dict[str, Any] = {
    "data": "IMAGES",
    "output": "RUN",
    "init_from": "CHECKPOINT",
    "pixel_range": ("LOW", "HIGH"),
}


@dataclass(frozen=True)
class RunRequest:
    """Request for a run: a recipe or a YAML file, and options.

    Args:
        name: Name of the recipe, or path of the YAML file.
        draft: Configuration of the run before its data is known.
        recipe: Recipe; None for a YAML file.
        options: Requested values by field name.
    """

    name: str
    draft: RunConfig
    recipe: Recipe | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> RunConfig:
        """The draft with the requested values of its sections.

        Mean and std are not among them: they must fit the channels, which `build_run` sets.
        """
        return self.draft.replace(**select(self.options, SECTION_OF.keys() - {*STATISTICS}))

    @property
    def data(self) -> DataConfig:
        """Images to open, and how they are read."""
        return self.sections.data

    @property
    def start(self) -> StartConfig:
        """Where the run starts, and where it writes."""
        return self.sections.start


def parse_arguments(arguments: list[str], recipes: Mapping[str, Recipe]) -> RunRequest:
    """Parse the command line of `selfvit train`.

    Args:
        arguments: Name of a recipe or path of a run's YAML file, then options.
        recipes: Recipes by name.

    Raises:
        ValueError: If there is no such recipe or option, or no images or output are named.
    """
    if not arguments or arguments[0].startswith("-"):
        to_resume = ""
        if "--resume" in arguments:
            to_resume = " To resume a run, give its file: selfvit train RUN/training.yaml --resume."
        raise ValueError(
            f"name a recipe or a run's YAML first; recipes: {', '.join(recipes)}.{to_resume}"
        )
    request = open_request(arguments[0], recipes)
    parser = build_parser(request.draft)
    parsed = parser.parse_args(normalize_options(arguments[1:], flags_of(parser)))
    return request_with(request, vars(parsed))


def open_request(name: str, recipes: Mapping[str, Recipe]) -> RunRequest:
    """Return the request for a recipe or a YAML file, without options.

    Raises:
        ValueError: If there is no such recipe or file.
    """
    if name in recipes:
        return RunRequest(name, recipes[name](None, None), recipes[name])
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return RunRequest(name, RunConfig.from_yaml(Path(name).read_text(encoding="utf-8")))
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"there is no recipe or YAML file {name!r}.{hint} Recipes: {', '.join(recipes)}."
    )


def request_with(request: RunRequest, options: dict[str, Any]) -> RunRequest:
    """Return the request with options, checked as far as possible without opening the data.

    Raises:
        ValueError: If an option is unknown, or no images or output are named.
    """
    known = {*SECTION_OF, *(name for _, name in _model_options(request.draft))}
    known |= {entry.name for entry in fields(request.draft.augmentation)}
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{request.name} has no option {name!r}.{hint}")
    request = RunRequest(request.name, request.draft, request.recipe, options)
    if not request.data.data:
        raise ValueError("name the images to train on: --data IMAGES.")
    if not request.start.output:
        raise ValueError("name a folder for the run: --output FOLDER.")
    return request


def build_run(request: RunRequest, num_images: int | None) -> RunConfig:
    """Build the run of a request.

    Geometry and preprocessing come from the checkpoint to start from, if there is one, then from
    the options. A YAML file already has what its checkpoint brought.

    Args:
        request: The recipe or YAML file, and the options.
        num_images: Size of the dataset; None for a stream.

    Raises:
        ValueError: If values contradict each other, or `init_from` is not a selfvit checkpoint.
    """
    options, run = request.options, request.draft
    if "epochs" in options:  # instead of a number of steps that the recipe or file has
        options = {"max_steps": None, **options}
    if request.recipe is not None:
        run = request.recipe(num_images, options.get("batch_size"))
    init_from = request.start.init_from
    is_written = request.recipe is None and init_from == request.draft.start.init_from
    if init_from is None or is_written:
        return _for_its_length(run.with_options(options), request, num_images)
    encoder = read_config(init_from)
    taken = read_preprocessing(init_from, options.get("patch_size", encoder.patch_size))
    num_channels = options.get("num_channels", encoder.num_channels)
    for name in STATISTICS:
        if len(taken.get(name, [])) != num_channels:
            taken.pop(name, None)  # those of other channels
    if "bits" in options:
        taken.pop("pixel_range", None)
    if options.get("init_scope", run.start.init_scope) == "all":
        taken |= _weight_fields(run, encoder)
    run = run.with_options({**taken, **options}, encoder=encoder)
    return _for_its_length(run, request, num_images)


def _weight_fields(run: RunConfig, stored: SelfViTConfig) -> dict[str, Any]:
    """Return the fields that the stored weights of heads and decoders depend on, by name."""
    parts: list[Any] = [getattr(stored, name) for name in run.objectives()]
    return {
        name: getattr(part, name)
        for part in parts
        if part is not None
        for name in part.weight_fields
    }


def _for_its_length(run: RunConfig, request: RunRequest, num_images: int | None) -> RunConfig:
    """Return the run of a recipe with the values that follow from its length."""
    if request.recipe is None or "teacher_momentum" in request.options:
        return run
    return with_finetuning_momentum(run, num_images)


class TrainParser(argparse.ArgumentParser):
    """Parser whose errors are one ValueError, without the hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the error of an option.

        Raises:
            ValueError: Always. The message names the command that lists the options.
        """
        end = "" if message.endswith("?") else "."
        raise ValueError(f"{message}{end} selfvit train RECIPE --help lists the options.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse options; an unknown one is an error that suggests similar options."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain_unknown(unknown[0]))
        return parsed

    def _explain_unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        close = difflib.get_close_matches(name, self._option_string_actions, cutoff=0.6)
        if not word.startswith("-"):
            return f"{word!r} is not an option; images to train on are named with --data"
        if not close:
            return f"there is no option {word!r}"
        return f"there is no option {word!r}. Did you mean {' or '.join(close)}?"


def build_parser(run: RunConfig) -> TrainParser:
    """Return a parser with an option for every value of a run, which shows the run's values.

    Only options that are given appear in what it parses.
    """
    parser = TrainParser(
        prog="selfvit train RECIPE",
        usage="selfvit train RECIPE --data IMAGES --output RUN [OPTION ...]",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(section._argument_group_name, inspect.getdoc(section))
        _add_fields(group, section, getattr(run, name))
    group = parser.add_argument_group("augmentation", inspect.getdoc(run.augmentation))
    _add_fields(group, type(run.augmentation), run.augmentation)
    group = parser.add_argument_group("model", "The encoder and the objective.")
    for config, name in _model_options(run):
        _add_model_option(group, config, name)
    return parser


def _add_fields(group: Any, owner: type, values: Any) -> None:
    kinds = get_type_hints(owner)
    for entry in fields(owner):  # type: ignore[arg-type]
        text = _with_default(entry.metadata["help"], getattr(values, entry.name))
        names = [f"--{entry.name.replace('_', '-')}", *SHORT_NAMES.get(entry.name, ())]
        kind, is_list = _plain_type(kinds[entry.name])
        if kind is bool:
            group.add_argument(
                *names, dest=entry.name, action=argparse.BooleanOptionalAction, help=text
            )
            continue
        choices = entry.metadata.get("choices")
        metavar = METAVARS.get(entry.name) or {int: "N", float: "X"}.get(kind, "TEXT")
        if choices is not None:
            metavar = "{" + ",".join(str(choice) for choice in choices if choice is not None) + "}"
        group.add_argument(
            *names,
            dest=entry.name,
            type=kind,
            nargs=len(metavar) if isinstance(metavar, tuple) else "+" if is_list else None,
            action=_OneOrMore
            if get_origin(kinds[entry.name]) is types.UnionType and is_list
            else "store",
            metavar=metavar,
            help=text,
        )


def _add_model_option(group: Any, config: Any, name: str) -> None:
    meanings = _meanings(inspect.getdoc(type(config)) or "")
    text = HELP.get(name) or meanings.get(name, "")
    if isinstance(getattr(config, name), bool):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            action=argparse.BooleanOptionalAction,
            help=_with_default(text, getattr(config, name)),
        )
        return
    group.add_argument(
        f"--{name.replace('_', '-')}",
        dest=name,
        type=plain_value,
        action=_OneOrTwo if name == "image_size" else "store",
        nargs="+" if name == "image_size" else None,
        metavar="VALUE",
        help=_with_default(text, getattr(config, name)),
    )


@cache
def _meanings(docstring: str) -> dict[str, str]:
    """Return what the docstring of a configuration says about each of its fields."""
    _, meanings, _ = parse_google_format_docstring(docstring)
    return {name: " ".join(text.split()) for name, text in (meanings or {}).items()}


class _OneOrMore(argparse.Action):
    """One value as it is, or a list of several."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


class _OneOrTwo(argparse.Action):
    """One size for a square, or height and width."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if len(values) > 2:
            raise argparse.ArgumentError(self, "give one number, or height and width")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _with_default(text: str, value: Any) -> str:
    """Append a value to a help text, in which argparse reads % as a format."""
    text = text.rstrip(".") + "."
    if value is not None and value != "" and not isinstance(value, dict):
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = f"{text} (default: {shown})"
    return text.replace("%", "%%")


def _plain_type(kind: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether there is a list of them."""
    if any(get_origin(part) is list for part in get_args(kind)):
        kind = next(part for part in get_args(kind) if get_origin(part) is list)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return str, False
    if get_origin(kind) is list:
        return get_args(kind)[0], True
    return kind, False


def _model_options(run: RunConfig) -> Iterable[tuple[Any, str]]:
    """Yield the configurations of the model, and the names of their fields that are options."""
    yield from ((run.model, name) for name in sorted(model_fields()))
    for part in run.objectives().values():
        yield from ((part, name) for name in sorted(own_fields(part)))


def plain_value(text: str) -> Any:
    """Parse "3", "1e-3", "true", "null" or "[224, 96]" as JSON does; anything else is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options that take no value."""
    return {
        option
        for option, action in parser._option_string_actions.items()
        if isinstance(action, argparse.BooleanOptionalAction)
    }


def normalize_options(arguments: list[str], flags: set[str]) -> list[str]:
    """Rewrite older spellings: `--max_steps` to `--max-steps`, `--resume true` to `--resume`."""
    normalized: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            name, separator, value = word.partition("=")
            name = name.replace("_", "-")
            if name in flags and separator:
                normalized.append(name)
                word = value
            else:
                word = name + separator + value
        before = normalized[-1] if normalized else ""
        if before in flags and word.lower() in ("true", "false"):
            if word.lower() == "false":
                normalized[-1] = before.replace("--", "--no-", 1)
            continue
        normalized.append(word)
    return normalized


__all__ = [
    "RunRequest",
    "build_parser",
    "build_run",
    "flags_of",
    "normalize_options",
    "open_request",
    "parse_arguments",
    "plain_value",
    "request_with",
]
