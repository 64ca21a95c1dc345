"""Config files: Python files that set one name to a configuration."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError


def load_config(path: Path, kind: type = object, such_as: str = "configs/demo.py", name: str = "config") -> Any:
    """Run a config file and return what it sets a name to.

    Args:
        path: the file.
        kind: the exact class that the configuration must be of; object: any.
        such_as: a file to name in messages.
        name: the name that the file must set.

    Raises:
        ValueError: there is no such file, it is not right Python, it sets no such configuration, or what it sets is out of range.
    """
    if not path.is_file():
        raise PlamoError(f"{path} is not a file; the first argument must be a {name} file, such as {such_as}")
    try:
        found = runpy.run_path(str(path)).get(name)
    except (SyntaxError, ImportError, TypeError, NameError, AttributeError) as error:
        raise PlamoError(f"{path}, line {_line(error, path)}: {error}") from error
    if found is None or (kind is not object and type(found) is not kind):
        raise PlamoError(f"{path} must set `{name}` to a {kind.__name__}; it sets it to {type(found).__name__}")
    return found


def _line(error: Exception, path: Path) -> int | None:
    """The line of the config file at which its execution stopped."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
