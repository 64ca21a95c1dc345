"""When a row of generated text ends, and which of its text may be shown already."""

from __future__ import annotations

import dataclasses

from plamo2_jax.tokenizer.tokenizer import StreamDecoder, Tokenizer
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class StopConfig:
    """What ends a row.

    Raises:
        ValueError: a field is out of its range; the message names the field, its value and what is allowed.
    """

    max_new_tokens: int = 256
    """Tokens to generate at most."""
    min_new_tokens: int = 0
    """Until so many tokens are there no stop id is drawn and no stop string counts."""
    ids: tuple[int, ...] | None = None
    """Token ids that end a row. None: those that end a document (see `generator.default_stop_ids`)."""
    strings: tuple[str, ...] = ()
    """Texts that end a row; the output is cut before the one that is complete first."""

    def __post_init__(self) -> None:
        require(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        allowed = f"from 0 to max_new_tokens={self.max_new_tokens}"
        require(self, "min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, allowed)
        require(self, "ids", self.ids is None or all(i >= 0 for i in self.ids), "none or ids of at least 0")
        listed = not isinstance(self.strings, str)
        require(self, "strings", listed and all(self.strings), "a tuple of strings, none of them empty")

    def shortened(self, most: int) -> StopConfig:
        """Return the same with at most `most` new tokens."""
        return dataclasses.replace(
            self,
            max_new_tokens=min(self.max_new_tokens, most),
            min_new_tokens=min(self.min_new_tokens, most),
        )


class StopText:
    """Text that arrives in pieces, cut before the first stop string.

    Text that may turn out to be the beginning of a stop string is held back. What comes out does not depend on how the text was cut
    into pieces: the stop string that is complete first counts, of several the longest.
    """

    def __init__(self, strings: tuple[str, ...] = ()):
        self._strings = strings
        self._held = ""
        self.stopped = False
        """Whether a stop string was found; nothing comes out after it."""

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """The text that `piece` releases; with `may_stop` false, stop strings that it completes are ordinary text."""
        if self.stopped:
            return ""
        text, old = self._held + piece, len(self._held)
        cut = self._cut(text, old) if may_stop else None
        if cut is not None:
            self.stopped = True
        else:
            cut = len(text) - self._unsure(text)
        released, self._held = text[:cut], text[cut:]
        return released

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        rest, self._held = ("" if self.stopped else self._held), ""
        return rest

    def _cut(self, text: str, old: int) -> int | None:
        """Start of the stop string that is complete first in `text`, but not yet in its first `old` characters."""
        found = []
        for string in self._strings:
            start = text.find(string, max(0, old - len(string) + 1))
            if start >= 0:
                found.append((start + len(string), start))
        return min(found)[1] if found else None

    def _unsure(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(string) - 1 for string in self._strings), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0


class RowText:
    """A row's token ids as text: complete characters only, control tokens left out, cut before a stop string."""

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
        """All that came out so far."""
        return "".join(self._pieces)

    def push(self, id: int, *, may_stop: bool = True) -> str:
        """The text that `id` releases."""
        return self._keep(self._stop.push(self._decoder.push(id), may_stop=may_stop))

    def flush(self) -> str:
        """The text held back, at the end of the row."""
        return self._keep(self._stop.push(self._decoder.flush()) + self._stop.flush())

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
