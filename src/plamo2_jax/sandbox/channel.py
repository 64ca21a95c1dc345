"""Messages between processes: four bytes of length, then that many bytes of JSON."""

from __future__ import annotations

import json
import socket
from typing import Any

LARGEST = 16 << 20
"""Largest message, in bytes."""


class Gone(BaseException):
    """The other process ended, or sent something that is not a message. `except Exception` in a test does not catch it."""


def send(channel: socket.socket, value: Any) -> None:
    """Send one message.

    Raises:
        ValueError: the value is too large.
        Gone: the other process has ended.
    """
    content = json.dumps(value).encode()
    if len(content) > LARGEST:
        raise ValueError(f"a value has {len(content):,} bytes: at most {LARGEST:,} are allowed")
    try:
        channel.sendall(len(content).to_bytes(4, "big") + content)
    except OSError:
        raise Gone from None


def receive(channel: socket.socket) -> Any:
    """Receive one message.

    Raises:
        Gone: the other process has ended, or the bytes are not a message.
    """
    size = int.from_bytes(_read(channel, 4), "big")
    if size > LARGEST:
        raise Gone
    try:
        return json.loads(_read(channel, size))
    except (ValueError, RecursionError):
        raise Gone from None


def read_all(source: socket.socket) -> bytes:
    """Read a stream to its end."""
    parts = []
    while part := source.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def _read(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = channel.recv(min(size - len(parts), 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Gone
        parts += part
    return bytes(parts)
