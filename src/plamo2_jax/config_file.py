"""Config files: Python files that assign a configuration to one name."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError


def load_config(path: Path, kind: type = object, such_as: str = "configs/demo.py", name: str = "config") -> Any:
    """Run a config file and return the configuration that it assigns to `name`.

    Args:
        kind: Exact class of the configuration; object allows any class.
        such_as: Example of a config file, for messages.

    Raises:
        PlamoError: The file does not exist, fails to run, assigns no such configuration, or a field is out of range.
    """
    found = run_config_file(path, such_as, name).get(name)
    if found is None or (kind is not object and type(found) is not kind):
        raise PlamoError(f"{path} must set `{name}` to a {kind.__name__}, but its type is {type(found).__name__}")
    return found


def run_config_file(path: Path, such_as: str, name: str = "config") -> dict[str, Any]:
    """Run a config file and return the values of all its names.

    Args:
        such_as: Example of a config file, for messages.
        name: Kind of the file, for messages.

    Raises:
        PlamoError: The file does not exist or fails to run, or a field is out of range.
    """
    if not path.is_file():
        raise PlamoError(
            f"{path} is not a file; the first argument must be a {name} file, such as {such_as} (plamo2 init FOLDER writes some)"
        )
    try:
        return runpy.run_path(str(path))
    except (PlamoError, OSError):
        raise  # The message names what is wrong.
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | AssertionError) else str(error)
        raise PlamoError(f"{path}, line {_line(error, path)}: {what}") from error


def _line(error: Exception, path: Path) -> int | None:
    """Return the line of the config file at which its execution stopped."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
