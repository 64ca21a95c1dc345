"""Client of an OpenAI-compatible server, such as vLLM. Temporary failures are retried with growing pauses; others are returned."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any, NamedTuple, Self

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import openai_format
from plamo2_jax.models.attempts import Attempt, AttemptGate, Outcome
from plamo2_jax.models.chat_model import (
    MIXED,
    NOTHING_BEFORE,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    RequestError,
    Score,
    ScoreRequest,
    Usage,
)
from plamo2_jax.models.config import ChatModelConfig, api_key
from plamo2_jax.models.deadline_http import build_opener
from plamo2_jax.models.openai_format import SHOWN, EndpointError, MalformedResponse, shown

_LONGEST_PAUSE = 60.0
_LARGEST_BODY = 4 << 20
_LARGEST_SCORES = 64 << 20
_PROBE = "日本で一番高い山は富士山です。English: The highest mountain in Japan is"
_PROBE_TOKENS = 16
# With a wrong key, address or model name, every request fails.
_FATAL_STATUSES = (401, 403, 404, 405)
_OVERLOADED_STATUSES = (429, 503)


class _Temporary(Exception):
    """A failure after which a retry may succeed. `pause` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, pause: float = 0.0, outcome: Outcome = "failed", usage: Usage | None = None):
        super().__init__(reason)
        self.pause, self.outcome, self.usage = pause, outcome, usage or Usage()


class _Refused(Exception):
    """The server refuses a request, and a retry would not help."""


class _Call(NamedTuple):
    """One HTTP request and the function that reads its response."""

    path: str
    body: Mapping[str, Any]
    read: Callable[[Any, int], Any]
    """Returns the result for the response body and the number of failed attempts. Raises MalformedResponse."""
    accept: Callable[[str], bool] | None = None
    """Returns whether the text of a result is usable."""
    largest: int = _LARGEST_BODY


class OpenAIClient:
    """A `ChatModel` behind a server.

    The threads are daemons, so neither the end of the program nor `close` waits for a pending response.

    Args:
        config: the server.
        gate: delays, forbids and counts the attempts; None: each is sent at once.

    Raises:
        PlamoError: the environment variable of the API key is empty or invalid.
    """

    parallel = True

    def __init__(self, config: ChatModelConfig, gate: AttemptGate | None = None):
        self._config, self._key, self._gate = config, api_key(config), gate
        self._address = config.url.rstrip("/")
        self._opener = build_opener()
        self._closed: Future[None] = Future()
        self._calls: queue.SimpleQueue[tuple[Future[Any], _Call] | None] = queue.SimpleQueue()
        for _ in range(config.concurrency):
            threading.Thread(target=self._work, name="openai-client", daemon=True).start()
        self.description = {"model": config.model, "url": config.url}

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations, as described in `ChatModel.chat`. Each sample is a separate HTTP request with its own seed.

        Raises:
            EndpointError: the server refuses every request, because the key, the address or the model name is wrong.
            CancelledError: another thread called `close`.
        """

        def call(request: ChatRequest, sample: int) -> _Call:
            body = {"model": self._config.model, "messages": openai_format.messages(request.messages)}
            body |= sampling_fields(request.sampling, request.stop, row_seed(request.seed, request.id, sample))
            if (tools := request.variables.get("tools")) is not None:
                body["tools"] = tools
            return _Call("chat/completions", body, openai_format.read_chat, accept)

        return self._samples(requests, call)

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts, as described in `ChatModel.complete`. With `bos`, the server's tokenizer adds its usual special tokens.

        Raises:
            EndpointError, CancelledError: as in `chat`.
        """

        def call(request: CompletionRequest, sample: int) -> _Call:
            prompt = _prompt(request.prompt)
            seed = row_seed(request.seed, request.id or str(prompt), sample)
            body = {"model": self._config.model, "prompt": prompt, **_bos(prompt, request.bos)}
            body |= sampling_fields(request.sampling, request.stop, seed)
            return _Call("completions", body, openai_format.read_completion)

        return self._samples(requests, call)

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Score continuations, as described in `ChatModel.score`. The server must support `echo` with log-probabilities, like vLLM.

        Raises:
            EndpointError: the server does not support it, or refuses every request as in `chat`.
            CancelledError: as in `chat`.
        """

        def call(request: ScoreRequest) -> _Call:
            context, continuations = _prompt(request.context), list(map(_prompt, request.continuations))
            # The context alone is sent too: its tokens show where the tokens of the joint texts begin to differ.
            prompts = [context, *(context + continuation for continuation in continuations)]
            body = {"model": self._config.model, "prompt": prompts, **_bos(context, request.bos)}
            body |= {"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
            read = openai_format.score_reader(prompts, self._address)
            return _Call("completions", body, read, largest=_LARGEST_SCORES)

        problems = list(map(_problem, requests))
        valid = [request for request, problem in zip(requests, problems, strict=True) if problem is None]
        results = iter(self._run(list(map(call, valid))))
        return [next(results) if problem is None else RequestError(problem) for problem in problems]

    def identify(self) -> dict[str, str]:
        """Return fields that tell apart two models behind one address and name.

        The server answers a short greedy conversation, or continues a prompt if it has no chat template. `served_model` is the id of the
        model in its response, and `probe_sha256` the hash of the text. Rounding on a server may depend on its load and change the text.

        Raises:
            EndpointError: the server does not answer.
        """
        asked = {"model": self._config.model, "max_tokens": _PROBE_TOKENS, "temperature": 0.0}
        calls = [
            _Call(
                "chat/completions",
                {**asked, "messages": [{"role": "user", "content": _PROBE}]},
                openai_format.read_chat_probe,
            ),
            _Call("completions", {**asked, "prompt": _PROBE}, openai_format.read_completion_probe),
        ]
        reasons = []
        for call in calls:
            try:
                result = self._call(call)
            except EndpointError as error:
                reasons.append(str(error))
                continue
            if not isinstance(result, RequestError):
                name, text = result
                return {"served_model": name, "probe_sha256": hashlib.sha256(text.encode()).hexdigest()}
            reasons.append(f"{self._address} does not answer: {result.reason}")
            if not result.reason.startswith("HTTP"):
                break  # The server cannot be reached, or is not an OpenAI-compatible server.
        raise EndpointError(reasons[0])

    def close(self) -> None:
        """Cancel all pending requests. Any thread may call this."""
        if not self._closed.done():
            self._closed.set_result(None)
            for _ in range(self._config.concurrency):
                self._calls.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _samples(self, requests: Sequence[Any], call: Callable[[Any, int], _Call]) -> list[Any]:
        """Make one call per sample of each request. Return for each request its responses, or its first error."""
        responses = iter(self._run([call(request, sample) for request in requests for sample in range(request.n)]))
        results = []
        for request in requests:
            some = [next(responses) for _ in range(request.n)]
            error = next((one for one in some if isinstance(one, RequestError)), None)
            if error is not None:
                self._drop(some)
            results.append(some if error is None else error)
        return results

    def _run(self, calls: Sequence[_Call]) -> list[Any]:
        """Make calls, `concurrency` at a time. Return a result or a RequestError for each, in order."""
        futures: list[Future[Any]] = []
        results = []
        try:
            for call in calls:
                futures.append(Future())
                self._calls.put((futures[-1], call))
            for future in futures:
                wait((future, self._closed), return_when=FIRST_COMPLETED)
                if self._closed.done():
                    raise CancelledError
                results.append(future.result())
        except BaseException:
            for future in futures:
                if not future.cancel():
                    future.add_done_callback(self._drop_result)
            raise
        return results

    def _drop_result(self, future: Future[Any]) -> None:
        """Count the response of a call whose caller has failed."""
        if not future.cancelled() and future.exception() is None:
            self._drop([future.result()])

    def _drop(self, results: Sequence[Any]) -> None:
        """Count responses that nobody will use."""
        for result in results:
            if self._gate is not None and isinstance(result, ChatResponse):
                self._gate.drop(result.usage)

    def _work(self) -> None:
        """Make calls from the queue until `close`. Each thread runs this."""
        while (waiting := self._calls.get()) is not None:
            future, call = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._call(call))
            except BaseException as error:  # `future.result()` raises it in the thread that waits.
                future.set_exception(error)

    def _call(self, call: _Call) -> Any:
        reason, attempts = "", 1 + self._config.max_retries
        for attempt in range(attempts):
            started = self._gate.start(call.body, self._pause_unless_closed) if self._gate is not None else None
            try:
                result = self._result(call, attempt)
            except _Refused as error:
                self._end(started, Attempt("failed"))
                return RequestError(str(error), attempt)
            except _Temporary as error:
                reason = str(error)
                bound = min(_LONGEST_PAUSE, self._config.backoff * 2**attempt)
                # Jitter spreads the retries. It has no seed, so two runs do not retry at the same times.
                pause = max(error.pause, random.uniform(bound / 2, bound))
                self._end(started, Attempt(error.outcome, error.usage, pause))
                if attempt + 1 < attempts:
                    self._pause(min(_LONGEST_PAUSE, pause))
            except BaseException:
                self._end(started, Attempt("failed"))
                raise
            else:
                self._end(started, Attempt("used", result.usage if isinstance(result, ChatResponse) else Usage()))
                return result
            if self._closed.done():
                return RequestError("cancelled, because the client was closed", attempt)
        return RequestError(f"{reason} ({attempts} attempt{'s' * (attempts > 1)})", attempts - 1)

    def _result(self, call: _Call, retries: int) -> Any:
        """Send a request once. Return its result; raise `_Temporary` or `_Refused` if there is none."""
        body = self._post(call)
        try:
            result = call.read(body, retries)
        except MalformedResponse as error:
            raise _Temporary(str(error), outcome="unusable", usage=openai_format.read_usage(body)) from None
        if call.accept is None or call.accept(result.text):
            return result
        reason = f"the text of the response is not usable: {result.text[:80]!r}"
        raise _Temporary(reason, outcome="unusable", usage=result.usage)

    def _end(self, started: Any, attempt: Attempt) -> None:
        if self._gate is not None:
            self._gate.end(started, attempt)

    def _pause(self, seconds: float) -> None:
        wait((self._closed,), seconds)

    def _pause_unless_closed(self, seconds: float) -> None:
        self._pause(seconds)
        if self._closed.done():
            raise CancelledError

    def _post(self, call: _Call) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        address = f"{self._address}/{call.path}"
        request = urllib.request.Request(address, json.dumps(call.body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return _read_body(response, call.largest)
        except urllib.error.HTTPError as error:
            with error:
                raise self._status_error(error, address) from None
        except TimeoutError:
            raise _Temporary(self._timed_out, outcome="unreported") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Temporary(self._timed_out, outcome="unreported") from None
            raise _Temporary(f"no connection: {shown(str(error.reason))}") from None
        except (http.client.HTTPException, OSError) as error:
            reason = f"the response could not be read: {type(error).__name__}"
            raise _Temporary(reason, outcome="unreported") from None

    def _status_error(self, error: urllib.error.HTTPError, address: str) -> Exception:
        """Return the exception to raise for an HTTP error status."""
        status = shown(f"HTTP {error.code} {error.reason}")
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            pause = retry_after(error.headers.get("Retry-After", ""), error.headers.get("Date", ""))
            return _Temporary(status, pause, "refused" if error.code in _OVERLOADED_STATUSES else "failed")
        if error.code in _FATAL_STATUSES or error.code < 400:
            return EndpointError(
                f"{address} refuses requests for the model {self._config.model!r}: {status}. Check the address, "
                "the name of the model and the API key"
            )
        detail, late = b"", ""
        try:
            while len(detail) < 4 * SHOWN and (part := error.fp.read1(4 * SHOWN)):
                detail += part
        except TimeoutError:
            late = f" ({self._timed_out})"
        except (http.client.HTTPException, OSError):
            pass  # The message then has only the status.
        return _Refused(f"{status}: {shown(detail.decode(errors='replace')) or 'no reason given'}{late}")

    @property
    def _timed_out(self) -> str:
        return f"no answer in {self._config.timeout:g} s"


def retry_after(value: str, date: str = "") -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a time after the server's Date. 0 without a valid one."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    try:
        now = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, until - now)


def row_seed(seed: int, id: str, sample: int) -> int:
    """Return the 31-bit random seed of one response: a hash of the seed, the request's id and the index of the sample."""
    digest = hashlib.blake2b(f"{seed}\n{sample}\n{id}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def sampling_fields(sampling: SamplingConfig, stop: StopConfig, seed: int | None) -> dict[str, Any]:
    """Return the settings for the body of a request. Settings that some servers do not know are omitted if they have their defaults."""
    body = {"max_tokens": stop.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    extra = {
        "seed": (seed, None),
        "stop": (list(stop.strings), []),
        "stop_token_ids": (list(stop.ids or ()), []),
        "min_tokens": (stop.min_new_tokens, 0),
        "top_k": (sampling.top_k, None),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
    }
    return body | {name: value for name, (value, default) in extra.items() if value != default}


def _problem(request: ScoreRequest) -> str | None:
    """Return why a request cannot be sent, or None if it can."""
    is_text = isinstance(request.context, str)
    if any(isinstance(continuation, str) != is_text for continuation in request.continuations):
        return MIXED
    # Servers refuse an empty list of ids. For an empty text with bos, the special tokens are the prompt.
    return None if len(request.context) or (is_text and request.bos) else NOTHING_BEFORE


def _prompt(prompt: Any) -> str | list[int]:
    """Return a text, or token ids as a list for JSON."""
    return prompt if isinstance(prompt, str) else np.asarray(prompt).tolist()


def _bos(prompt: str | list[int], bos: bool) -> dict[str, bool]:
    """Return the field that turns off special tokens. Servers add them before texts, not before ids; vLLM and others know the field."""
    return {} if bos or not isinstance(prompt, str) else {"add_special_tokens": False}


def _read_body(response: http.client.HTTPResponse, largest: int) -> bytes:
    """Return the body of a response; raise `_Temporary` if it is larger than `largest` bytes."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > largest:
            raise _Temporary(f"the response has more than {largest:,} bytes", outcome="unreported")
    return b"".join(parts)
