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
from typing import Any

import numpy as np
from jinja2.defaults import DEFAULT_NAMESPACE

from plamo2_jax.tokenizer.template_files import (
    BUILT_IN,
    FILE_NAME,
    ChatTemplateError,
    ChatTemplateOverrun,
    TemplateText,
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

__all__ = [
    "BUILT_IN",
    "FILE_NAME",
    "ChatTemplate",
    "ChatTemplateError",
    "ChatTemplateOverrun",
    "EncodedChat",
    "template_variables",
]

# Variables of every template, which a record's own fields must not replace.
_TOKENS = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
_RESERVED = frozenset({*_TOKENS, "messages", "add_generation_prompt"})
# A record may have fields of these names, but a template that calls `range` needs Jinja's.
_TAKEN = frozenset(
    {*_RESERVED, "tokenizer"}
    | {"self", "super", "caller", "loop", "varargs", "kwargs", "raise_exception", "strftime_now", *DEFAULT_NAMESPACE}
)


def template_variables(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that a template may read as variables: their names are identifiers, and neither ours nor Jinja's."""
    return {name: value for name, value in fields.items() if name.isidentifier() and name not in _TAKEN}


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """A conversation as ids."""

    ids: np.ndarray
    """[n] int32."""
    answer: np.ndarray
    """[n] int32: 0 where a token is not the assistant's, else which of the marked stretches it is in, from 1."""


class ChatTemplate:
    """A template, compiled; immutable.

    Templates of this package are rendered in this process, all others in a process with limits on time and memory.

    Args:
        source: Jinja.
        name: what to call it in messages.

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
        """One of `BUILT_IN`, a file, or the template of a model's folder (see `template_files.find_template`).

        Raises:
            ChatTemplateError: there is none, it cannot be read, or it cannot be compiled.
        """
        return cls._of(read_template(path))

    @classmethod
    def of_model(cls, folder: str | os.PathLike[str]) -> ChatTemplate:
        """Return the template of a model's folder, or `chat` if the folder has no template.

        Raises:
            ChatTemplateError: it cannot be read or compiled.
        """
        return cls._of(find_template(folder) or built_in_template("chat"))

    @classmethod
    def _of(cls, text: TemplateText) -> ChatTemplate:
        return cls(text.source, text.name)

    @property
    def marks_answers(self) -> bool:
        """Whether it says which text is the assistant's, without which nothing can be trained on."""
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
        """Ids of a conversation, and which are the assistant's.

        Args:
            tokenizer: whose control tokens the template may write.
            messages: objects with `role` and `content`.
            add_generation_prompt: end with what comes before an answer.
            variables: further ones of the template; JSON values, trusted no more than messages are.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails on it; as ChatTemplateOverrun where it exceeds the limits.
            ValueError: a message holds a lone surrogate.
        """
        controls = _controls(tokenizer)
        given = {"tools": None, "documents": None, **variables, "messages": list(messages)}
        rendered = self._render(controls, given, add_generation_prompt)
        ids: list[np.ndarray] = []
        answers: list[np.ndarray] = []
        number, inside = 0, False
        for stretch in re.split(f"([{BEGIN}{END}])", rendered):
            if stretch in (BEGIN, END):
                inside = stretch == BEGIN
                number += inside
                continue
            for piece in _encode(tokenizer, controls.pattern, stretch):
                ids.append(piece)
                answers.append(np.full(len(piece), number if inside else 0, np.int32))
        if not ids:
            return EncodedChat(np.zeros(0, np.int32), np.zeros(0, np.int32))
        return EncodedChat(np.concatenate(ids), np.concatenate(answers))

    def _render(self, controls: _Controls, given: Mapping[str, Any], add_generation_prompt: bool) -> str:
        """The template's text, with marks in it."""
        if taken := sorted(_RESERVED.intersection(given) - {"messages"}):
            raise ChatTemplateError(
                f"{self.name}: the variable {taken[0]} is the template's own; give what a conversation brings another name"
            )
        try:
            shielded = _shield(given, controls)
            text = self._template.render({**_TOKENS, **shielded, "add_generation_prompt": add_generation_prompt})
            if not _is_unicode(text) and _is_unicode(json.dumps(shielded, ensure_ascii=False)):
                raise ChatTemplateError(f"{self.name} writes half of a surrogate pair, which is no text")
            return text
        except RecursionError:
            raise ChatTemplateError(f"{self.name} fails on this conversation: it nests too deeply") from None
        except TemplateOverrun as problem:
            raise ChatTemplateOverrun(f"{self.name}{problem}") from None
        except TemplateProblem as problem:
            raise ChatTemplateError(f"{self.name}{problem}") from None


@dataclasses.dataclass(frozen=True)
class _Controls:
    """A tokenizer's control strings."""

    strings: tuple[str, ...]
    """The longest first: one may begin like another."""
    pattern: re.Pattern[str]
    """Finds them."""
    first_characters: frozenset[str]

    def shield(self, text: str) -> str:
        """The text with marks in its control strings, and in the beginnings of one at its end."""
        if MARKS.search(text):
            raise ChatTemplateError("a message holds one of the noncharacters U+FDD0 to U+FDD2, which are no text")
        text = self.pattern.sub(lambda match: match[0][0] + MARK + match[0][1:], text)
        # Nearly every text ends here: its end has no character that a control string begins with.
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
    """A JSON value whose texts are shielded; what is no JSON value, such as a date, becomes text."""
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
    """Ids of a stretch: control tokens where the template wrote them, text between."""
    pieces, start = [], 0
    for match in matches.finditer(text):
        pieces += [
            tokenizer.encode(text[start : match.start()].replace(MARK, "")),
            np.array([tokenizer.id_of(match[0])], np.int32),
        ]
        start = match.end()
    pieces.append(tokenizer.encode(text[start:].replace(MARK, "")))
    return [piece for piece in pieces if len(piece)]
