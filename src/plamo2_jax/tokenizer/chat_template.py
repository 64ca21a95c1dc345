"""Chat templates: turn conversations into token ids, with a mask of the assistant's text.

Templates are Jinja, as in Hugging Face transformers: they get `messages`, `tools`, `add_generation_prompt`, the special tokens and further
variables, run in a sandbox, and mark the assistant's text with `{% generation %} ... {% endgeneration %}`.

Message text never becomes control tokens: a control string inside a message stays text, and only control strings of the template become
tokens. For this, a mark is inserted after the first character of every control string in a message, and removed after the template has run.
Texts between control tokens, and at the start and end of an answer, are encoded separately, so the ids of a prompt are a prefix of the ids
of prompt and answer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2.defaults import DEFAULT_NAMESPACE

from plamo2_jax.tokenizer.template_files import (
    BUILT_IN,
    FILE_NAME,
    ChatTemplateError,
    ChatTemplateOverrun,
    built_in_template,
    find_template,
    read_template,
)
from plamo2_jax.tokenizer.template_process import ProcessTemplate
from plamo2_jax.tokenizer.template_sandbox import (
    BEGIN,
    END,
    MARK,
    MARKS,
    SandboxedTemplate,
    TemplateOverrun,
    TemplateProblem,
)
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

# Variables of every template. Fields of a record must not replace them.
_TOKENS = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
_RESERVED = frozenset({*_TOKENS, "messages", "add_generation_prompt"})
# A record may have fields of these names, but a template that calls `range` needs Jinja's.
_TAKEN = frozenset(
    {*_RESERVED, "tokenizer"}
    | {"self", "super", "caller", "loop", "varargs", "kwargs", "raise_exception", "strftime_now", *DEFAULT_NAMESPACE}
)


def template_variables(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that a template may read as variables. Names that this package or Jinja uses are omitted."""
    return {name: value for name, value in fields.items() if name.isidentifier() and name not in _TAKEN}


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids."""

    ids: np.ndarray
    """[n] int32."""
    answer: np.ndarray
    """[n] int32; the number of the marked answer that a token belongs to, from 1, or 0 for tokens outside of answers."""


class ChatTemplate:
    """A compiled template, immutable.

    Templates of this package are rendered in this process, all others in a separate process with limits on time and memory.

    Args:
        source: Jinja source.
        name: Name of the template in messages.

    Raises:
        ChatTemplateError: `source` cannot be compiled. The message names the line of a syntax error.
    """

    def __init__(self, source: str, name: str = FILE_NAME):
        self.source, self.name = source, name
        trusted = any(source == built_in_template(each).source for each in BUILT_IN)
        try:
            self._template = SandboxedTemplate(source) if trusted else ProcessTemplate(source)
        except TemplateProblem as problem:
            raise ChatTemplateError(f"{name}{problem}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """Load one of `BUILT_IN`, a file, or the template of a model's folder.

        Raises:
            ChatTemplateError: The template does not exist, or cannot be read or compiled.
        """
        return cls(*read_template(path))

    @classmethod
    def of_model(cls, *folders: str | os.PathLike[str]) -> ChatTemplate:
        """Return the template of the first of a model's folders that has one, or `chat`.

        Raises:
            ChatTemplateError: The template cannot be read or compiled.
        """
        return cls(*(find_template(*folders) or built_in_template("chat")))

    @property
    def marks_answers(self) -> bool:
        """Whether the template marks the assistant's text. Training needs these marks."""
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> EncodedChat:
        """Return the ids of a conversation, and which of them belong to the assistant.

        Args:
            tokenizer: Tokenizer whose control tokens the template may write.
            messages: Objects with `role` and `content`.
            add_generation_prompt: Add the text that precedes an answer at the end.
            variables: Further template variables; JSON values, as untrusted as messages.

        Raises:
            ChatTemplateError: The template refuses the conversation, or fails on it (ChatTemplateOverrun if it exceeds the limits).
            PlamoError: A message holds a lone surrogate.
        """
        controls = _controls(tokenizer)
        given = {"tools": None, "documents": None, **variables, "messages": list(messages)}
        rendered = self._render(controls, given, add_generation_prompt)
        ids, answers = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        number, inside = 0, False
        for stretch in re.split(f"([{BEGIN}{END}])", rendered):
            if stretch in (BEGIN, END):
                inside = stretch == BEGIN
                number += inside
                continue
            for piece in _encode(tokenizer, controls.pattern, stretch):
                ids.append(piece)
                answers.append(np.full(len(piece), number if inside else 0, np.int32))
        return EncodedChat(np.concatenate(ids), np.concatenate(answers))

    def _render(self, controls: _Controls, given: Mapping[str, Any], add_generation_prompt: bool) -> str:
        """Return the rendered text, with marks."""
        if taken := sorted(_RESERVED.intersection(given) - {"messages"}):
            raise ChatTemplateError(
                f"{self.name}: the variable {taken[0]} is reserved for the template. Rename the field of the conversation"
            )
        try:
            shielded = _shield(given, controls)
            text = self._template.render({**_TOKENS, **shielded, "add_generation_prompt": add_generation_prompt})
            if not _is_unicode(text) and _is_unicode(json.dumps(shielded, ensure_ascii=False)):
                raise ChatTemplateError(f"{self.name} returns a lone surrogate, which is not valid text")
            return text
        except RecursionError:
            raise ChatTemplateError(f"{self.name} fails on this conversation: it nests too deeply") from None
        except TemplateOverrun as problem:
            raise ChatTemplateOverrun(f"{self.name}{problem}") from None
        except TemplateProblem as problem:
            raise ChatTemplateError(f"{self.name}{problem}") from None


@dataclasses.dataclass(frozen=True)
class _Controls:
    """The control strings of a tokenizer."""

    strings: tuple[str, ...]
    """The strings, longest first, because one may be a prefix of another."""
    pattern: re.Pattern[str]
    """Pattern that matches any of them."""
    first_characters: frozenset[str]

    def shield(self, text: str) -> str:
        """Return the text with marks in its control strings, and in the beginning of a control string at its end."""
        if MARKS.search(text):
            raise ChatTemplateError(
                "a message holds one of the noncharacters U+FDD0 to U+FDD2, which are not text. Remove it"
            )
        text = self.pattern.sub(lambda match: match[0][0] + MARK + match[0][1:], text)
        # Most texts end here: no control string begins with a character near their end.
        if not self.strings or self.first_characters.isdisjoint(text[-len(self.strings[0]) :]):
            return text
        for control in self.strings:
            for length in range(len(control) - 1, 0, -1):
                if text.endswith(control[:length]):
                    start = len(text) - length
                    text = text[: start + 1] + MARK + text[start + 1 :]
                    break
        return text


@functools.lru_cache(maxsize=4)
def _controls(tokenizer: Tokenizer) -> _Controls:
    controls = sorted((token for i, token in enumerate(tokenizer.tokens) if tokenizer.is_special(i)), key=len)[::-1]
    pattern = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
    return _Controls(tuple(controls), pattern, frozenset(control[0] for control in controls))


def _shield(value: Any, controls: _Controls) -> Any:
    """Return a JSON value with shielded texts. Values that JSON does not have, such as dates, become text."""
    if isinstance(value, str):
        return controls.shield(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {_shield(name, controls): _shield(item, controls) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shield(item, controls) for item in value]
    return controls.shield(str(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode(tokenizer: Tokenizer, matches: re.Pattern[str], text: str) -> list[np.ndarray]:
    """Encode a part of the rendered text: control tokens of the template, and the text between them."""
    pieces, start = [], 0
    for match in matches.finditer(text):
        pieces += [
            tokenizer.encode(text[start : match.start()].replace(MARK, "")),
            np.array([tokenizer.id_of(match[0])], np.int32),
        ]
        start = match.end()
    pieces.append(tokenizer.encode(text[start:].replace(MARK, "")))
    return [piece for piece in pieces if len(piece)]
