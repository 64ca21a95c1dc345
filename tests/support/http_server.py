"""Real servers of a tiny model, each in a thread of its own on a free port."""

import contextlib
import threading
import time

from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.opening import serve_generator
from plamo2_jax.serve.server import Server
from plamo2_jax.tokenizer.chat_template import ChatTemplate

LENGTH = 256


@contextlib.contextmanager
def running(generator, *, keys=(), template="chat", prefix_cache=True, load=None, wait=True, **options):
    """A server in a thread; at the end it is stopped as by a signal."""
    config = ServeConfig(
        port=0, **{"slots": 4, "max_length": LENGTH, "prefill_size": 16, "shutdown_timeout": 10.0, **options}
    )

    def load_tiny():
        cache = PrefixCache(1 << 28) if prefix_cache else None
        found = ChatTemplate.load(template) if template else None
        return [serve_generator(generator, found, config, name="tiny", fingerprint="f", prefix_cache=cache)]

    server = Server(load or load_tiny, config, keys)

    def serve():
        # The error of a failed engine is the server's attribute.
        with contextlib.suppress(Exception):
            server.serve_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    while wait and server.engine.state == "starting" and thread.is_alive():
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.stop()
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
