"""A streaming chat behind an OpenAI-compatible server."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from plamo2_jax.errors import PlamoError
from plamo2_jax.models import openai_format
from plamo2_jax.models.config import ChatModelConfig, api_key
from plamo2_jax.models.deadline_http import build_opener
from plamo2_jax.models.openai_client import sampling_fields
from plamo2_jax.models.openai_format import SHOWN, EndpointError, MalformedResponse, shown
from plamo2_jax.models.server_events import EventParser, EventTooLong
from plamo2_jax.models.streaming import AnswerSettings, Piece

_LARGEST_LIST = 1 << 20
_WAIT = 0.2
"""Seconds to wait for an event before an empty piece is yielded."""


def with_version(url: str) -> str:
    """Return the address of a server's API. `/v1` is appended to an address without a path."""
    return f"{url.rstrip('/')}/v1" if urllib.parse.urlsplit(url).path in ("", "/") else url.rstrip("/")


class ServerChatStream:
    """A `StreamingChat` behind a server.

    Args:
        url: address of the server, with or without /v1.
        model: name of the model on the server; None: the first model that the server lists.
        api_key_env: name of the environment variable with the API key; None: no key.
        timeout: maximum time for one answer, in seconds.

    Raises:
        PlamoError: the address or the key is invalid, or `model` is None and the server does not list its models.
    """

    def __init__(self, url: str, *, model: str | None = None, api_key_env: str | None = None, timeout: float = 600.0):
        config = ChatModelConfig(url=with_version(url), api_key_env=api_key_env, timeout=timeout)
        self._address, self._timeout, self._key = config.url, config.timeout, api_key(config)
        self._opener = build_opener()
        self.model = model or self._first_model()
        """Name of the model on the server."""
        self.description = f"{self.model} at {self._address}"

    def answer(self, messages: Sequence[Mapping[str, Any]], settings: AnswerSettings) -> Iterator[Piece]:
        """Yield the pieces of an answer, as described in `StreamingChat.answer`.

        Raises:
            PlamoError: the server cannot be reached, refuses the request, or ends the stream early.
        """
        body = {"model": self.model, "messages": openai_format.messages(messages), "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        body |= sampling_fields(settings.sampling, settings.stop, settings.seed)
        stream = _Stream(lambda: self._open("chat/completions", body))
        reason = usage = None
        try:
            for data in stream.events():
                if data is None:
                    yield Piece()
                    continue
                if data == "[DONE]":
                    break
                piece = openai_format.read_chunk(data)
                reason, usage = piece.finish_reason or reason, piece.usage or usage
                if piece.text:
                    yield Piece(piece.text)
        except (MalformedResponse, EventTooLong) as error:
            raise PlamoError(f"{self._address} does not answer as an OpenAI-compatible server: {error}") from None
        except (http.client.HTTPException, OSError) as error:
            raise self._unreachable(error) from None
        finally:
            stream.close()
        if reason is None:
            raise PlamoError(f"{self._address} ended the connection before the answer was complete. Try again")
        yield Piece("", reason, usage)

    def close(self) -> None:
        """Do nothing, because each answer closes its own connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _first_model(self) -> str:
        try:
            with self._open("models", None) as response:
                found = json.loads(response.read(_LARGEST_LIST))["data"][0]["id"]
        except (http.client.HTTPException, OSError) as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            if isinstance(error, PlamoError):
                raise
            raise PlamoError(
                f"{self._address}/models lists no model. Give the name of the model there (plamo2 chat --name, "
                "plamo2 evaluate --served-model)"
            ) from None
        return str(found)

    def _open(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        """Send a request and return the response. Its body has not been read yet.

        Raises:
            EndpointError: the server refuses the request.
            OSError, http.client.HTTPException: the connection fails.
        """
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}/{path}", data, headers)
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise EndpointError(self._refusal(error)) from None

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """Return the error message for an HTTP error status."""
        if error.code == 401:
            return f"{self._address} needs an API key. Give the name of its environment variable with --api-key-env"
        try:
            reason = openai_format.error_message(json.loads(error.read(16 * SHOWN)))
        except (ValueError, OSError, http.client.HTTPException):
            reason = "no reason given"
        return f"{self._address} refuses the request (HTTP {error.code}): {reason}"

    def _unreachable(self, error: Exception) -> PlamoError:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return PlamoError(f"{self._address} did not finish its answer in {self._timeout:g} s")
        return PlamoError(
            f"{self._address} cannot be reached ({shown(str(reason)) or type(error).__name__}): check that the server is running"
        )


class _Stream:
    """Reads the events of a response in a thread, so the caller never blocks for long.

    Args:
        connect: sends the request and returns the response.
    """

    def __init__(self, connect: Any):
        self._connect, self._response, self._closed = connect, None, False
        self._lock = threading.Lock()
        # The data of events, and finally None or the exception that ended the stream.
        self._events: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="chat-stream", daemon=True).start()

    def events(self) -> Iterator[str | None]:
        """Yield the data of events, and None whenever no event arrives for `_WAIT` seconds."""
        while True:
            try:
                event = self._events.get(timeout=_WAIT)
            except queue.Empty:
                yield None
                continue
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._closed = True
            if self._response is not None:
                self._response.abort()

    def _read(self) -> None:
        parser = EventParser()
        try:
            with self._connect() as response:
                with self._lock:
                    self._response = response
                    if self._closed:
                        return
                while part := response.read1(1 << 16):
                    for event in parser.push(part):
                        self._events.put(event)
            self._events.put(None)
        except Exception as error:  # `events` raises it in the caller's thread.
            self._events.put(error)
