"""A server that streams answers written by a test, over real HTTP: for what a model cannot be made to say or do on demand."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

POLICY = {"Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}


class ScriptedServer:
    """Answers chat completions.

    Attributes:
        answer: pieces of the next answers; a number is a pause in seconds, None cuts the connection, a dict is an event of its own.
        refusals: responses to the next requests; None: an answer.
        usage: whether streams report token counts.
        bodies: requests so far.
        key: API key that requests must have.
        dropped: number of streams whose client went away.

    Args:
        page: folder with the chat page, or None.
    """

    def __init__(self, page=None):
        self.answer, self.refusals, self.bodies, self.key, self.dropped = ["Hello."], [], [], None, 0
        self.models, self.finish_reason, self.usage = ["tiny", "other"], "stop", True
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._chat, methods=["POST"]),
        ]
        if page is not None:
            self._page = (page / "index.html").read_bytes()
            routes += [Route("/", self._index), Mount("/page", StaticFiles(directory=page))]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self):
        """Stop the server."""
        self._server.should_exit = True
        self._thread.join(10)

    async def _index(self, request):
        return Response(self._page, media_type="text/html", headers=POLICY)

    def _refuse(self, request):
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return None

    async def _models(self, request):
        return self._refuse(request) or JSONResponse({"data": [{"id": name} for name in self.models]})

    async def _chat(self, request):
        if refusal := self._refuse(request):
            return refusal
        body = await request.json()
        self.bodies.append(body)
        if self.refusals and (refusal := self.refusals.pop(0)):
            return refusal
        return StreamingResponse(
            self._stream(body, request.url.path.endswith("chat/completions")), media_type="text/event-stream"
        )

    async def _stream(self, body, chat):
        def event(data):
            return f"data: {json.dumps(data)}\n\n"

        def chunk(piece, reason=None):
            place = {"delta": {"content": piece}} if chat else {"text": piece}
            return event({"choices": [{"index": 0, **place, "finish_reason": reason}]})

        count = 0
        try:
            if chat:
                yield event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
            for piece in list(self.answer):
                if piece is None:
                    raise ConnectionError
                if isinstance(piece, int | float):
                    await asyncio.sleep(piece)
                elif isinstance(piece, dict):
                    yield event(piece)
                else:
                    count += 1
                    yield chunk(piece)
            yield chunk("", self.finish_reason)
            if self.usage and body.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 7, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 4}}
                yield event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.dropped += 1
            raise


@contextlib.contextmanager
def scripted_server(page=None):
    """Run a server."""
    server = ScriptedServer(page)
    try:
        yield server
    finally:
        server.close()
