"""The fields of a configuration: name, value, default and help text, of a config file or of a run folder's config.json."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax import checkpoint
from plamo2_jax.align.preferences import Dpo
from plamo2_jax.align.sft import Sft
from plamo2_jax.config_file import run_config_file
from plamo2_jax.errors import PlamoError
from plamo2_jax.surgery.distill import Distill
from plamo2_jax.train.config import RunConfig, TaskConfig, to_json
from plamo2_jax.train.pretraining import Pretrain

_TASKS: Mapping[str, type] = {task.kind: task for task in (Pretrain, Distill, Sft, Dpo)}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a configuration."""

    name: str
    """Dotted name, such as model.hidden_size or data.mixture[0].path."""
    value: Any
    """Value, as JSON types."""
    default: Any
    """Default value, as JSON types; None if it is None or if the field has no default."""
    required: bool
    """Whether the field has no default."""
    help: str

    @property
    def changed(self) -> bool:
        """Whether the value differs from the default."""
        return self.required or self.value != self.default


@dataclasses.dataclass(frozen=True)
class Described:
    """A configuration and its fields."""

    source: str
    """The file or folder, as the user named it."""
    kind: str
    """Name of the class."""
    fields: tuple[Field, ...]

    def values(self) -> dict[str, Any]:
        """Return the values by name."""
        return {field.name: field.value for field in self.fields}

    def defaults(self) -> dict[str, Any]:
        """Return the defaults by name, without the fields that have none."""
        return {field.name: field.default for field in self.fields if not field.required}


def describe(source: Path) -> Described:
    """Read the configuration of a config file (.py, or .yaml of `plamo2 synth`) or of a training run's folder.

    Raises:
        PlamoError: There is no such file or folder, or it holds no configuration.
    """
    if source.is_dir():
        stored = checkpoint.read_config(source)
        if not {"data", "steps", "task"} <= stored.keys():
            raise PlamoError(
                f"{source} is not the folder of a training run: its {checkpoint.CONFIG} has no data, steps and task. "
                "Give a run folder or a config file"
            )
        return Described(str(source), "RunConfig", tuple(_fields(RunConfig, stored)))
    config = load(source)
    return Described(str(source), type(config).__name__, tuple(_fields(type(config), config)))


def load(path: Path) -> Any:
    """Return the configuration of a config file, or the pipeline of a pipeline file.

    Raises:
        PlamoError: There is no such file, it fails to run, or it sets neither.
    """
    if path.suffix in (".yaml", ".yml"):
        from plamo2_jax.synth.config import read_config

        return read_config(path)
    values = run_config_file(path, "configs/pretrain.py")
    found = values.get("config", values.get("pipeline"))
    if not dataclasses.is_dataclass(found) or isinstance(found, type):
        raise PlamoError(
            f"{path} does not set a configuration: it must set `config`, such as config = RunConfig(...), or `pipeline`"
        )
    return found


def _fields(kind: type, value: Any, base: Any = None, prefix: str = "") -> Iterator[Field]:
    """Yield the fields of a configuration.

    Args:
        kind: Its class.
        value: An instance, or its JSON form from a config.json; fields that are missing there have their defaults.
        base: Instance that the field holding this configuration has by default; None: there is none.
    """
    hints, helps = typing.get_type_hints(kind), field_help(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        required, default = False, None
        if type(base) is kind:
            default = getattr(base, field.name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            required = True
        held = value.get(field.name, default) if isinstance(value, Mapping) else getattr(value, field.name)
        name, text = f"{prefix}{field.name}", helps.get(field.name, "")
        if (part := _part(hints[field.name], held)) is not None:
            yield from _fields(part, held, default, f"{name}.")
        elif parts := _parts(hints[field.name], held):
            for number, (each, item) in enumerate(zip(parts, held, strict=True)):
                yield from _fields(each, item, None, f"{name}[{number}].")
        else:
            yield Field(name, to_json(held), to_json(default), required, text)


def _part(hint: Any, value: Any) -> type | None:
    """Return the dataclass of a value, which may be in JSON form; None for other values."""
    if dataclasses.is_dataclass(value):
        return type(value)
    if not isinstance(value, Mapping):
        return None
    kinds = [hint, *typing.get_args(hint)] if _is_union(hint) else [hint]
    if TaskConfig in kinds:
        return _TASKS.get(str(value.get("kind")))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _parts(hint: Any, value: Any) -> list[type] | None:
    """Return the dataclasses of the items of a sequence; None if it is empty or has other items."""
    if not isinstance(value, tuple | list) or not value:
        return None
    item_hint = next(iter(typing.get_args(hint)), None)
    parts = [_part(item_hint, item) for item in value]
    return None if None in parts else parts


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


@functools.cache
def field_help(kind: type) -> Mapping[str, str]:
    """Return the help text of each field of a dataclass: the string below the field in the source code, or its line in the section
    "Attributes:" of the docstring of the class.
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        _, _, attributes = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for line, following in itertools.pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if is_text and isinstance(following.value.value, str):
                    found[line.target.id] = " ".join(following.value.value.split())
    return found
