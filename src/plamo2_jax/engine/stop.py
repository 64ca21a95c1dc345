"""Stop conditions of a row, and streaming of its text without parts of a stop string."""

from __future__ import annotations

import dataclasses

from plamo2_jax.tokenizer.tokenizer import StreamDecoder, Tokenizer
from plamo2_jax.validation import is_whole, require


@dataclasses.dataclass(frozen=True)
class StopConfig:
    """Settings that end a row.

    Raises:
        PlamoError: a field is out of range. The message has the field, its value and the allowed values.
    """

    max_new_tokens: int = 256
    """Maximum number of tokens to generate."""
    min_new_tokens: int = 0
    """Minimum number of tokens to generate. Before this number, stop ids are not drawn and stop strings are ignored."""
    ids: tuple[int, ...] | None = None
    """Token ids that end a row. None: the ids that end a document (see `generator.default_stop_ids`)."""
    strings: tuple[str, ...] = ()
    """Strings that end a row. The output is cut before the first stop string that is complete."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "min_new_tokens"):
            require(self, name, is_whole(getattr(self, name)), "an integer")
        require(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        allowed = f"from 0 to max_new_tokens={self.max_new_tokens}"
        require(self, "min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, allowed)
        require(self, "ids", self.ids is None or all(i >= 0 for i in self.ids), "none or ids of at least 0")
        listed = isinstance(self.strings, tuple | list) and all(isinstance(text, str) for text in self.strings)
        require(self, "strings", listed and all(self.strings), "a tuple of strings, none of them empty")

    def shortened(self, most: int) -> StopConfig:
        """Return a copy with `max_new_tokens` and `min_new_tokens` limited to `most`."""
        return dataclasses.replace(
            self,
            max_new_tokens=min(self.max_new_tokens, most),
            min_new_tokens=min(self.min_new_tokens, most),
        )


class StopText:
    """Cuts streamed text before the first stop string.

    The end of the text is held back while it may be the start of a stop string. The output does not depend on how the text is split
    into pieces. The stop string that is complete first counts. If several are complete at the same character, the longest counts.
    """

    def __init__(self, strings: tuple[str, ...] = ()):
        self._strings = strings
        self._held = ""
        self.stopped = False
        """Whether a stop string was found. After that, `push` returns no text."""

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """Add a piece and return the text that is ready. If `may_stop` is false, a stop string that ends in `piece` is plain text."""
        if self.stopped:
            return ""
        text, old = self._held + piece, len(self._held)
        cut = self._cut(text, old) if may_stop else None
        if cut is not None:
            self.stopped = True
        else:
            cut = len(text) - self._held_length(text)
        released, self._held = text[:cut], text[cut:]
        return released

    def flush(self) -> str:
        """Return the text that was held back. Call this at the end of the text."""
        rest, self._held = ("" if self.stopped else self._held), ""
        return rest

    def _cut(self, text: str, old: int) -> int | None:
        """Return where the first complete stop string starts, ignoring those complete in the first `old` characters."""
        found = []
        for string in self._strings:
            start = text.find(string, max(0, old - len(string) + 1))
            if start >= 0:
                found.append((start + len(string), start))
        return min(found)[1] if found else None

    def _held_length(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that is a proper prefix of a stop string."""
        longest = max((len(string) - 1 for string in self._strings), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0


class RowText:
    """Decodes the token ids of a row to text: complete characters only, no control tokens, cut before a stop string."""

    def __init__(self, tokenizer: Tokenizer, strings: tuple[str, ...] = ()):
        self._decoder = StreamDecoder(tokenizer, skip_control=True)
        self._stop = StopText(strings)
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stop.stopped

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._pieces)

    def push(self, id: int, *, may_stop: bool = True) -> str:
        """Add a token and return the text that is ready."""
        return self._record(self._stop.push(self._decoder.push(id), may_stop=may_stop))

    def flush(self) -> str:
        """Return the text that was held back. Call this at the end of the row."""
        return self._record(self._stop.push(self._decoder.flush()) + self._stop.flush())

    def _record(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
