"""Chat templates: conversations to token ids, with a mask of what the assistant says.

Templates are Jinja, written like those of the ecosystem: they get `messages`, `tools`, `add_generation_prompt`, the special tokens and
any further variables, run in a sandbox, and mark what the assistant says with `{% generation %} ... {% endgeneration %}`.

What people wrote is never read as control: a control string inside a message is text, while the template's own are tokens. For that
the first character of every control string in a message is followed, while the template runs, by a mark that is taken out again
afterwards. Texts between control tokens and at the bounds of an answer are encoded one by one, so that the ids of a prompt are the
beginning of the ids of prompt and answer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np

from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

FILE_NAME = "chat_template.jinja"
BUILT_IN = ("chat", "translate")
"""Templates of this package, by name."""

# Noncharacters, which Unicode keeps free for such uses: no text has them.
_MARK, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_MARK}{_BEGIN}{_END}]")


class ChatTemplateError(ValueError):
    """A template is wrong, or refuses a conversation; the message says why."""


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids."""

    ids: np.ndarray
    """[n] int32."""
    answer: np.ndarray
    """[n] int32: 0 where a token is not the assistant's, else which of the marked stretches it is in, from 1."""


class ChatTemplate:
    """A template, compiled; immutable.

    Args:
        source: Jinja.
        name: what to call it in messages.

    Raises:
        ChatTemplateError: it is not right Jinja; the message names the line.
    """

    def __init__(self, source: str, name: str = FILE_NAME):
        self.source, self.name = source, name
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"{name}, line {error.lineno}: {error.message}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """One of `BUILT_IN`, a file, or the chat_template.jinja in a folder.

        Raises:
            ChatTemplateError: there is none, or it is not right Jinja.
        """
        if str(path) in BUILT_IN:
            file = resources.files("plamo2_jax.tokenizer") / "templates" / f"{path}.jinja"
            return cls(file.read_text(encoding="utf-8"), f"{path}.jinja")
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise ChatTemplateError(
                f"{path} does not exist; name a template ({', '.join(BUILT_IN)}), a Jinja file, or a folder with {FILE_NAME}"
            )
        return cls(path.read_text(encoding="utf-8"), str(path))

    @property
    def marks_answers(self) -> bool:
        """Whether it says which text is the assistant's, without which nothing can be trained on."""
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> EncodedChat:
        """Ids of a conversation, and which are the assistant's.

        Args:
            tokenizer: whose control tokens the template may write.
            messages: objects with `role` and `content`.
            add_generation_prompt: end with what comes before an answer.
            variables: further ones of the template; JSON values, trusted no more than messages are.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails on it.
            ValueError: a message holds a lone surrogate.
        """
        controls, matches = _controls(tokenizer)
        rendered = self._render(controls, matches, messages, add_generation_prompt, variables)
        ids: list[np.ndarray] = []
        answers: list[np.ndarray] = []
        number, inside = 0, False
        for stretch in re.split(f"([{_BEGIN}{_END}])", rendered):
            if stretch in (_BEGIN, _END):
                inside = stretch == _BEGIN
                number += inside
                continue
            for piece in _encode(tokenizer, matches, stretch):
                ids.append(piece)
                answers.append(np.full(len(piece), number if inside else 0, np.int32))
        if not ids:
            return EncodedChat(np.zeros(0, np.int32), np.zeros(0, np.int32))
        return EncodedChat(np.concatenate(ids), np.concatenate(answers))

    def _render(
        self,
        controls: Sequence[str],
        matches: re.Pattern[str],
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The template's text, with marks in it."""
        tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
        given = _shield({"tools": None, "documents": None, **variables, "messages": list(messages)}, controls, matches)
        try:
            return self._template.render(**tokens, **given, add_generation_prompt=add_generation_prompt)
        except ChatTemplateError:
            raise
        # A template is a program: whatever it stumbles over is wrong with it, or with what it was given.
        except (jinja2.TemplateError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
            raise ChatTemplateError(f"{self.name} fails on this conversation: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: puts marks around what is between."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


@functools.lru_cache(maxsize=4)
def _controls(tokenizer: Tokenizer) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """A tokenizer's control strings, and an expression that finds them."""
    # The longest first: one may begin like another.
    controls = sorted((token for i, token in enumerate(tokenizer.tokens) if tokenizer.is_special(i)), key=len)[::-1]
    return tuple(controls), re.compile("|".join(map(re.escape, controls)) or r"(?!)")


def _shield(value: Any, controls: Sequence[str], matches: re.Pattern[str]) -> Any:
    """A JSON value with marks in the control strings of its texts, whole ones and the beginnings of one at their ends."""
    if isinstance(value, str):
        if _MARKS.search(value):
            raise ChatTemplateError("a message holds one of the noncharacters U+FDD0 to U+FDD2, which are no text")
        value = matches.sub(lambda match: match[0][0] + _MARK + match[0][1:], value)
        for control in controls:
            for length in range(len(control) - 1, 0, -1):
                if value.endswith(control[:length]):
                    start = len(value) - length
                    value = value[: start + 1] + _MARK + value[start + 1 :]
                    break
        return value
    if isinstance(value, Mapping):
        return {name: _shield(item, controls, matches) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shield(item, controls, matches) for item in value]
    return value


def _encode(tokenizer: Tokenizer, matches: re.Pattern[str], text: str) -> list[np.ndarray]:
    """Ids of a stretch: control tokens where the template wrote them, text between."""
    pieces, start = [], 0
    for match in matches.finditer(text):
        pieces += [
            tokenizer.encode(text[start : match.start()].replace(_MARK, "")),
            np.array([tokenizer.id_of(match[0])], np.int32),
        ]
        start = match.end()
    pieces.append(tokenizer.encode(text[start:].replace(_MARK, "")))
    return [piece for piece in pieces if len(piece)]


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes characters for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise ChatTemplateError(_MARKS.sub("", message))
