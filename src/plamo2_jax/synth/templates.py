"""Jinja templates and expressions of recipe files, in jinja2's sandbox.

Variables: `text`, `language` and `fields` of the seed, `parameters`, `drawn`, `steps`, and `item` in drafts with `for_each`. Nothing random
or dependent on the clock is available, so a rendering depends on the variables only. Names are checked when a recipe is opened: a
misspelt one is an error there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from plamo2_jax.errors import PlamoError


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes characters for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tojson"] = _tojson
    # These use Python's global random generator.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _environment()
_VARIABLES = ("text", "language", "fields", "parameters", "drawn", "steps")


class TemplateFailure(Exception):
    """A template failed on the values of one seed, for instance because it divides by zero. The message is a short reason."""


class Names:
    """Names that templates at one place of a recipe may use.

    Args:
        groups: the allowed attributes of `fields`, `parameters`, `drawn` and `steps`.
        item: whether `item` is a variable.
    """

    def __init__(self, groups: Mapping[str, Collection[str]], item: bool = False):
        self.groups, self.item = groups, item

    def check(self, source: str, where: str) -> None:
        """Raise a PlamoError if a template has a syntax error or uses a name that does not exist."""
        try:
            tree = _ENVIRONMENT.parse(source)
            names = jinja2.meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise PlamoError(f"{where}: the template has an error in line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise PlamoError(f"{where}: the template nests too deeply. Simplify it") from None
        known = {*_VARIABLES, *(["item"] if self.item else []), *_ENVIRONMENT.globals}
        for name in sorted(names - known):
            raise PlamoError(
                f"{where}: the variable {name} does not exist: it must be one of {', '.join(sorted(known))}"
            )
        for node in tree.find_all(jinja2.nodes.Getattr):
            if isinstance(node.node, jinja2.nodes.Name) and node.node.name in self.groups:
                allowed = self.groups[node.node.name]
                if node.attr not in allowed:
                    some = ", ".join(allowed) or "none"
                    raise PlamoError(
                        f"{where}: {node.node.name}.{node.attr} does not exist: {node.node.name} has {some}"
                    )


class Template:
    """A compiled template.

    Raises:
        PlamoError: as for `Names.check`.
    """

    def __init__(self, source: str, names: Names, where: str):
        names.check(source, where)
        self._where, self._template = where, _compiled(_ENVIRONMENT.from_string, source, where)

    def __call__(self, variables: Mapping[str, Any]) -> str:
        """Return the rendered text.

        Raises:
            PlamoError: a value does not exist, so the recipe is wrong.
            TemplateFailure: the template fails on these values.
        """
        return _run(self._template.render, variables, self._where)


class Expression:
    """A compiled expression.

    Raises:
        PlamoError: as for `Names.check`.
    """

    def __init__(self, source: str, names: Names, where: str):
        names.check("{{ (" + source + ") }}", where)
        self._where = where
        self._evaluate = _compiled(
            lambda text: _ENVIRONMENT.compile_expression(text, undefined_to_none=False), source, where
        )

    def __call__(self, variables: Mapping[str, Any]) -> Any:
        """Return the value, as JSON. Errors are those of `Template`."""
        value = _run(self._evaluate, variables, self._where)
        if isinstance(value, jinja2.Undefined):
            raise PlamoError(f"{self._where}: the value does not exist: {value._undefined_message}")
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            raise TemplateFailure("a value is not JSON") from None


def _compiled(compile: Any, source: str, where: str) -> Any:
    try:
        return compile(source)
    # Jinja evaluates constant expressions when it compiles.
    except Exception as error:
        raise PlamoError(f"{where}: the template cannot be compiled: {str(error)[:200]}") from None


def _run(call: Any, variables: Mapping[str, Any], where: str) -> Any:
    try:
        return call(**variables)
    except jinja2.UndefinedError as error:
        raise PlamoError(f"{where}: a value does not exist: {error.message}") from None
    # A template is a program. What it does with a model's answer may fail in any way.
    except Exception as error:
        raise TemplateFailure(type(error).__name__) from None
