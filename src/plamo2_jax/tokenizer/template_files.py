"""Sources of chat templates: templates of this package, files, and model folders.

A folder has its template in chat_template.jinja. Older checkpoints have it in tokenizer_config.json, as a text or as a list of named
templates, and some processors in chat_template.json. The first of the three files with a template is used.
"""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file

FILE_NAME = "chat_template.jinja"
BUILT_IN = ("chat", "translate")
"""Names of the templates in this package."""
MAX_BYTES = 1 << 20
"""Largest allowed size of a template in bytes; templates of public models have up to 50 KB."""


class ChatTemplateError(PlamoError):
    """A template is invalid, or refuses a conversation; the message gives the reason."""


class ChatTemplateOverrun(ChatTemplateError):
    """A template needs more time or memory than allowed. Callers should stop, because other conversations would exceed the limits too."""


class TemplateText(NamedTuple):
    """The Jinja source of a template, and its name in messages."""

    source: str
    name: str


@functools.cache
def built_in_template(name: str) -> TemplateText:
    """Return one of `BUILT_IN`."""
    file = resources.files("plamo2_jax.tokenizer") / "templates" / f"{name}.jinja"
    return TemplateText(file.read_text(encoding="utf-8"), f"{name}.jinja")


def read_template(path: str | os.PathLike[str]) -> TemplateText:
    """Read one of `BUILT_IN`, a file, or the template of a model's folder.

    Raises:
        ChatTemplateError: The template does not exist or cannot be read.
    """
    if str(path) in BUILT_IN:
        return built_in_template(str(path))
    path = Path(path)
    if path.is_dir():
        if (found := find_template(path)) is not None:
            return found
        path = path / FILE_NAME
    if not path.exists():
        raise ChatTemplateError(
            f"{path} does not exist: it must be {', '.join(BUILT_IN)}, a Jinja file, or a folder with {FILE_NAME}"
        )
    if not path.is_file():
        raise ChatTemplateError(f"{path} is not a regular file: a chat template must be a Jinja file")
    return _read(path)


def find_template(*folders: str | os.PathLike[str]) -> TemplateText | None:
    """Return the chat template of the first of a model's folders that has one, or None.

    Raises:
        ChatTemplateError: Its file is a link out of the folder or cannot be read, or the folder has several templates and none is named
            `default`.
    """
    return next((found for folder in folders if (found := _find(Path(folder))) is not None), None)


def _find(folder: Path) -> TemplateText | None:
    path = optional_file(folder, FILE_NAME, error=ChatTemplateError)
    if path is not None:
        return _read(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = optional_file(folder, name, error=ChatTemplateError)
        value = None if path is None else read_json_object(path, error=ChatTemplateError).get("chat_template")
        if value not in (None, ""):
            source = _default(value, f'{path}: "chat_template"').removeprefix("\ufeff")
            if len(source.encode()) > MAX_BYTES:
                raise ChatTemplateError(
                    f'{path}: "chat_template" is too large for a chat template: at most {MAX_BYTES:,} bytes are allowed'
                )
            return TemplateText(source, f"{path}, chat_template")
    return None


def chat_template_files(*folders: str | os.PathLike[str]) -> dict[str, bytes]:
    """Return the chat template of a model, to write into the folder of a model derived from it: content by file name, empty if none.

    Args:
        folders: Model folders; the first one with a template is used.

    Raises:
        ChatTemplateError: The template cannot be read.
    """
    found = find_template(*folders)
    return {} if found is None else {FILE_NAME: found.source.encode()}


def _read(path: Path) -> TemplateText:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ChatTemplateError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ChatTemplateError(f"{path} is too large for a chat template: at most {MAX_BYTES:,} bytes are allowed")
    try:
        # A byte order mark would be at the start of every prompt.
        return TemplateText(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ChatTemplateError(
            f"{path} is not UTF-8 (byte {error.start}): a chat template must be a text file"
        ) from None


def _default(value: Any, where: str) -> str:
    """Return the template to use, given a text, a list of {name, template} or an object of templates by name."""
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        value = {str(each.get("name")): each.get("template") for each in value}
    if isinstance(value, dict):
        if "default" not in value:
            names = ", ".join(sorted(map(str, value)))[:100] or "none"
            raise ChatTemplateError(
                f"{where} has no template named default, but only {names}: rename one of them to default"
            )
        value = value["default"]
    if not isinstance(value, str):
        raise ChatTemplateError(f"{where} must be a text or a list of objects with name and template")
    return value
