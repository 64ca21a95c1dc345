"""Crowds, clients that leave and signals: whatever happens, every completed answer of `plamo2 serve` equals the same request alone.

Three parts, on a tiny model with random parameters, over real HTTP:

1. 1,000 requests by 64 clients, with random prompts, lengths, seeds and sampling settings, streamed or not; a third of the clients leaves.
2. 1,000 clients that leave: how long until all slots are free again.
3. 100 servers that are stopped under load as by SIGTERM, with and without time to finish.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import resource
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from plamo2_jax.config import preset
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.opening import serve_generator
from plamo2_jax.serve.server import Server
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

SLOTS, LENGTH, SIZE = 8, 384, 32
HEADERS = {"Content-Type": "application/json"}


def make_model() -> tuple[Plamo2, dict, Tokenizer]:
    """A hybrid model of two layers over bytes, and its parameters."""
    rows = [[UNK, 0.0, "UNKNOWN"], *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD))]
    rows += [[f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)]
    rows += [[chr(code), -8.0, "NORMAL"] for code in range(32, 127)]
    tokenizer = Tokenizer.from_rows(rows)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "attention_window_size": 24}
    model = Plamo2(preset("tiny", vocab_size=tokenizer.vocab_size, **sizes))
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return model, {**params, "embedding": 10 * params["embedding"]}, tokenizer


@contextlib.contextmanager
def running(generator: Generator, **options):
    """A server in a thread."""
    config = ServeConfig(port=0, slots=SLOTS, max_length=LENGTH, prefill_size=SIZE, max_waiting=4096, **options)
    cache = PrefixCache(1 << 26)
    server = Server(
        lambda: [serve_generator(generator, None, config, name="m", fingerprint="", prefix_cache=cache)], config
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    while server.engine.state == "starting":
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def make_body(rng: random.Random) -> dict:
    """A request of random settings."""
    shared = "To be, or not to be, that is the question: "
    prompt = shared[: rng.randrange(len(shared))] * rng.randrange(1, 4) + str(rng.randrange(50))
    body = {"prompt": prompt, "max_tokens": rng.randrange(1, 60), "seed": rng.randrange(1000), "logprobs": 0}
    if rng.random() < 0.5:
        body |= {
            "temperature": rng.choice([0, 0.7, 1.3]),
            "top_k": rng.choice([0, 5, 40]),
            "top_p": rng.choice([0.8, 1]),
        }
    if rng.random() < 0.2:
        body |= {"stop": [rng.choice("aeiou")], "repetition_penalty": 1.2}
    return body | {"stream": rng.random() < 0.5}


def connect(server: Server) -> http.client.HTTPConnection:
    """Open a connection."""
    host, port = server.socket.getsockname()[:2]
    return http.client.HTTPConnection(host, port, timeout=120)


def answer_of(response: http.client.HTTPResponse, stream: bool) -> tuple[str, list[float], str | None]:
    """Text, log-probabilities and finish reason of a whole response."""
    data = response.read()
    assert response.status == 200, data
    if not stream:
        (choice,) = json.loads(data)["choices"]
        return choice["text"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], "a stream was cut"
    text, logprobs, reason = "", [], None
    for event in events[:-2]:
        (choice,) = json.loads(event.removeprefix("data: "))["choices"]
        text += choice["text"]
        logprobs += choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
        reason = choice["finish_reason"] or reason
    return text, logprobs, reason


def ask(server: Server, body: dict, leave_after: float | None = None) -> tuple[str, list[float], str | None] | None:
    """Return the answer to a request; None if the client leaves before."""
    connection = connect(server)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
        if leave_after is not None:
            time.sleep(leave_after)
            return None
        return answer_of(connection.getresponse(), body["stream"])
    finally:
        connection.close()


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def wait_until_free(server: Server) -> float:
    """Wait until no work is left; return the seconds."""
    begun = time.monotonic()
    while server.admission.jobs or server.engine.models["m"].scheduler.busy:
        time.sleep(0.001)
        assert time.monotonic() < begun + 30, "slots stay taken"
    return time.monotonic() - begun


def crowd(generator: Generator, count: int) -> dict:
    """Part 1."""
    rng = random.Random(0)
    bodies = [make_body(rng) for _ in range(count)]
    leaving = [rng.random() * 0.3 if rng.random() < 1 / 3 else None for _ in bodies]
    with running(generator) as server, ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda body: ask(server, body), bodies[:64]))
        cache = server.engine.models["m"].scheduler.engine.prefix_cache
        before, kept = megabytes(), cache.bytes
        answers = list(pool.map(lambda pair: ask(server, *pair), zip(bodies, leaving, strict=True)))
        wait_until_free(server)
        grown, kept = megabytes() - before, (cache.bytes - kept) / 1e6
        faults = server.engine.compilations
    with running(generator) as server:
        alone = [None if answer is None else ask(server, body) for body, answer in zip(bodies, answers, strict=True)]
    completed = sum(answer is not None for answer in answers)
    return {
        "requests": count,
        "completed": completed,
        "equal_to_the_request_alone": sum(
            answer is not None and answer == other for answer, other in zip(answers, alone, strict=True)
        ),
        "compilations": faults,
        "memory_growth_mb": round(grown, 1),
        "prefix_cache_growth_mb": round(kept, 1),
    }


def leavers(generator: Generator, count: int) -> dict:
    """Part 2."""
    rng, seconds = random.Random(1), []
    with running(generator) as server:
        for _ in range(count // 20):
            bodies = [{**make_body(rng), "max_tokens": 180, "ignore_eos": True, "stop": None} for _ in range(20)]
            with ThreadPoolExecutor(20) as pool:
                list(pool.map(lambda body: ask(server, body, rng.random() * 0.1), bodies))
            seconds.append(wait_until_free(server))
    return {"clients": count, "median_seconds_until_free": statistics.median(seconds), "largest": max(seconds)}


def signals(generator: Generator, count: int) -> dict:
    """Part 3."""
    rng, reasons, cut = random.Random(2), {}, 0
    for number in range(count):
        with (
            running(generator, shutdown_timeout=rng.choice([0.0, 0.05, 10.0])) as server,
            ThreadPoolExecutor(16) as pool,
        ):
            bodies = [{**make_body(rng), "max_tokens": rng.randrange(1, 180), "stop": None} for _ in range(16)]

            def one(body: dict, server: Server = server) -> str | None:
                try:
                    return ask(server, body)[2]
                except (AssertionError, http.client.HTTPException, OSError) as error:
                    return f"cut: {error!r}"[:300]

            asked = [pool.submit(one, body) for body in bodies]
            # Short answers may be done before the last request is accepted.
            while server.admission.jobs + sum(each.done() for each in asked) < len(asked):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.2)
            server.stop()
            if number % 10 == 0:
                server.stop()
            for each in asked:
                reason = each.result()
                reasons[reason] = reasons.get(reason, 0) + 1
                cut += reason is None or reason.startswith("cut")
    return {"signals": count, "answers": sum(reasons.values()), "without_a_finish_reason": cut, "reasons": reasons}


def main() -> None:
    """Run all parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--leavers", type=int, default=1000)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("serve.json"))
    options = parser.parse_args()
    generator = Generator(*make_model(), prefill_size=SIZE)
    results = {}
    for name, part, count in (
        ("crowd", crowd, options.requests),
        ("leavers", leavers, options.leavers),
        ("signals", signals, options.signals),
    ):
        begun = time.monotonic()
        results[name] = {**part(generator, count), "seconds": round(time.monotonic() - begun, 1)}
        print(name, json.dumps(results[name]), flush=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    crowded, stopped = results["crowd"], results["signals"]
    assert crowded["equal_to_the_request_alone"] == crowded["completed"]
    assert not crowded["compilations"]
    assert not stopped["without_a_finish_reason"]


if __name__ == "__main__":
    main()
