"""Running the server: the socket, the event loop, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.app import Api, make_app
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.engine_thread import EngineThread
from plamo2_jax.serve.metrics import Metrics
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.serve.work import Admission

# Seconds between two looks at what is still running.
_POLL = 0.02
# Seconds that responses have to be written after their texts were ended.
_FLUSH = 5.0
# Seconds that new connections have to send their first request, which is refused with status 503.
_FIRST_REQUEST = 0.5


class Server(uvicorn.Server):
    """A server for models that are loaded in its engine thread.

    The first SIGTERM or SIGINT refuses new requests and lets running texts end; the second ends them at once. `run` returns when all
    responses are written.

    Args:
        load: returns the models; called in the engine thread.
        config: addresses and limits.
        keys: API keys; none: everybody may use the server.
    """

    def __init__(self, load: Callable[[], Sequence[ServedModel]], config: ServeConfig, keys: tuple[bytes, ...] = ()):
        self.metrics = Metrics()
        self.admission = Admission(config.slots + config.max_waiting)
        self.engine = EngineThread(load, on_delta=self.metrics.delta, on_change=self._changed)
        self.metrics.watch(self.engine)
        self.options, self._begun = config, time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Task[None] | None = None
        app = make_app(Api(self.engine, self.admission, self.metrics, config), keys)
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                # The logging of the whole process stays as it is.
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=config.max_connections,
                timeout_graceful_shutdown=int(_FLUSH),
            )
        )
        self.socket = _listen(config.host, config.port)

    @property
    def url(self) -> str:
        """Address of the server."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Serve until a signal ends the server.

        Raises:
            PlamoError: the models cannot be loaded.
        """
        self.run(sockets=[self.socket])
        if self.engine.error is not None:
            raise self.engine.error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load the models."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.engine.start(self._loop)
        self._dropping = self._loop.create_task(self._drop_slow_heads())

    async def _drop_slow_heads(self) -> None:
        """Close connections whose request head does not arrive. uvicorn never does, and a few of them would fill `max_connections`."""
        timeout, since = self.options.client_timeout, {}
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            now = time.monotonic()
            since = {each: since.get(each, now) for each in self.server_state.connections if _waits_for_head(each)}
            for connection, begun in since.items():
                if now - begun > timeout:
                    connection.transport.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections and end the engine thread."""
        self._dropping.cancel()
        for server in self.servers:
            server.close()
        # A connection that is closed before its request was read has no answer.
        end = time.monotonic() + _FIRST_REQUEST
        while any(each.cycle is None for each in self.server_state.connections) and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        await super().shutdown(sockets)
        await asyncio.to_thread(self.engine.stop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains the server, the second one ends it at once."""
        del sig, frame
        self.stop()

    def stop(self) -> None:
        """Stop the server as a signal does. Any thread may call this."""
        if self._loop is None:
            self.should_exit = True
        else:
            # A signal handler may run anywhere in the event loop's code.
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self.admission.draining = True
        if self._end is None:
            if texts := len(self.admission.works):
                wait = f"{texts} running texts may end within {self.options.shutdown_timeout:g} s; another signal ends them at once"
                print(f"{self.url}: stopping: {wait}", file=sys.stderr, flush=True)
            self._end = self._loop.create_task(self._drain_and_exit())
        else:
            self._abort()

    async def _drain_and_exit(self) -> None:
        if self.engine.state == "ready":
            await self._wait(self.options.shutdown_timeout)
            self._abort()
            await self._wait(_FLUSH)
        self.should_exit = True

    async def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.admission.works and time.monotonic() < end:
            await asyncio.sleep(_POLL)

    def _abort(self) -> None:
        for work in list(self.admission.works):
            work.cancel("shutdown")

    def _changed(self) -> None:
        """Report that the models are loaded, or exit because they cannot be."""
        if self.engine.state == "failed":
            self._drain()
            return
        names = ", ".join(self.engine.models)
        seconds = time.monotonic() - self._begun
        print(f"{self.url} serves {names} (ready after {seconds:.1f} s)", file=sys.stderr, flush=True)


def _waits_for_head(connection: Any) -> bool:
    """Return whether a connection of uvicorn has sent no request yet, or a part of its next head. Between requests, it has a timer."""
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=2048)
    except OSError as error:
        raise PlamoError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): give a free port with --port, and an address of this machine "
            "with --host"
        ) from None
