"""What HTTP costs: tokens/s of 64 streams through the server, beside the same requests given to the scheduler in the process.

    python experiments/serving/overhead.py --output experiments/serving/overhead.json

The model is the one of `speed.py`. Both ways take turns in one process, on engines of 64 slots. The clients are another process that sends
64 requests at once and reads the streams, on the same cores. `--profile` prints where the event loop's thread spends its time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import selectors
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

from speed import VOCABULARY, generator_of, model, prompt, spread

PROMPT, NEW_TOKENS, LENGTH = 16, 128, 256


def main() -> None:
    """Measure, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each way")
    parser.add_argument("--output", type=Path, help="write the figures here")
    parser.add_argument("--profile", action="store_true", help="profile the event loop instead")
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        run_clients(options.clients)
        return
    rates, processor = measure(options.streams, options.pairs, options.profile)
    overhead = [100 * (1 - a / b) for a, b in zip(rates["http"], rates["engine"], strict=True)]
    results = {
        "tokens_per_second": {name: spread(some) for name, some in rates.items()},
        "overhead_percent": spread(overhead),
        "event_loop_microseconds_per_token": round(processor, 1),
        "streams": options.streams,
        "tokens": NEW_TOKENS,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in ("jax", "starlette", "uvicorn", "httptools")},
        "python": platform.python_version(),
    }
    print(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(streams: int, pairs: int, profile: bool) -> tuple[dict[str, list[float]], float]:
    """Return tokens/s of each pair, and the processor time of the event loop's thread per token in microseconds."""
    from plamo2_jax.cli.allocator import keep_freed_memory
    from plamo2_jax.serve.config import ServeConfig
    from plamo2_jax.serve.opening import serve_generator
    from plamo2_jax.serve.server import Server

    keep_freed_memory()
    generator = generator_of(*model())
    config = ServeConfig(port=0, slots=streams, max_length=LENGTH, prefill_size=512, prefix_cache=0)

    def load():
        return [serve_generator(generator, None, config, name="m", fingerprint="")]

    (alone,) = load()
    server = Server(load, config)
    profiler = cProfile.Profile()

    def serve() -> None:
        if profile:
            profiler.runcall(server.serve_forever)
        else:
            server.serve_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    while server.engine.state == "starting":
        time.sleep(0.1)
    clock = time.pthread_getcpuclockid(thread.ident)
    command = [sys.executable, __file__, "--clients", str(server.socket.getsockname()[1]), "--streams", str(streams)]
    rates: dict[str, list[float]] = {"http": [], "engine": []}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        begun = time.clock_gettime(clock)
        for pair in range(pairs + 1):
            ways = {"http": lambda: through_http(clients), "engine": lambda: in_process(alone.scheduler, streams)}
            for name in list(ways)[:: 1 if pair % 2 else -1]:
                rate = streams * NEW_TOKENS / ways[name]()
                if pair:  # The first pair warms up.
                    rates[name].append(rate)
        clients.stdin.close()
        seconds = time.clock_gettime(clock) - begun
    server.stop()
    thread.join()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    return rates, 1e6 * seconds / ((pairs + 1) * streams * NEW_TOKENS)


def in_process(scheduler, streams: int) -> float:
    """Return the seconds in which the scheduler answers all requests."""
    import numpy as np

    from plamo2_jax.engine.request import Request
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig

    begun = time.perf_counter()
    for number in range(streams):
        ids = np.array(prompt(PROMPT, number), np.int32)
        scheduler.submit([Request(ids, SamplingConfig(), StopConfig(NEW_TOKENS, NEW_TOKENS), (), number, 0)])
    while scheduler.busy:
        scheduler.run_round()
    return time.perf_counter() - begun


def through_http(clients: subprocess.Popen) -> float:
    """Return the seconds in which the clients get all answers."""
    print(file=clients.stdin, flush=True)
    return float(clients.stdout.readline())


def run_clients(port: int) -> None:
    """For each line on standard input, send all requests at once, and print the seconds until all streams have ended."""
    streams = int(sys.argv[sys.argv.index("--streams") + 1])
    for _ in sys.stdin:
        selector, answers = selectors.DefaultSelector(), {}
        begun = time.perf_counter()
        for number in range(streams):
            body = {
                "prompt": prompt(PROMPT, number, VOCABULARY),
                "max_tokens": NEW_TOKENS,
                "min_tokens": NEW_TOKENS,
                "seed": number,
                "stream": True,
            }
            data = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(head.encode() + b"\r\n" + data)
            selector.register(connection, selectors.EVENT_READ)
            answers[connection] = bytearray()
        while answers:
            for key, _ in selector.select():
                answer = answers[key.fileobj]
                answer += (part := key.fileobj.recv(1 << 16))
                if not part or answer.endswith(b"0\r\n\r\n"):
                    selector.unregister(key.fileobj)
                    assert b"[DONE]" in answer[-100:], answer[-1000:]
                    del answers[key.fileobj]
                    key.fileobj.close()
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
