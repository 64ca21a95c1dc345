"""HTTP requests on asyncio streams: one connection each, the body given as it arrives.

The standard library has no asynchronous HTTP client, and a thread for each of a thousand streams would disturb the measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Mapping

from plamo2_jax.errors import PlamoError

_MAX_HEADERS = 256
_LIMIT = 1 << 16
"""Longest line of a head, in bytes; also the size of the read buffer."""


class ProtocolError(PlamoError):
    """A server does not speak HTTP/1.1."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is."""

    scheme: str
    host: str
    port: int
    path: str
    """Path before the endpoints, without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read the address of a server, which must have a host."""
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def root(self) -> Address:
        """The same server without /v1."""
        return dataclasses.replace(self, path=self.path.removesuffix("/v1"))


@dataclasses.dataclass(frozen=True)
class Response:
    """The head of a response, and its body."""

    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: AsyncIterator[bytes]
    """Parts of the body as they arrive."""

    async def read(self, largest: int) -> bytes:
        """Return the body.

        Raises:
            ProtocolError: it has more than `largest` bytes.
        """
        content = b""
        async for part in self.body:
            content += part
            if len(content) > largest:
                raise ProtocolError(f"a response of more than {largest:,} bytes")
        return content


@contextlib.asynccontextmanager
async def request(
    address: Address, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Response]:
    """Send a request, a POST if it has a body, and give its response; closes the connection at the end.

    Raises:
        OSError: the connection fails.
        ProtocolError: the response is not HTTP/1.1, or it ends early.
    """
    secure = ssl.create_default_context() if address.scheme == "https" else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=secure, limit=_LIMIT)
    try:
        host = f"[{address.host}]" if ":" in address.host else address.host
        lines = [
            f"{'GET' if body is None else 'POST'} {address.path}{path} HTTP/1.1",
            f"Host: {host}:{address.port}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            *([] if body is None else ["Content-Type: application/json", f"Content-Length: {len(body)}"]),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        await writer.drain()
        status, found = await _head(reader)
        yield Response(status, found, _body(reader, found))
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError) as error:
        raise ProtocolError(f"a broken response: {type(error).__name__}") from None
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the status line and the headers; interim responses are skipped."""
    while True:
        version, _, rest = (await _line(reader)).partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ProtocolError(f"not a response of HTTP/1.1: {version[:40]!r}")
        headers: dict[str, str] = {}
        while line := await _line(reader):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > _MAX_HEADERS:
                raise ProtocolError("a response of too many headers")
        if int(rest[:3]) >= 200:
            return int(rest[:3]), headers


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readuntil(b"\n")
    return line.decode("latin-1").rstrip("\r\n")


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield the body: chunked, of a given length, or up to the end of the connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := _size(await _line(reader)):
            while size:
                part = await _part(reader, size)
                size -= len(part)
                yield part
            await _line(reader)
        return
    length = headers.get("content-length")
    left = int(length) if length is not None and length.isdecimal() else None
    while left is None or left:
        part = await reader.read(_LIMIT if left is None else min(left, _LIMIT))
        if not part:
            if left is None:
                return
            raise ProtocolError("a response that ends early")
        left = None if left is None else left - len(part)
        yield part


async def _part(reader: asyncio.StreamReader, size: int) -> bytes:
    part = await reader.read(min(size, _LIMIT))
    if not part:
        raise ProtocolError("a response that ends early")
    return part


def _size(line: str) -> int:
    try:
        return int(line.partition(";")[0], 16)
    except ValueError:
        raise ProtocolError(f"a chunk without a size: {line[:20]!r}") from None
