"""One request to the server, and when its text arrived."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.bench_serve.config import BenchConfig
from plamo2_jax.bench_serve.http_stream import Address, ProtocolError, request
from plamo2_jax.errors import PlamoError
from plamo2_jax.models.openai_format import error_message, shown, usage_of
from plamo2_jax.models.server_events import EventParser, EventTooLong

_LARGEST_REPLY = 64 << 20


@dataclasses.dataclass
class Record:
    """What happened to a request. Times are in seconds after the start of the measurement."""

    index: int
    output_tokens: int
    """Tokens that were asked for."""
    scheduled: float = 0.0
    """When it should have been sent."""
    sent: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = dataclasses.field(default_factory=list)
    """When each chunk with text arrived."""
    prompt_tokens: int | None = None
    """As the server counts them; None where it does not."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts them; None where it does not: then chunks are counted."""
    finish_reason: str | None = None
    error: str | None = None
    """Kind of error; None: it has an answer."""
    detail: str = ""
    """One sentence about the error."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.arrivals) if self.completion_tokens is None else self.completion_tokens


class Failure(Exception):
    """A request failed; `kind` groups it with others."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind = kind


class Client:
    """Sends requests to a server.

    Args:
        url: address of the server, with /v1.
        model: name of the model there.
        key: API key.
        config: the load.
    """

    def __init__(self, url: str, model: str | None, key: str | None, config: BenchConfig):
        self.address, self.model, self._config = Address.parse(url), model, config
        self._headers = {"Accept": "text/event-stream, application/json"}
        self._headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        self._start = time.perf_counter()

    def restart(self) -> None:
        """Start the clock of records anew."""
        self._start = time.perf_counter()

    def now(self) -> float:
        """Return the seconds since `restart`."""
        return time.perf_counter() - self._start

    async def json(self, path: str, body: Mapping[str, Any] | None = None, *, root: bool = False) -> Any:
        """Send a request and return the JSON of its response.

        Args:
            root: `path` is not below /v1.

        Raises:
            Failure: there is none.
        """
        address = self.address.root if root else self.address
        data = None if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(self._config.timeout), request(address, path, data, self._headers) as response:
                content = await response.read(_LARGEST_REPLY)
                found = json.loads(content)
        except TimeoutError:
            raise Failure("timeout", f"no response in {self._config.timeout:g} s") from None
        except OSError as error:
            raise Failure("connection", _reason(error)) from None
        except (ProtocolError, ValueError, RecursionError) as error:
            raise Failure("malformed response", shown(str(error))) from None
        if response.status != 200:
            raise Failure(f"HTTP {response.status}", error_message(found))
        return found

    async def find_model(self) -> str:
        """Set the model to the first one that the server lists, unless there is one; return it.

        Raises:
            PlamoError: the server lists none.
        """
        if self.model is None:
            try:
                self.model = str((await self.json("/models"))["data"][0]["id"])
            except Failure as error:
                raise PlamoError(f"the models of the server cannot be listed ({error.kind}): {error}") from None
            except (KeyError, IndexError, TypeError):
                raise PlamoError("the server lists no model: give --model NAME") from None
        return self.model

    async def tokenize(self, text: str) -> list[int] | None:
        """Return the token ids of a text; None where the server has no /tokenize. vLLM calls the text prompt, llama.cpp content."""
        body = {"model": self.model, "prompt": text, "content": text, "add_special_tokens": False}
        try:
            found = await self.json("/tokenize", body, root=True)
            tokens = found["tokens"]
        except (Failure, KeyError, TypeError):
            return None
        whole = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
        return tokens if whole and tokens else None

    async def send(self, record: Record, prompt: str | Sequence[int]) -> None:
        """Send a request and write down what happens. Never raises but for cancellation."""
        record.sent = self.now()
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._stream(record, prompt)
        except TimeoutError:
            record.error, record.detail = "timeout", f"no end in {self._config.timeout:g} s"
        except Failure as failure:
            record.error, record.detail = failure.kind, str(failure)
        except OSError as error:
            record.error, record.detail = "connection", _reason(error)
        except (ProtocolError, EventTooLong) as error:
            record.error, record.detail = "malformed response", shown(str(error))
        record.ended = self.now()

    async def _stream(self, record: Record, prompt: str | Sequence[int]) -> None:
        chat = self._config.endpoint == "chat"
        body = {"model": self.model, "max_tokens": record.output_tokens, "temperature": self._config.temperature}
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "seed": self._config.seed + record.index}
        body |= {"ignore_eos": True} if self._config.ignore_eos else {}
        path = "/chat/completions" if chat else "/completions"
        async with request(self.address, path, json.dumps(body).encode(), self._headers) as response:
            if response.status != 200:
                raise Failure(f"HTTP {response.status}", _error_of(await response.read(_LARGEST_REPLY)))
            parser = EventParser()
            async for part in response.body:
                for data in parser.push(part):
                    if data == "[DONE]":
                        if not record.finish_reason:
                            raise Failure("no finish reason", "the stream ended without a finish reason")
                        return
                    self._take(record, data)
        # Some servers end the connection instead of sending [DONE].
        if record.finish_reason is None:
            raise Failure("cut", "the connection ended before the answer was complete")

    def _take(self, record: Record, data: str) -> None:
        """Take an event of the stream."""
        try:
            found = json.loads(data)
            if found.get("error"):
                raise Failure("error in the stream", error_message(found))
            for choice in found.get("choices") or []:
                delta = choice.get("delta") or {}
                # Usage counts the tokens of reasoning, too.
                if choice.get("text") or any(delta.get(name) for name in ("content", "reasoning_content", "reasoning")):
                    record.arrivals.append(self.now())
                if isinstance(reason := choice.get("finish_reason"), str):
                    record.finish_reason = reason
            if usage := found.get("usage"):
                counts = usage_of(usage)
                record.prompt_tokens, record.completion_tokens = counts.prompt_tokens, counts.completion_tokens
                record.cached_tokens = counts.cached_tokens
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Failure("malformed response", f"an event is not a chunk: {data[:80]!r}") from None


def _error_of(content: bytes) -> str:
    try:
        return error_message(json.loads(content))
    except (ValueError, RecursionError):
        return shown(content[:200].decode(errors="replace")) or "no reason given"


def _reason(error: OSError) -> str:
    return shown(error.strerror or str(error)) or type(error).__name__
