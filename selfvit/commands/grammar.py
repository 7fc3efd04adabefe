"""Grammar of all commands: usage lines, spellings of options, and errors that name the fix."""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..errors import one_line_errors

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# Spellings of earlier versions, and what to write instead.
FORMER_OPTIONS = {
    "--model": "The checkpoint is the first argument",
    "--no-code": "The option is --no-save-code",
}


def kebab_case(token: str) -> str:
    """Return the spelling that is registered: `--batch_size` is `--batch-size`."""
    return token.replace("_", "-")


class Group(TyperGroup):
    """Group of commands: an error that the user can fix is one line, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        if not sys.stderr.isatty():
            # huggingface_hub, transformers and datasets read these when they are imported.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        with nullcontext() if ctx.params.get("traceback") else one_line_errors():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands with their complete summaries, which typer cuts to one line."""
        rows = []
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            rows.append((name, " ".join((command.help or "").partition("\n\n")[0].split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Command(TyperCommand):
    """Command whose usage line names everything that is required, in the order of the grammar."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        pieces = []
        for parameter in self.params:
            value = parameter.metavar or str(parameter.name).upper()
            if parameter.param_type_name == "argument":
                pieces.append(value)
            elif parameter.required:
                pieces.append(f"{parameter.opts[0]} {value}")
        return [*pieces, "[OPTIONS]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name."""
        self._check_former_options(ctx, args)
        ctx.allow_extra_args = True
        words = self._repeat_lists(join_image_size(args))
        try:
            extra = super().parse_args(ctx, list(words))  # the parser empties it
        except BadParameter as error:
            error.message = _with_value(error, words)
            error.ctx = None  # the usage, which is printed with it, does not help
            raise
        if extra and not ctx.resilient_parsing:
            ctx.fail(self._explain_extra(ctx, extra))
        return extra

    def _repeat_lists(self, args: list[str]) -> list[str]:
        options = [p for p in self.params if isinstance(p, TyperOption)]
        lists = {name for option in options if option.multiple for name in option.opts}
        flags = {name for p in options if p.is_flag for name in (*p.opts, *p.secondary_opts)}
        takes_arguments = any(p.param_type_name == "argument" for p in self.params)
        return repeat_options(args, lists, flags, has_arguments=not takes_arguments)

    def _check_former_options(self, ctx: Any, args: list[str]) -> None:
        own = {kebab_case(name) for parameter in self.params for name in parameter.opts}
        for word in args:
            name = kebab_case(word.partition("=")[0])
            if name in FORMER_OPTIONS and name not in own:
                ctx.fail(f"There is no {name}. {FORMER_OPTIONS[name]}: {self._usage(ctx)}")

    def _explain_extra(self, ctx: Any, extra: list[str]) -> str:
        words = " ".join(extra)
        message = f"Unexpected extra argument ({words})."
        if extra[0].lower() in ("true", "false"):
            return f"{message} Flags take no value; leave it out."
        if any("--output" in parameter.opts for parameter in self.params):
            return f"{message} The output is an option: --output {words}."
        return f"{message} Usage: {self._usage(ctx)}"

    def _usage(self, ctx: Any) -> str:
        names: list[str] = []
        while ctx.parent is not None:
            names, ctx = [ctx.info_name, *names], ctx.parent
        return " ".join(["selfvit", *names, *self.collect_usage_pieces(ctx)])


class RawCommand(TyperCommand):
    """Command that receives its words unparsed, in `context.args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep all words, including those that look like options."""
        ctx.args = list(args)
        return []


def _with_value(error: BadParameter, words: list[str]) -> str:
    """Return the message of an error, with the value that was given for the option."""
    given: list[str] = []
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if kebab_case(option) in getattr(error.param, "opts", ()):
            count = getattr(error.param, "nargs", 1)
            given = [value] if equals else words[index + 1 : index + 1 + count]
    text = " ".join(given)
    message = error.message.removeprefix("Value error, ")  # pydantic, which typer calls, adds it
    return message if not text or text in message else f"{message}, not {text}"


def join_image_size(args: list[str]) -> list[str]:
    """Write the values of an option as one: `--image-size 224 336` as `--image-size 224x336`.

    The values of `--image-mean` and `--image-std` are joined by commas.
    """
    joined: list[str] = []
    for word in args:
        option = kebab_case(joined[-2]) if len(joined) > 1 else ""
        if option == "--image-size" and word.isdecimal() and joined[-1].isdecimal():
            joined[-1] += f"x{word}"
        elif option in ("--image-mean", "--image-std") and NUMBER.fullmatch(word):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def repeat_options(
    args: list[str], lists: set[str], flags: set[str], has_arguments: bool
) -> list[str]:
    """Write `--data A B` as `--data A --data B`, as an option of click has one value.

    The further values of such an option are arguments if there is no argument before it.

    Args:
        args: Words after the command's name.
        lists: Options that take several values.
        flags: Options that take none.
        has_arguments: Whether no argument is to come, as the command takes none.
    """
    repeated: list[str] = []
    current, needs_value = "", False
    for word in args:
        if word.startswith("-"):
            current = "" if "=" in word else kebab_case(word)
            needs_value = bool(current) and current not in flags
        elif needs_value:
            needs_value = False
        elif current in lists and has_arguments:
            repeated.append(current)
        else:
            has_arguments = True
        repeated.append(word)
    return repeated


__all__ = ["Command", "Group", "RawCommand", "join_image_size", "kebab_case", "repeat_options"]
