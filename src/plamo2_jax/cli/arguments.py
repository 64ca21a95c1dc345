"""Command lines of the verbs. tyro reads them; here are one-sentence errors for unknown words and the names of positional arguments.

Imports tyro: import on demand.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tyro

GROUPS = ("tokenizer", "data", "convert", "launch")
"""Verbs whose first argument is a command of their own; their modules list these in SUBCOMMANDS."""


def parse(
    kind: Any,
    argv: Sequence[str],
    prog: str,
    *,
    description: str | None = None,
    default: Any = tyro.MISSING,
    config: Sequence[Any] = (),
) -> Any:
    """Read a command line into a dataclass.

    Args:
        kind: The dataclass.
        argv: The arguments.
        prog: The command as the user types it, up to the arguments.
        description: Of the help; left out, the dataclass's docstring.
        default: An instance with the values of options that are not given.
        config: Further markers of tyro.

    Raises:
        ValueError: a word is not an option of this command; the message names the closest one.
        SystemExit: after --help with status 0; for other errors with status 2, explained on stderr.
    """
    options = {
        "prog": prog,
        "description": description,
        "config": (tyro.conf.PositionalMetavarFromFieldName, *config),
        **({} if default is tyro.MISSING else {"default": default}),
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            value, unknown = tyro.cli(kind, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        # A misspelled option often shows as something else: its value is taken for a positional argument.
        unknown = _misspelled(argv, _options(kind, options)) if end.code == 2 else []
        if not unknown:
            raise
        said.truncate(0)
    finally:
        sys.stderr.write(said.getvalue())
    if unknown:
        raise ValueError(_unknown_sentence(unknown, _options(kind, options), prog)) from None
    return value


def _options(kind: Any, options: dict[str, Any]) -> list[str]:
    """All options of a command, read from its help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **options)
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\b", text.getvalue())))


def _misspelled(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """Options in a command line that the command does not have."""
    if any(re.fullmatch(r"[\w.-]+:[\w-]+", word) for word in argv):
        return []  # An optional part of a config, such as distillation:distillation-config, has options that the help does not list.
    words = [word for word in argv if word.startswith("--") and word != "--"]
    return [word for word in words if word.partition("=")[0].replace("_", "-") not in known]


def call(function: Callable[..., Any], argv: Sequence[str], prog: str, *, description: str | None = None) -> Any:
    """Read a command line into the arguments of a function, and call it; returns what it returns.

    Raises:
        ValueError, SystemExit: as `parse`. The function is not called then.
    """

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    return parse(bind, argv, prog, description=description)()


def call_subcommand(commands: Mapping[str, Callable[..., Any]], argv: Sequence[str], prog: str) -> Any:
    """Call the command that the first argument names with the other arguments; returns what it returns.

    Raises:
        ValueError: there is no such command; and as `call`.
    """
    if not argv:
        raise ValueError(
            f"the command is missing: it must be one of {', '.join(commands)}; {prog} --help explains them"
        )
    name, *rest = argv
    if name in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {prog} COMMAND [options]        ({prog} COMMAND --help explains a command)\n")
        for each, function in commands.items():
            print(f"  {each:<{width}}  {(function.__doc__ or '').splitlines()[0]}")
        return 0
    require_command(name, commands, prog)
    return call(commands[name], rest, f"{prog} {name}")


def require_command(name: str, commands: Iterable[str], prog: str) -> None:
    """Refuse a word that is not a command.

    Raises:
        ValueError: the message names the closest command, or all.
    """
    names = list(commands)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {prog} {close[0]}?" if close else f"it must be one of {', '.join(names)}"
        raise ValueError(f"unknown command {_shown(name)}; {hint}")


def closest_commands(word: str, verbs: Iterable[str]) -> str:
    """Commands that a word that is no verb may mean, such as "plamo2 data clean"; "" where none is close."""
    commands = {f"plamo2 {verb}": verb for verb in verbs}
    for group in GROUPS:
        module = importlib.import_module(f"plamo2_jax.cli.{group}")
        commands |= {f"plamo2 {group} {name}": name for name in module.SUBCOMMANDS}

    def closeness(command: str) -> float:
        return difflib.SequenceMatcher(a=word.lower(), b=commands[command]).ratio()

    close = sorted((each for each in commands if closeness(each) > 0.7), key=closeness, reverse=True)
    return " or ".join(close[:3])


def _unknown_sentence(unknown: Sequence[str], known: Sequence[str], prog: str) -> str:
    option = next((word for word in unknown if word.startswith("-")), None)
    if option is None:
        return f"unexpected argument {_shown(unknown[0])}; {prog} --help shows what it takes"
    name = option.partition("=")[0]
    # A help text may mention an option of another command.
    known = [each for each in known if each != name]
    # A field of a part may be given without the part: --learning-rate for --schedule.learning-rate.
    close = [each for each in known if each.endswith(name.replace("--", ".", 1).replace("_", "-"))]
    close = close or difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    # Help may mention an option of another command.
    close = [each for each in close if each != name]
    hint = f"did you mean {' or '.join(close[:3])}? " if close else ""
    return f"unknown option {_shown(name)}; {hint}{prog} --help lists the options"


def _shown(word: str) -> str:
    return repr(word if len(word) <= 60 else word[:60] + "...")
