"""Parsing of command lines with tyro, and one-sentence errors for unknown options and commands.

This module imports tyro, which is slow, so import it only where it is needed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tyro

from plamo2_jax.errors import PlamoError

GROUPS = ("tokenizer", "data", "convert", "launch", "config")
"""Commands whose first argument is a subcommand. Their modules list the subcommands in SUBCOMMANDS."""


def parse(
    kind: Any,
    argv: Sequence[str],
    prog: str,
    *,
    description: str | None = None,
    default: Any = tyro.MISSING,
    config: Sequence[Any] = (),
) -> Any:
    """Parse a command line into a dataclass.

    Args:
        kind: The dataclass.
        argv: The arguments.
        prog: The command as the user types it, without the arguments.
        description: Description for the help; None: the docstring of the dataclass.
        default: Instance with the default values.
        config: Further markers of tyro.

    Raises:
        PlamoError: An option is unknown, and the message names the closest one; or a configuration refuses a value.
        SystemExit: With status 0 after --help, and with status 2 and a message on stderr after other errors.
    """
    options = {
        "prog": prog,
        "description": description,
        "config": (tyro.conf.PositionalMetavarFromFieldName, *config),
        **({} if default is tyro.MISSING else {"default": default}),
    }
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            value, unknown = tyro.cli(kind, args=argv, return_unknown_args=True, **options)
    except SystemExit as end:
        # A misspelled option often causes another error first: tyro parses its value as a positional argument.
        unknown = _misspelled(argv, _options(kind, options)) if end.code == 2 else []
        refusal = None if unknown else _refusal(end)
        if not (unknown or refusal):
            raise
        errors.truncate(0)
        if refusal:
            raise refusal from None
    finally:
        sys.stderr.write(errors.getvalue())
    if unknown:
        raise PlamoError(_unknown_sentence(unknown, _options(kind, options), prog)) from None
    return value


def _refusal(end: BaseException) -> PlamoError | None:
    """Return the PlamoError that tyro caught before it raised `end`. Tyro would print it in a box of several lines."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, PlamoError):
        error = error.__context__
    return error


def _options(kind: Any, options: dict[str, Any]) -> list[str]:
    """Return all options of a command, read from its help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **options)
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\b", text.getvalue())))


def _misspelled(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the options in a command line that the command does not have."""
    if any(re.fullmatch(r"[\w.-]+:[\w-]+", word) for word in argv):
        return []  # The help does not list options of an optional part of a config, such as lora:lora-config.
    words = [word for word in argv if word.startswith("--") and word != "--"]
    return [word for word in words if word.partition("=")[0].replace("_", "-") not in known]


def split_config_file(argv: Sequence[str], such_as: str, show_help: Callable[[], Any]) -> tuple[str, list[str]]:
    """Return the config file, which is the first argument, and the other arguments.

    Args:
        argv: The arguments.
        such_as: A config file to name in messages.
        show_help: Called if the arguments have no config file but --help. Raises SystemExit.

    Raises:
        PlamoError: The first argument is missing or an option.
    """
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            show_help()
        raise PlamoError(f"the first argument must be a config file, such as {such_as}")
    path, *rest = argv
    return path, rest


def call(function: Callable[..., Any], argv: Sequence[str], prog: str) -> Any:
    """Read a command line into the arguments of a function, call it and return its result.

    A function with the single argument `options` gets the dataclass that annotates it.

    Raises:
        PlamoError: An option is unknown, or a configuration refuses a value. The function is not called.
        SystemExit: After --help, with status 0, and after other errors, with status 2. The function is not called.
    """
    if list(function.__annotations__.keys() - {"return"}) == ["options"]:
        return function(parse(typing.get_type_hints(function)["options"], argv, prog))

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    return parse(bind, argv, prog)()


def call_subcommand(commands: Mapping[str, Callable[..., Any]], argv: Sequence[str], prog: str) -> Any:
    """Call the subcommand that the first argument names, and return its result.

    Raises:
        PlamoError: There is no such subcommand, or an option is unknown.
    """
    if not argv:
        raise PlamoError(
            f"the command is missing: it must be one of {', '.join(commands)}. {prog} --help explains them"
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
    """Check that a word is a command. Otherwise raise a PlamoError that names the closest command, or all commands."""
    names = list(commands)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {prog} {close[0]}?" if close else f"it must be one of {', '.join(names)}"
        raise PlamoError(f"unknown command {_shown(name)}; {hint}")


def closest_commands(word: str, verbs: Iterable[str]) -> str:
    """Return commands with a name close to an unknown command, such as "plamo2 data clean", or "" if none is close."""
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
        return f"unexpected argument {_shown(unknown[0])}; {prog} --help lists the arguments"
    name = option.partition("=")[0]
    # The help may mention an option of another command.
    known = [each for each in known if each != name]
    # Users may omit the group of a field: --learning-rate for --schedule.learning-rate.
    close = [each for each in known if each.endswith(name.replace("--", ".", 1).replace("_", "-"))]
    close = close or difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(close[:3])}? " if close else ""
    return f"unknown option {_shown(name)}; {hint}{prog} --help lists the options"


def _shown(word: str) -> str:
    return repr(word if len(word) <= 60 else word[:60] + "...")
