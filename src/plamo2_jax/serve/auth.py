"""Access control: API keys, compared in constant time, and host names."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.errors import ApiError
from plamo2_jax.serve.responses import error_response

VARIABLE = "PLAMO2_API_KEY"
"""Environment variable that may hold a key."""
_MAX_BYTES = 1 << 20
_OPEN = ("/health", "/", "/page", "/openapi.json")


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """Return the API keys: the lines of a file, and the environment variable's. None: everybody may use the server.

    Raises:
        ValueError: the file cannot be read, holds no key, or a line that cannot be a key. The message does not show the line.
    """
    keys = []
    if path is not None:
        if not path.exists() or path.is_dir():
            raise PlamoError(f"--api-key-file {path} is not a file: it must have one key per line")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise PlamoError(f"--api-key-file {path} is too large: at most {_MAX_BYTES >> 20} MiB are allowed")
        for number, line in enumerate(data.splitlines(), 1):
            key = line.strip()
            if key and not key.startswith(b"#"):
                keys.append(_checked(key, f"--api-key-file {path}, line {number}"))
        if not keys:
            raise PlamoError(f"--api-key-file {path} has no API key: it must have one key per line")
    if value := os.environ.get(VARIABLE, "").strip():
        keys.append(_checked(value.encode(), f"the environment variable {VARIABLE}"))
    return tuple(keys)


def _checked(key: bytes, where: str) -> bytes:
    if not re.fullmatch(rb"[!-~]+", key):
        raise PlamoError(
            f"{where} is not an API key: it must consist of ASCII letters, digits and punctuation, without spaces"
        )
    return key


class RequireKey:
    """Middleware that answers 401 to requests without an API key, except for the health check and the page's files.

    Args:
        app: the application.
        keys: keys that are allowed; none: all requests pass.
    """

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...]):
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._keys and not _is_open(scope["path"]) and not self._allowed(scope):
            error = ApiError(
                401,
                "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        # Every key is compared, so that the time does not tell which one is close.
        matches = [hmac.compare_digest(token.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


class RequireHost:
    """Middleware that answers 403 to requests for another host: a site could resolve its own name to this machine (DNS rebinding).

    Args:
        app: the application.
        names: host names that are allowed, besides IP addresses and localhost. None: all.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...] | None):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._names is not None:
            given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
            host = re.sub(r":\d+$", "", given).lower()
            if not (is_address(host) or host in ("", "localhost", *self._names)):
                error = ApiError(
                    403,
                    f"requests for the host {host[:100]!r} are refused: start the server with --allowed-hosts "
                    "to allow the host name",
                )
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, with or without the brackets of IPv6."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a host is reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith("/page/")
