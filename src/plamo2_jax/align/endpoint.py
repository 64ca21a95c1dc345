"""An OpenAI-compatible endpoint, such as vLLM's, as a speaker. What may pass is tried again, with growing pauses; the rest is said."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plamo2_jax.align.speakers import Failure, Question, Reply, SpeakerConfig, api_key
from plamo2_jax.infer.sampling import SamplingConfig
from plamo2_jax.infer.stop import StopConfig

_LONGEST_PAUSE = 60.0
_LARGEST_BODY = 16 << 20
# Wrong key, wrong address, wrong model: no prompt will fare better.
_HOPELESS = (401, 403, 404, 405)


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


class EndpointSpeaker:
    """See `speakers.Speaker`.

    Raises:
        ValueError: the environment does not have the key.
    """

    parallel = True

    def __init__(self, config: SpeakerConfig):
        self._config, self._key = config, api_key(config)
        self._address = config.url.rstrip("/") + "/chat/completions"
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")
        self._closed = threading.Event()
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
        """
        asked = [
            self._pool.submit(self._ask, self._request(question, sample, seed, sampling, stop), accept)
            for question in questions
            for sample in range(samples)
        ]
        try:
            said = [future.result() for future in asked]
        finally:
            for future in asked:
                future.cancel()
        found: list[list[Reply] | Failure] = []
        for start in range(0, len(said), samples):
            replies = said[start : start + samples]
            failures = [reply for reply in replies if isinstance(reply, Failure)]
            found.append(failures[0] if failures else replies)
        return found

    def close(self) -> None:
        """See `speakers.Speaker`."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(
        self, question: Question, sample: int, seed: int, sampling: SamplingConfig, stop: StopConfig
    ) -> dict[str, Any]:
        """The body; what OpenAI's own interface lacks is there only where it is wanted."""
        body = {
            "model": self._config.model,
            "messages": list(question.messages),
            "max_tokens": stop.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": row_seed(seed, question.id, sample),
        }
        extra = {
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
                    self._closed.wait(max(min(error.pause, _LONGEST_PAUSE), random.uniform(bound / 2, bound)))
            if self._closed.is_set():
                return Failure("given up", attempt)
        return Failure(f"{reason} ({self._config.attempts} tries)", self._config.attempts - 1)

    def _post(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        end = time.monotonic() + self._config.timeout
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return _read_body(response, end)
        except urllib.error.HTTPError as error:
            with error:
                raise self._judge(error) from None
        except TimeoutError:
            raise _Passing(f"no answer in {self._config.timeout:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            raise _Passing(
                f"no answer in {self._config.timeout:g} s" if late else f"no connection: {error.reason}"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            raise _Passing(f"broken answer: {type(error).__name__}") from None

    def _judge(self, error: urllib.error.HTTPError) -> Exception:
        """What an error status means."""
        said = f"HTTP {error.code} {error.reason}"
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            pause = error.headers.get("Retry-After", "")
            return _Passing(said, float(pause) if pause.isdecimal() else 0.0)
        if error.code in _HOPELESS or error.code < 400:
            return EndpointError(f"{self._address} refuses requests for the model {self._config.model!r}: {said}")
        try:
            detail = error.read(300).decode(errors="replace")
        except OSError:
            detail = ""
        return _Refused(f"{said}: {' '.join(detail.split())}")


def row_seed(seed: int, id: str, sample: int) -> int:
    """31 bits for one answer, of the seed, the question and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\n{sample}\n{id}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _read_body(response: http.client.HTTPResponse, end: float) -> bytes:
    """The body, unless it comes too slowly or is too large."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_BODY:
            raise _Passing(f"an answer of more than {_LARGEST_BODY:,} bytes")
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)


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
        raise _Passing(f"garbage: {body[:80]!r}") from None
    return text, reason == "stop", tokens if isinstance(tokens, int) else None
