"""Structured output: a JSON schema, regular expression, choice or context-free grammar as the constraint of a row.

    grammar = Grammar.of_json_schema({"type": "object", "properties": {"city": {"type": "string"}}})
    make = compile_grammar(grammar, tokenizer, vocab_size=model.config.vocab_size, stop_ids=stop_ids)
    Request(..., constraint=make)

llguidance does the parsing (extra `serve`). It works on bytes, so byte tokens of one character are right at every place.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.grammar_process import grammar_error, parser_limits, require_compilable
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer

MAX_SOURCE = 1 << 17
"""Largest size of a grammar, in characters."""
# A space, or a line end and its indentation. Without a limit, a model may write whitespace for ever (vllm#55313).
_WHITESPACE = r" |\n {0,32}"
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What a text must be.

    Raises:
        PlamoError: the grammar is larger than MAX_SOURCE.
    """

    source: str
    """In llguidance's form."""
    name: str
    """The option or field of the user that the grammar comes from, for messages."""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise PlamoError(
                f"{self.name} is too large: it makes a grammar of {len(self.source):,} characters, and at most {MAX_SOURCE:,} are allowed"
            )

    @classmethod
    def of_json_schema(
        cls, schema: Mapping[str, Any] | bool, name: str = "the JSON schema", *, strict: bool = True
    ) -> Grammar:
        """Return the grammar of the JSON texts that a schema allows, in the order of its properties.

        Args:
            schema: JSON Schema; `{"type": "object"}` allows every object.
            name: its name in messages.
            strict: refuse keywords and formats that cannot be enforced; false: ignore them.
        """
        options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
        return cls(_made(name, "grammar_from_json_schema", _dumped(_as_object(schema)), overrides=options), name)

    @classmethod
    def of_regex(cls, pattern: str, name: str = "the regular expression") -> Grammar:
        """Return the grammar of the texts that a regular expression (of Rust's crate `regex`) matches as a whole."""
        return cls(_made(name, "grammar_from_regex", pattern), name)

    @classmethod
    def of_choice(cls, texts: Sequence[str], name: str = "the choice") -> Grammar:
        """Return the grammar that allows some texts."""
        if not texts or not all(texts):
            raise PlamoError(f"{name} is not allowed: it must be one or more texts, none of them empty")
        return cls.of_lark("start: " + " | ".join(map(lark_text, texts)), name)

    @classmethod
    def of_lark(cls, text: str, name: str = "the grammar") -> Grammar:
        """Return a grammar in llguidance's variant of Lark, or in GBNF, which has `::=`."""
        if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
            _library()
            from llguidance.gbnf_to_lark import any_to_lark

            try:
                text = any_to_lark(text)
            except Exception as error:  # The converter raises what it meets.
                raise grammar_error(name, str(error)) from None
        return cls(_made(name, "grammar_from_lark", text), name)


def lark_text(text: str) -> str:
    """Return a text as a string of a Lark grammar."""
    # llguidance refuses the control character DEL, which JSON allows.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def lark_json(schema: Mapping[str, Any] | bool, *, strict: bool, spaced: bool = False) -> str:
    """Return a JSON schema as a term of a Lark grammar.

    Args:
        schema: JSON Schema.
        strict: as in `Grammar.of_json_schema`.
        spaced: write the JSON text as Python's `json.dumps` does.
    """
    layout = _SPACED if spaced else {"whitespace_pattern": _WHITESPACE}
    return "%json " + _dumped({**_as_object(schema), "x-guidance": {**layout, "lenient": not strict}})


def compile_grammar(
    grammar: Grammar, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: Sequence[int]
) -> Callable[[], GrammarConstraint]:
    """Return a function that makes the constraint of a row (`Request.constraint`).

    The first call for a tokenizer takes about a second, the first for a grammar about 0.1 s; both are kept. It is thread-safe.

    Args:
        grammar: grammar of the text.
        tokenizer: the tokenizer.
        vocab_size: rows of the model's embedding; those that the tokenizer lacks are never allowed.
        stop_ids: control tokens that end the row; they are allowed where the text is complete.

    Raises:
        PlamoError: llguidance is not installed, refuses the grammar or finds it too complex, or a stop id is text.
    """
    text_ids = [id for id in stop_ids if id < tokenizer.vocab_size and not tokenizer.is_special(id)]
    if text_ids or not stop_ids:
        wrong = f"the stop id {text_ids[0]} is text" if text_ids else "there is no stop id"
        raise PlamoError(
            f"{grammar.name} is not allowed with these stop ids: {wrong}. Give control tokens that end the text"
        )
    vocabulary = _vocabulary(tokenizer)
    tokenizer.padded_byte_lengths(vocab_size)
    matcher = _compiled(grammar, tokenizer)
    stop = np.zeros(-(-vocab_size // 32), np.uint32)
    for id in stop_ids:
        stop[id // 32] |= np.uint32(1 << id % 32)
    ends = frozenset(stop_ids)
    return lambda: GrammarConstraint(matcher.deep_copy(), vocabulary, grammar.name, stop, ends)


def prepare_grammars(tokenizer: Tokenizer) -> None:
    """Do the work that the first grammar of a tokenizer would wait for.

    Raises:
        PlamoError: llguidance is not installed.
    """
    _vocabulary(tokenizer)


class GrammarConstraint:
    """The constraint of one row (`engine.request.Constraint`).

    Args:
        matcher: `llguidance.LLMatcher` at the beginning of the text, of this row alone.
        vocabulary: the tokenizer's ids.
        name: name of the grammar in messages.
        stop: ids that end the row, as bits [ceil(v/32)] u32 of the model's vocabulary.
        ends: the same ids.
    """

    def __init__(self, matcher: Any, vocabulary: _Vocabulary, name: str, stop: np.ndarray, ends: frozenset[int]):
        self._matcher, self._vocabulary, self._name = matcher, vocabulary, name
        self._stop, self._ends = stop, ends

    def allowed(self) -> np.ndarray:
        """Return the ids that may come next as bits [ceil(v/32)] u32.

        Raises:
            PlamoError: no id may come next, or a limit of llguidance was exceeded.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        # In this state the matcher allows the end, complete or not.
        self._require_sound()
        row = np.zeros_like(self._stop)
        text = self._vocabulary.text
        # If the number of ids is a multiple of 32, llguidance adds a word.
        row[: len(text)] = bits[: len(text)] & text
        end = self._vocabulary.eos_id
        if bits[end // 32] >> (end % 32) & 1:
            row |= self._stop
        if not row.any():
            raise PlamoError(f"{self._name} allows no token here: it must not need control tokens")
        return row

    def push(self, token: int) -> None:
        """Take the token that was drawn.

        Raises:
            PlamoError: it was not allowed.
        """
        if token not in self._ends:
            self._matcher.consume_token(token)
            self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise grammar_error(self._name, self._matcher.get_error())


class _Vocabulary:
    """The ids of a tokenizer, for llguidance.

    Attributes:
        handle: `llguidance.LLTokenizer`.
        text: ids that are text, as bits [ceil(v/32)] u32 of the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer):
        llguidance = _library()
        special = [tokenizer.is_special(id) for id in range(tokenizer.vocab_size)]
        self.eos_id = tokenizer.eos_id
        self.handle = llguidance.LLTokenizer(_Wrapper(tokenizer, np.flatnonzero(special).tolist()))
        packed = np.packbits(~np.array(special), bitorder="little")
        self.text = np.pad(packed, (0, -len(packed) % 4)).view("<u4").astype(np.uint32)
        # The first mask with strings prepares tables, which takes as long as the rest.
        llguidance.LLMatcher(self.handle, Grammar.of_json_schema({"const": ""}).source, log_level=0).compute_bitmask()


class _Wrapper:
    """What `llguidance.LLTokenizer` reads of a tokenizer; the interface of `llguidance._tokenizer.TokenizerWrapper`."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, special_token_ids: list[int]):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = special_token_ids

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of a text."""
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text).tolist()


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    return _Vocabulary(tokenizer)


@functools.lru_cache(maxsize=64)
def _compiled(grammar: Grammar, tokenizer: Tokenizer) -> Any:
    """Return the matcher of a grammar at the beginning of a text. It must not be advanced."""
    require_compilable(grammar.source, grammar.name)
    vocabulary = _vocabulary(tokenizer)
    matcher = _library().LLMatcher(vocabulary.handle, grammar.source, log_level=0, limits=parser_limits())
    # Some errors come with the first mask.
    first = matcher.deep_copy()
    first.compute_bitmask()
    if first.is_error():
        raise grammar_error(grammar.name, first.get_error())
    return matcher


def _dumped(schema: Mapping[str, Any] | bool) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise PlamoError("the JSON schema is not allowed: it must be a JSON value without cycles") from None


def _as_object(schema: Mapping[str, Any] | bool) -> Mapping[str, Any]:
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return schema


def _made(name: str, method: str, source: str, **options: Any) -> str:
    """Return a grammar in llguidance's form, made by a method of `LLMatcher`."""
    try:
        return getattr(_library().LLMatcher, method)(source, **options)
    except UnicodeEncodeError:
        raise PlamoError(f"{name} is not allowed: it holds a lone surrogate, which is not text") from None


def _library() -> types.ModuleType:
    """Return llguidance. It is imported when it is used, because it comes with an extra."""
    try:
        import llguidance
    except ImportError:
        raise PlamoError(
            "structured output and tool calls need llguidance, which is not installed: install this project with the extra serve, "
            "as in pip install '.[serve]'"
        ) from None
    return llguidance
