"""HTTP bodies: reading JSON within limits, writing JSON, errors and event streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.serve.errors import ApiError
from plamo2_jax.serve.work import Work, cancelled_on_disconnect

# Bytes of a body that are parsed in the event loop: fewer than a few milliseconds'.
_SHORT = 1 << 18
# Seconds for which the rest of a body that is too large is read and thrown away.
_LINGER = 2.0


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(_dump(body), status, dict(headers or {}), "application/json")


def error_response(error: ApiError) -> Response:
    """Return the response of an error."""
    return json_response(error.body(), error.status, error.headers)


# `json.dumps` with these settings would make an encoder at every call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _dump(body: Any) -> bytes:
    return _ENCODER.encode(body).encode()


async def read_json(request: Request, max_bytes: int, timeout: float) -> Any:
    """Return the JSON body of a request.

    Args:
        request: the request.
        max_bytes: largest size of the body.
        timeout: seconds that the client may take to send it.

    Raises:
        ApiError: it is too large, too slow, of another type or not JSON, or the client has left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another site can send other types without asking the browser's permission.
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind[:80]!r}: send the header Content-Type: application/json")
    too_large = ApiError(
        413, f"the body is larger than {max_bytes:,} bytes, the limit of this server", headers={"Connection": "close"}
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        await _discard(request)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    await _discard(request)
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {timeout:g} s", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(400, "the client has left") from None
    try:
        if len(body) <= _SHORT:
            return parse_json(bytes(body), "the body")
        return await asyncio.to_thread(parse_json, bytes(body), "the body")
    except PlamoError as error:
        raise ApiError(400, str(error), code="invalid_json") from None


async def _discard(request: Request) -> None:
    """Read the rest of a body for a while: many clients read no answer before they have sent everything."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (message := await request.receive())["type"] == "http.request" and message.get("more_body"):
                pass


class EventStream(Response):
    """A response of server-sent events.

    Args:
        chunks: the objects to send, from `work`.
        work: cancelled when the client leaves or does not read.
        close: called at the end, however it comes.
        timeout: seconds that the client may take to read a part.
        headers: further headers.
    """

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        work: Work,
        close: Callable[[], None],
        timeout: float,
        headers: Mapping[str, str],
    ):
        super().__init__(None, 200, {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._chunks, self._work, self._close, self._timeout = chunks, work, close, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""

        async def write(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self._timeout):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with cancelled_on_disconnect(receive, self._work):
                try:
                    async for chunk in self._chunks:
                        # The events of the Responses API have a name.
                        name = f"event: {chunk['type']}\n" if "type" in chunk else ""
                        await write(name.encode() + b"data: " + _dump(chunk) + b"\n\n")
                except ApiError as error:
                    await write(b"data: " + _dump(error.body()) + b"\n\n")
            await write(b"data: [DONE]\n\n", more=False)
        except (OSError, TimeoutError):
            pass  # The client has left, or does not read.
        finally:
            self._work.cancel("disconnect")
            self._close()
