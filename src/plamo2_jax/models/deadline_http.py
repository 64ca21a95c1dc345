"""HTTP requests with one deadline for the whole exchange: connecting, sending, and reading the head and the body.

The timeout of the standard library applies to each step. A server that keeps sending single bytes would never time out.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import time
import urllib.request
from typing import Any


def build_opener() -> urllib.request.OpenerDirector:
    """Return an opener that treats `timeout` as a deadline and does not follow redirects."""
    return urllib.request.build_opener(_HttpHandler, _HttpsHandler, _NoRedirect)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because they would send the API key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Reader(io.RawIOBase):
    """Reads from a socket until a deadline. The timeout of each read is the remaining time."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, end: float):
        self._raw, self._socket, self._end = raw, connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_seconds_left(self._end))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Reads the head and the body of a response until a deadline."""

    def __init__(self, connection: socket.socket, *arguments: Any, end: float, **keywords: Any):
        super().__init__(connection, *arguments, **keywords)
        self._connection = connection
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), connection, end))

    def abort(self) -> None:
        """Close the connection. A blocked read in another thread returns."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class _DeadlineConnection:
    """Applies the timeout of a connection to all its steps together. The lookup of the host name has no limit."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._end = time.monotonic() + self.timeout
        self.response_class = functools.partial(_Response, end=self._end)
        self._create_connection = self._connect

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(_seconds_left(self._end))
        super().send(data)

    def _connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """Connect as `socket.create_connection` does, but with one timeout for all addresses of a host."""
        error: OSError = OSError("no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(_seconds_left(self._end))
                connection.connect(place)
                connection.settimeout(_seconds_left(self._end))
                return connection
            except OSError as found:
                connection.close()
                error = found
        raise error


class _HttpConnection(_DeadlineConnection, http.client.HTTPConnection):
    pass


class _HttpsConnection(_DeadlineConnection, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, request)


def _seconds_left(end: float) -> float:
    """Return the seconds until a deadline of the monotonic clock.

    Raises:
        TimeoutError: the deadline has passed.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
