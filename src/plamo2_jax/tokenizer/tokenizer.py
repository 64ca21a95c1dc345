"""The PLaMo 2 tokenizer: exact unigram segmentation with integer costs and byte fallback, over a `tokenizer.jsonl`.

There is no normalizer, no pre-tokenizer and no space prefix: text is a sequence of code points, spaces are literal in tokens, and
`decode(encode(text)) == text` for every valid string. Control strings in text are ordinary text by default.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import located, write_whole
from plamo2_jax.tokenizer.lattice import INVALID_COST, build_trie, cheapest_ids, compiled_encoder
from plamo2_jax.tokenizer.rows import BYTE, CONTROL, UNKNOWN, Vocabulary, format_rows, parse_rows

FILE_NAME = "tokenizer.jsonl"
MAX_BYTES = 256 << 20
"""Largest allowed size of tokenizer.jsonl in bytes; the file with 100,000 rows has 4 MB."""
UNK, BOS, EOS, PAD, OP = "<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", "<|plamo:op|>"


class Tokenizer:
    """Encoder and decoder between text and ids. It is immutable, thread-safe and picklable.

    Args:
        data: Bytes of a `tokenizer.jsonl`; `Tokenizer.load` reads them from a file.
        source: Name of the file in error messages.

    Raises:
        PlamoError: A row is malformed, a token occurs twice, or one of the 256 BYTE rows is missing. The message names the line.
    """

    def __init__(self, data: bytes, source: str = FILE_NAME):
        vocabulary = parse_rows(data, source)
        self._data = data
        self._vocabulary = vocabulary
        self._tokens = vocabulary.tokens
        self._byte_ids = vocabulary.byte_ids
        self._special = np.array([kind in (CONTROL, UNKNOWN) for kind in vocabulary.types])
        self._is_byte = np.array([kind == BYTE for kind in vocabulary.types])
        self._costs = vocabulary.costs
        self._lengths = np.array([len(token) for token in self._tokens], np.int32)
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._bytes = [token.encode() for token in self._tokens]
        for value, i in enumerate(self._byte_ids):
            self._bytes[i] = bytes([value])

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Read a `tokenizer.jsonl`, or the one in a folder. In a folder it must not be a link out of the folder."""
        path = located(path)
        if path.is_dir():
            path = optional_file(path, FILE_NAME) or path / FILE_NAME
        if not path.exists():
            raise PlamoError(f"{path} does not exist: it must be a {FILE_NAME}, or a folder with one")
        if not path.is_file():
            raise PlamoError(f"{path} is not a regular file: it must be a {FILE_NAME}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PlamoError(f"{path} is too large for a {FILE_NAME}: at most {MAX_BYTES >> 20} MiB are allowed")
        return cls(data, str(path))

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence], source: str = "rows") -> Tokenizer:
        """Create a tokenizer from rows `[token, score, type, ...]`."""
        return cls(format_rows(rows), source)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the bytes as they were read, to a file or into a folder. Return the path of the file."""
        path = located(path)
        path = path / FILE_NAME if path.is_dir() else path
        write_whole(path, self._data)
        return path

    def encode(self, text: str, *, allow_control: bool = False, bos: bool = False, eos: bool = False) -> np.ndarray:
        """Return the ids of the cheapest segmentation of `text`.

        Args:
            text: Any valid Unicode string.
            allow_control: Encode control strings such as `<|plamo:op|>` as control tokens. Use this only for trusted text: otherwise a
                document could end itself or forge a prompt.
            bos: Add the beginning-of-text id at the start.
            eos: Add the end-of-text id at the end.

        Returns:
            [t] int32.

        Raises:
            PlamoError: The text holds a lone surrogate, which no Unicode encoding can represent.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes a str, not {type(text).__name__}")
        try:
            points = np.frombuffer(text.encode("utf-32-le"), "<i4")
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(text[error.start]):04X}"
            raise PlamoError(
                f"the text holds a lone surrogate ({surrogate}) at position {error.start}: it must be valid Unicode"
            ) from None
        encoder = compiled_encoder()
        if encoder is None:
            ids = cheapest_ids(points.tolist(), *self._lists[allow_control])
        else:
            ids = encoder(points, *self._arrays[allow_control])
        if bos or eos:
            ids = np.concatenate([[self.bos_id] if bos else [], ids, [self.eos_id] if eos else []]).astype(np.int32)
        return ids

    def decode(self, ids: Iterable[int], *, skip_control: bool = False) -> str:
        """Return the text of `ids` ([t] integers). Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids. CONTROL and UNKNOWN rows decode to their own strings.
            skip_control: Omit CONTROL and UNKNOWN rows.

        Raises:
            PlamoError: An id is outside the vocabulary. The message names the position.
        """
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if array.size == 0:
            return ""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise PlamoError(f"ids must be one row of integers, not shape {array.shape} of {array.dtype}")
        outside = (array < 0) | (array >= self.vocab_size)
        if outside.any():
            position = int(np.argmax(outside))
            raise PlamoError(
                f"id {array[position]} at position {position} is outside the vocabulary of {self.vocab_size} rows"
            )
        if skip_control:
            array = array[~self._special[array]]
        return b"".join(map(self._bytes.__getitem__, array.tolist())).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of an id in decoded text: one byte for a BYTE row, else the UTF-8 bytes of the token."""
        if not 0 <= id < self.vocab_size:
            raise PlamoError(f"id {id} is outside the vocabulary of {self.vocab_size} rows")
        return self._bytes[id]

    def is_special(self, id: int) -> bool:
        """Return whether the row is CONTROL or UNKNOWN, which is not text and is omitted by `skip_control`."""
        return 0 <= id < self.vocab_size and bool(self._special[id])

    def control_strings_in(self, text: str) -> list[str]:
        """Return the control strings that occur in a text, in order of their ids. By default `encode` treats them as text."""
        return [self._tokens[i] for i in np.flatnonzero(self._special) if self._tokens[i] in text]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """[v] int32, number of UTF-8 bytes of each id's text; 0 for CONTROL and UNKNOWN rows."""
        lengths = np.array([len(piece) for piece in self._bytes], np.int32)
        lengths[self._special] = 0
        return lengths

    def padded_byte_lengths(self, vocab_size: int) -> np.ndarray:
        """`byte_lengths` for a model with `vocab_size` rows: [vocab_size] int32, 0 for rows beyond the tokenizer's.

        Raises:
            PlamoError: The tokenizer has more rows than the model.
        """
        if self.vocab_size > vocab_size:
            raise PlamoError(
                f"ModelConfig.vocab_size={vocab_size} is not allowed with this tokenizer: it has {self.vocab_size} rows, and the "
                "model needs at least as many"
            )
        return np.pad(self.byte_lengths, (0, vocab_size - self.vocab_size))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows, as printed by `sha256sum tokenizer.jsonl`."""
        return hashlib.sha256(self._data).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of rows. The embedding of a model may have more rows, for padding."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[str]:
        """Token strings by id; BYTE rows as `<0xXX>`."""
        return tuple(self._tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """The rows of the file, by column. Do not change its arrays."""
        return self._vocabulary

    def id_of(self, token: str) -> int:
        """Return the id of a token string. Raise PlamoError if the vocabulary has no such row."""
        if token not in self._ids:
            raise PlamoError(f"the tokenizer has no token {token!r}")
        return self._ids[token]

    @property
    def unk_id(self) -> int:
        """Id of `<|plamo:unk|>`."""
        return self.id_of(UNK)

    @property
    def bos_id(self) -> int:
        """Id of `<|plamo:bos|>`, which separates documents."""
        return self.id_of(BOS)

    @property
    def eos_id(self) -> int:
        """Id of `<|plamo:eos|>`."""
        return self.id_of(EOS)

    @property
    def pad_id(self) -> int:
        """Id of `<|plamo:pad|>`."""
        return self.id_of(PAD)

    @property
    def op_id(self) -> int:
        """Id of `<|plamo:op|>`, which starts a line of a prompt."""
        return self.id_of(OP)

    @functools.cached_property
    def _arrays(self) -> dict[bool, tuple]:
        """Arguments of `cheapest_ids` after the text, by `allow_control`."""
        matchable = ~self._is_byte & (self._costs < INVALID_COST)
        trie = build_trie(self._tokens, np.flatnonzero(matchable), self._costs)
        special = (trie.token >= 0) & self._special[trie.token]
        text_token = np.where(special, -1, trie.token).astype(np.int32)
        window = 1 << trie.longest.bit_length()
        return {
            allow: (trie.root, trie.first_child, trie.label, token, trie.cost, self._lengths, self._byte_ids, window)
            for allow, token in ((False, text_token), (True, trie.token))
        }

    @functools.cached_property
    def _lists(self) -> dict[bool, tuple]:
        """`_arrays` as lists, which plain Python indexes several times as fast."""
        arrays = {id(x): x for row in self._arrays.values() for x in row if isinstance(x, np.ndarray)}
        lists = {key: x.tolist() for key, x in arrays.items()}
        return {allow: tuple(lists.get(id(x), x) for x in row) for allow, row in self._arrays.items()}


class StreamDecoder:
    """Decoder of ids one by one, which keeps bytes back until they complete a character.

    The concatenated pieces equal `tokenizer.decode(ids, skip_control=skip_control)`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = False):
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that `id` completes: usually the token, sometimes nothing."""
        piece = self._tokenizer.token_bytes(id)
        if self._skip_control and self._tokenizer.is_special(id):
            return ""
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Return the rest at the end, U+FFFD for an incomplete character, and reset the decoder."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
