"""Parser of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import re

from plamo2_jax.errors import PlamoError

MAX_EVENT_BYTES = 4 << 20
"""Maximum size of an event."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLong(PlamoError):
    """An event has more than MAX_EVENT_BYTES bytes."""


class EventParser:
    """Parses a byte stream that is split anywhere. Only the `data` of events is kept; event names, ids and comments are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def push(self, part: bytes) -> list[str]:
        """Add bytes and return the data of the events that are complete.

        Raises:
            EventTooLong: an event has more than MAX_EVENT_BYTES bytes.
        """
        text, events = self._rest + part, []
        start = 0
        for end in _LINE_END.finditer(text):
            # A carriage return at the end of a part may be followed by its line feed in the next part.
            if end.group() == b"\r" and end.end() == len(text):
                break
            if (data := self._line(text[start : end.start()])) is not None:
                events.append(data)
            start = end.end()
        self._rest = text[start:]
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event has more than {MAX_EVENT_BYTES:,} bytes")
        return events

    def _line(self, line: bytes) -> str | None:
        """Add a line. If it ends an event, return the event's data."""
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data).decode("utf-8", "replace") if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None
