"""The application: routes from HTTP requests to the engine."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.auth import RequireHost, RequireKey, is_loopback
from plamo2_jax.serve.chat_requests import read_chat
from plamo2_jax.serve.chats import Chat
from plamo2_jax.serve.completion_requests import read_completion
from plamo2_jax.serve.completions import Completion
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.encoding import encode_chat, encode_text
from plamo2_jax.serve.engine_thread import EngineThread
from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.generation_fields import GenerationFields
from plamo2_jax.serve.metrics import Metrics
from plamo2_jax.serve.openapi import document
from plamo2_jax.serve.output import OutputFormat
from plamo2_jax.serve.output_fields import FORMAT_FIELDS, GUIDED_FIELDS, read_guided_format
from plamo2_jax.serve.response_api import ResponseCall
from plamo2_jax.serve.response_requests import read_response_request, renamed
from plamo2_jax.serve.responses import EventStream, error_response, json_response, read_json
from plamo2_jax.serve.served_model import ServedModel, unknown_model
from plamo2_jax.serve.work import Admission, Work, cancelled_on_disconnect
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD

PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_IGNORED_HEADER = "X-Ignored-Fields"

Handler = Callable[["Api", Request], Awaitable[Response]]


class Api:
    """The endpoints.

    Args:
        engine: the engine thread.
        admission: counts and limits work.
        metrics: the metrics.
        config: limits.
    """

    def __init__(self, engine: EngineThread, admission: Admission, metrics: Metrics, config: ServeConfig):
        self.engine, self.admission, self.metrics, self.config = engine, admission, metrics, config

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        fields, model = await self._read(request)
        wanted = read_completion(fields, model.tokenizer.vocab_size)
        prompts = [
            await encode_text(model, prompt, bos=wanted.add_special_tokens) if isinstance(prompt, str) else prompt
            for prompt in wanted.prompts
        ]
        slow = any(fields.get(name) is not None for name in GUIDED_FIELDS)
        output = await asyncio.to_thread(read_guided_format, fields, model) if slow else OutputFormat()
        call = Completion(model, wanted, prompts, output)
        return await self._answer(request, fields, call, wanted.generation.stream)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        fields, model = await self._read(request)
        chat, generation = await self._chat(fields, model)
        return await self._answer(request, fields, chat, generation.stream)

    async def responses(self, request: Request) -> Response:
        """Answer a conversation, in the form of OpenAI's Responses API."""
        fields, model = await self._read(request)
        chat_fields = read_response_request(fields)
        try:
            chat, generation = await self._chat(chat_fields, model)
        except ApiError as error:
            raise renamed(error) from error
        call = ResponseCall(chat, fields, generation.seed, int(time.time()))
        return await self._answer(request, fields, call, generation.stream)

    async def _chat(self, fields: Fields, model: ServedModel) -> tuple[Chat, GenerationFields]:
        slow = any(fields.get(name) is not None for name in FORMAT_FIELDS)
        wanted = await asyncio.to_thread(read_chat, fields, model) if slow else read_chat(fields, model)
        prompt = await encode_chat(model, wanted.messages, wanted.variables)
        return Chat(model, wanted, prompt), wanted.generation

    async def models(self, request: Request) -> Response:
        """List the models."""
        del request
        self._require_ready()
        return json_response({"object": "list", "data": [_describe(model) for model in self.engine.models.values()]})

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        self._require_ready()
        return json_response(_describe(self._model(request.path_params["name"])))

    async def tokenize(self, request: Request) -> Response:
        """Turn a text or a conversation into token ids."""
        fields, model = await self._read(request)
        if fields.get("messages") is not None:
            wanted = await asyncio.to_thread(read_chat, fields, model)
            ids = await encode_chat(model, wanted.messages, wanted.variables)
        else:
            text = fields.string("prompt")
            if text is None:
                raise invalid("prompt", "prompt must be a string")
            ids = await self._tokenize(model, text, fields.boolean("add_special_tokens", True))
        body = {"count": len(ids), "max_model_len": model.max_length, "tokens": ids.tolist()}
        return json_response(body, headers=_warning(fields))

    async def _tokenize(self, model: ServedModel, text: str, bos: bool) -> np.ndarray:
        tokenizer = model.tokenizer
        # A control string by itself is its token, for clients that look up the ids of special tokens. Inside a text it stays text.
        if text in tokenizer.tokens and tokenizer.is_special(tokenizer.id_of(text)):
            return np.array([tokenizer.id_of(text)], np.int32)
        return await encode_text(model, text, bos=bos)

    async def detokenize(self, request: Request) -> Response:
        """Turn token ids into text."""
        fields, model = await self._read(request)
        allowed = f"token ids from 0 to {model.tokenizer.vocab_size - 1}"
        ids = fields.items("tokens", allowed)
        if ids is None or not all(type(each) is int and 0 <= each < model.tokenizer.vocab_size for each in ids):
            raise fields.refuse("tokens", allowed)
        return json_response({"prompt": model.tokenizer.decode(ids)}, headers=_warning(fields))

    async def tokenizer_info(self, request: Request) -> Response:
        """Describe the tokenizer."""
        self._require_ready()
        model = self._model(request.query_params.get("model"))
        template = None if model.template is None else model.template.source
        return json_response({"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "chat_template": template})

    async def health(self, request: Request) -> Response:
        """Say whether requests are answered."""
        del request
        status = "draining" if self.admission.draining else self.engine.state
        return json_response({"status": status}, 200 if status == "ready" else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        del request
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        del request
        return json_response(document())

    async def page(self, request: Request) -> Response:
        """Return the chat page."""
        del request
        if not (PAGE / "index.html").is_file():
            raise ApiError(404, "this installation has no chat page: install the package again")
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    def _require_ready(self) -> None:
        if self.engine.state == "failed":
            raise ApiError(500, "the engine has failed: restart the server")
        if self.engine.state != "ready":
            raise ApiError(503, "the server is starting", headers={"Retry-After": "5"})

    def _model(self, name: str | None) -> ServedModel:
        """Return a model by its name; the first if there is no name."""
        models = self.engine.models
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise unknown_model(name, list(models))
        return models[name]

    async def _read(self, request: Request) -> tuple[Fields, ServedModel]:
        """Read the body of a request, if the server can take one."""
        self._require_ready()
        self.admission.check()
        body = await read_json(request, self.config.max_body << 20, self.config.client_timeout)
        fields = Fields(body)
        return fields, self._model(fields.string("model"))

    async def _answer(
        self, request: Request, fields: Fields, call: Completion | Chat | ResponseCall, stream: bool
    ) -> Response:
        """Run a request that is valid."""
        if call.tokens > self.config.max_tokens:
            raise invalid(
                "max_tokens",
                f"prompts x n x max_tokens is {call.tokens:,}: the limit of this server is "
                f"{self.config.max_tokens:,} tokens per request",
            )
        work = Work(self.engine, call.model, self.config.request_timeout)
        close = self.admission.open(work, call.jobs)
        if stream:
            return EventStream(call.chunks(work), work, close, self.config.client_timeout, _warning(fields))
        try:
            with cancelled_on_disconnect(request.receive, work):
                return json_response(await call.response(work), headers=_warning(fields))
        finally:
            work.cancel("disconnect")
            close()


def make_app(api: Api, keys: tuple[bytes, ...]) -> Starlette:
    """Return the ASGI application.

    Args:
        api: the endpoints.
        keys: API keys; none: everybody may use the server.
    """
    config = api.config
    hosts = tuple(map(str.lower, config.allowed_hosts)) if is_loopback(config.host) else None
    routes = [
        Route("/v1/completions", _guarded(api, api.completions), methods=["POST"]),
        Route("/v1/chat/completions", _guarded(api, api.chat_completions), methods=["POST"]),
        Route("/v1/responses", _guarded(api, api.responses), methods=["POST"]),
        Route("/v1/models", _guarded(api, api.models)),
        Route("/v1/models/{name:path}", _guarded(api, api.model)),
        Route("/tokenize", _guarded(api, api.tokenize), methods=["POST"]),
        Route("/detokenize", _guarded(api, api.detokenize), methods=["POST"]),
        Route("/tokenizer_info", _guarded(api, api.tokenizer_info)),
        Route("/health", _guarded(api, api.health)),
        Route("/metrics", _guarded(api, api.metrics_text)),
        Route("/openapi.json", _guarded(api, api.openapi)),
        Route("/", _guarded(api, api.page)),
    ]
    if PAGE.is_dir():
        routes.append(Mount("/page", _with_headers(StaticFiles(directory=PAGE), _PAGE_HEADERS)))
    return Starlette(
        routes=routes,
        middleware=[Middleware(RequireHost, names=hosts), Middleware(RequireKey, keys=keys)],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _defect},
    )


def _guarded(api: Api, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler whose errors have OpenAI's form and are counted."""

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            api.metrics.refused(error.status)
            return error_response(error)
        except PlamoError as error:
            api.metrics.refused(400)
            return error_response(ApiError(400, str(error)))

    return handle


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "plamo2-jax",
        "root": model.parent or model.name,
        "parent": model.parent,
        "max_model_len": model.max_length,
    }


def _warning(fields: Fields) -> dict[str, str]:
    """Return a header that names the fields that were ignored, if there are any."""
    names = ", ".join(fields.unknown)
    # Names come from the client: a header must hold no line end.
    shown = "".join(character if " " <= character <= "~" else "?" for character in names)[:500]
    return {_IGNORED_HEADER: shown} if shown else {}


def _with_headers(app: Any, headers: Mapping[str, str]) -> Any:
    """Return an ASGI application whose responses have further headers."""
    added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no endpoint {request.url.path[:100]}: GET /openapi.json lists all endpoints",
        405: f"{request.method} is not allowed for {request.url.path[:100]}: GET /openapi.json lists the methods",
    }
    headers = {} if error.headers is None else dict(error.headers)
    return error_response(ApiError(error.status_code, what.get(error.status_code, error.detail), headers=headers))


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return error_response(error)


async def _defect(request: Request, error: Exception) -> Response:
    """Answer to a defect of this server; its traceback is logged by uvicorn."""
    del request, error
    return error_response(ApiError(500, "internal error: the server log has the details"))
