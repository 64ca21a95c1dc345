"""An OpenAI-compatible endpoint, such as vLLM's, as a speaker. What may pass is tried again, with growing pauses; the rest is said."""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import queue
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any

from plamo2_jax.align.messages import for_endpoint
from plamo2_jax.align.speakers import Failure, Question, Reply, SpeakerConfig, api_key
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

_LONGEST_PAUSE = 60.0
_LARGEST_BODY = 4 << 20
_SHOWN = 200
"""Characters of what an endpoint says in our messages."""
# Wrong key, wrong address, wrong model: no prompt will fare better.
_HOPELESS = (401, 403, 404, 405)

_Asked = tuple[Future[Reply | Failure], Mapping[str, Any], Callable[[str], bool] | None]
"""A place for the answer, the request's body, and whether a text is of use."""


class EndpointError(ValueError):
    """The endpoint refuses all that it could be asked; the message says why."""


class _Passing(Exception):
    """What may be gone at the next try."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


class _Refused(Exception):
    """Another try would be refused too."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Reader(io.RawIOBase):
    """What a socket receives until a point in time; each read of its own has only the rest."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, end: float):
        self._raw, self._socket, self._end = raw, connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._end))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer, head and body, until a point in time."""

    def __init__(self, connection: socket.socket, *arguments: Any, end: float, **keywords: Any):
        super().__init__(connection, *arguments, **keywords)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), connection, end))


class _Bounded:
    """Makes the timeout of a connection that of all it does, not that of each step. (The search for an address is the system's.)"""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._end = time.monotonic() + self.timeout
        self.response_class = functools.partial(_Response, end=self._end)
        self._create_connection = self._connect

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(_left(self._end))
        super().send(data)

    def _connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """As `socket.create_connection`, whose timeout is that of each address."""
        error: OSError = OSError("no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(_left(self._end))
                connection.connect(place)
                connection.settimeout(_left(self._end))
                return connection
            except OSError as found:
                connection.close()
                error = found
        raise error


class _HttpConnection(_Bounded, http.client.HTTPConnection):
    pass


class _HttpsConnection(_Bounded, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, request)


def _left(end: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class EndpointSpeaker:
    """See `speakers.Speaker`.

    Its threads are daemons: neither a program's end nor `close` waits for an answer that may never come.

    Raises:
        ValueError: the environment does not have the key.
    """

    parallel = True

    def __init__(self, config: SpeakerConfig):
        self._config, self._key = config, api_key(config)
        self._address = config.url.rstrip("/") + "/chat/completions"
        self._opener = urllib.request.build_opener(_HttpHandler, _HttpsHandler, _NoRedirect)
        self._closed: Future[None] = Future()
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        for _ in range(config.concurrency):
            threading.Thread(target=self._serve, name="endpoint", daemon=True).start()
        self.description = {"model": config.model, "url": config.url}

    def answer(
        self,
        questions: Sequence[Question],
        *,
        samples: int,
        seed: int,
        sampling: SamplingConfig,
        stop: StopConfig,
        accept: Callable[[str], bool] | None = None,
    ) -> list[list[Reply] | Failure]:
        """See `speakers.Speaker`.

        Raises:
            EndpointError: the endpoint takes no request at all: wrong key, address or model.
            CancelledError: another thread called `close`.
        """
        futures: list[Future[Reply | Failure]] = []
        said = []
        try:
            for question in questions:
                for sample in range(samples):
                    futures.append(Future())
                    self._asked.put((futures[-1], self._request(question, sample, seed, sampling, stop), accept))
            for future in futures:
                wait((future, self._closed), return_when=FIRST_COMPLETED)
                if self._closed.done():
                    raise CancelledError
                said.append(future.result())
        finally:
            for future in futures:
                future.cancel()
        found: list[list[Reply] | Failure] = []
        for start in range(0, len(said), samples):
            replies = said[start : start + samples]
            failures = [reply for reply in replies if isinstance(reply, Failure)]
            found.append(failures[0] if failures else replies)
        return found

    def close(self) -> None:
        """See `speakers.Speaker`."""
        if not self._closed.done():
            self._closed.set_result(None)
            for _ in range(self._config.concurrency):
                self._asked.put(None)

    def _serve(self) -> None:
        """A thread's work: one request after another, until `close`."""
        while (asked := self._asked.get()) is not None:
            future, body, accept = asked
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._ask(body, accept))
            except BaseException as error:  # Of whoever waits for the answer.
                future.set_exception(error)

    def _request(
        self, question: Question, sample: int, seed: int, sampling: SamplingConfig, stop: StopConfig
    ) -> dict[str, Any]:
        """The body; what OpenAI's own interface lacks is there only where it is wanted."""
        body = {
            "model": self._config.model,
            "messages": for_endpoint(question.messages),
            "max_tokens": stop.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": row_seed(seed, question.id, sample),
        }
        extra = {
            "tools": (question.variables.get("tools"), None),
            "stop": (list(stop.strings), []),
            "stop_token_ids": (list(stop.ids or ()), []),
            "min_tokens": (stop.min_new_tokens, 0),
            "top_k": (sampling.top_k, None),
            "min_p": (sampling.min_p, 0.0),
            "repetition_penalty": (sampling.repetition_penalty, 1.0),
        }
        return body | {name: value for name, (value, default) in extra.items() if value != default}

    def _ask(self, body: Mapping[str, Any], accept: Callable[[str], bool] | None) -> Reply | Failure:
        reason = ""
        for attempt in range(self._config.attempts):
            try:
                text, finished, tokens = _read_answer(self._post(body))
                if accept is None or accept(text):
                    return Reply(text, finished, tokens, attempt)
                raise _Passing(f"not an answer to what was asked: {text[:80]!r}")
            except _Refused as error:
                return Failure(str(error), attempt)
            except _Passing as error:
                reason = str(error)
                if attempt + 1 < self._config.attempts:
                    bound = min(_LONGEST_PAUSE, self._config.backoff * 2**attempt)
                    # Not all at once again (and not by a seed: two runs against one endpoint should not meet).
                    self._pause(max(min(error.pause, _LONGEST_PAUSE), random.uniform(bound / 2, bound)))
            if self._closed.done():
                return Failure("given up", attempt)
        attempts = self._config.attempts
        return Failure(f"{reason} ({attempts} attempt{'s' * (attempts > 1)})", attempts - 1)

    def _pause(self, seconds: float) -> None:
        wait((self._closed,), seconds)

    def _post(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return _read_body(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._judge(error) from None
        except TimeoutError:
            raise _Passing(self._late) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Passing(self._late) from None
            raise _Passing(f"no connection: {_shown(str(error.reason))}") from None
        except (http.client.HTTPException, OSError) as error:
            raise _Passing(f"broken answer: {type(error).__name__}") from None

    def _judge(self, error: urllib.error.HTTPError) -> Exception:
        """What an error status means."""
        said = _shown(f"HTTP {error.code} {error.reason}")
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            pause = error.headers.get("Retry-After", "")
            return _Passing(said, float(pause) if pause.isdecimal() else 0.0)
        if error.code in _HOPELESS or error.code < 400:
            return EndpointError(f"{self._address} refuses requests for the model {self._config.model!r}: {said}")
        detail, late = b"", ""
        try:
            while len(detail) < 4 * _SHOWN and (part := error.fp.read1(4 * _SHOWN)):
                detail += part
        except TimeoutError:
            late = f" ({self._late})"
        except (http.client.HTTPException, OSError):
            pass  # The status says enough.
        return _Refused(f"{said}: {_shown(detail.decode(errors='replace')) or 'no reason given'}{late}")

    @property
    def _late(self) -> str:
        return f"no answer in {self._config.timeout:g} s"


def row_seed(seed: int, id: str, sample: int) -> int:
    """31 bits for one answer, of the seed, the question and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\n{sample}\n{id}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _read_body(response: http.client.HTTPResponse) -> bytes:
    """The body, unless it is too large."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_BODY:
            raise _Passing(f"an answer of more than {_LARGEST_BODY:,} bytes")
    return b"".join(parts)


def _shown(text: str) -> str:
    """An endpoint's text for a message: short, on one line, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN])
    return " ".join(line.split())[:_SHOWN]


def _read_answer(body: bytes) -> tuple[str, bool, int | None]:
    """Text, whether it ended by itself, and its tokens."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        text = choice["message"]["content"]
        text.encode()
        reason = choice.get("finish_reason")
        usage = found.get("usage") or {}
        tokens = usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Passing(f"the answer is not a chat completion: {body[:80]!r}") from None
    known = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 1 << 53
    return text, reason == "stop", tokens if known else None
