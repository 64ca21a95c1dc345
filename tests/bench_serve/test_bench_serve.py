"""`plamo2 bench-serve`: what it sends, measures and writes, against a server whose times are known."""

import asyncio
import dataclasses
import json
import socket
import threading

import numpy as np
import pytest

from plamo2_jax.bench_serve.client import Client, Record
from plamo2_jax.bench_serve.config import BenchConfig
from plamo2_jax.bench_serve.lengths import Lengths
from plamo2_jax.bench_serve.load import arrivals
from plamo2_jax.bench_serve.prompts import PromptMaker
from plamo2_jax.bench_serve.statistics import summarize
from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from starlette.responses import JSONResponse

from support.scripted_server import scripted_server


@pytest.fixture
def server():
    with scripted_server() as server:
        yield server


def bench(server, folder, *arguments):
    """Run the verb; return the exit status and the written results."""
    status = main(["bench-serve", server.url, "--output", str(folder), *map(str, arguments)])
    return status, json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_an_open_loop_sends_at_its_own_times_and_measures_the_servers(server, tmp_path, capsys):
    # First text at once, then nine more, 20 ms each.
    server.answer = ["a", *(x for _ in range(9) for x in (0.02, "b"))]
    options = ["--rate", 40, "--requests", 30, "--slo-ttft", 5000, "--slo-itl", 1000, "--temperature", 0]
    status, found = bench(server, tmp_path / "out", *options)
    assert status == 0
    summary, requests = found["summary"], found["requests"]
    assert (summary["completed"], summary["requests"], summary["errors"]) == (30, 30, {})
    assert summary["output_tokens"] == 300
    assert summary["prompt_tokens"] == 30 * 7
    assert summary["cached_tokens"] == 30 * 4
    assert summary["goodput"]["fraction"] == 1
    assert summary["finish_reasons"] == {"stop": 30}
    assert 20 <= summary["tpot_ms"]["p50"] < 100
    assert summary["e2e_ms"]["p50"] >= 180
    assert summary["ttft_ms"]["p50"] < summary["e2e_ms"]["p50"] - 170
    # Arrivals do not wait for answers: they are those of the seed.
    config = BenchConfig(rate=40, requests=30)
    assert [row["scheduled"] for row in requests] == pytest.approx(arrivals(config), abs=1e-5)
    assert all(row["sent"] - row["scheduled"] < 1 for row in requests)
    bodies = server.bodies[2:]  # The first two are the warm-up.
    assert sorted(body["seed"] for body in bodies) == list(range(30))
    assert len({body["messages"][0]["content"] for body in bodies}) == 30
    assert {body["max_tokens"] for body in bodies} == {128}
    assert "ignore_eos" not in bodies[0]
    assert (tmp_path / "out" / "load.png").read_bytes().startswith(b"\x89PNG")
    assert "time to first token" in capsys.readouterr().out


def test_a_closed_loop_keeps_its_concurrency(server, tmp_path):
    server.answer = ["a", 0.05, "b"]
    status, found = bench(server, tmp_path / "out", "--concurrency", 3, "--requests", 12, "--ignore-eos")
    assert status == 0
    assert found["summary"]["peak_in_flight"] == 3
    assert found["summary"]["seconds"] >= 4 * 0.05
    assert server.bodies[-1]["ignore_eos"] is True


def test_goodput_counts_slow_requests_and_errors_out(server, tmp_path):
    server.answer = ["a", 0.15, "b"]
    _, found = bench(server, tmp_path / "out", "--requests", 2, "--slo-itl", 100)
    assert found["summary"]["goodput"]["fraction"] == 0
    server.answer = [0.15, "a"]
    _, found = bench(server, tmp_path / "later", "--requests", 2, "--slo-ttft", 100)
    assert found["summary"]["goodput"] == {
        "slo_ttft_ms": 100,
        "slo_itl_ms": None,
        "fraction": 0,
        "requests_per_s": 0,
    }


def test_errors_are_counted_by_kind(server, tmp_path, capsys):
    server.answer = ["a"]
    server.refusals = [
        None,
        None,
        JSONResponse({"error": {"message": "busy"}}, 429),
        JSONResponse({"error": {"message": "busy"}}, 429),
        JSONResponse("?", 500),
    ]
    status, found = bench(server, tmp_path / "out", "--requests", 5)
    assert status == 0
    assert found["summary"]["errors"] == {"HTTP 429": 2, "HTTP 500": 1}
    assert (found["summary"]["completed"], found["requests"][0]["detail"]) == (2, "busy")
    assert "first error (HTTP 429): busy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (["a", 0.1, None], "malformed response"),
        (["a", {"error": {"message": "out of memory"}}], "error in the stream"),
        (["a", {"choices": 3}], "malformed response"),
        (["a", 30, "b"], "timeout"),
    ],
)
def test_a_stream_that_goes_wrong_is_an_error(server, tmp_path, answer, kind):
    server.answer = answer
    options = ["--requests", 2, "--concurrency", 2, "--warmup", 0, "--timeout", 1.5]
    status, found = bench(server, tmp_path / "out", *options)
    assert status == 1
    assert found["summary"]["errors"] == {kind: 2}
    assert found["summary"]["ttft_ms"] is None


def test_odd_figures_of_a_server_do_not_end_the_measurement(server, tmp_path):
    """A count that is no number is unknown, and a finish reason that is no text is none."""
    usage = {"prompt_tokens": "3", "completion_tokens": 2.5, "prompt_tokens_details": {"cached_tokens": True}}
    odd = {"choices": [{"delta": {"content": "b"}, "finish_reason": ["stop"]}], "usage": usage}
    server.answer, server.usage = ["a", odd], False
    status, found = bench(server, tmp_path / "out", "--requests", 2)
    assert status == 0
    assert (found["summary"]["tokens_counted_by"], found["summary"]["prompt_tokens"]) == ("chunks", 0)


def test_reasoning_counts_as_text(server, tmp_path):
    """Usage counts its tokens, so its chunks must count, too."""
    server.answer, server.usage = [{"choices": [{"delta": {"reasoning_content": "hm"}}]}] * 3 + ["a"], False
    _, found = bench(server, tmp_path / "out", "--requests", 2)
    assert found["summary"]["output_tokens"] == 8


def test_a_stream_without_usage_is_counted_by_chunks(server, tmp_path):
    server.answer, server.usage = ["a", "b", "c"], False
    _, found = bench(server, tmp_path / "out", "--requests", 2)
    assert found["summary"]["tokens_counted_by"] == "chunks"
    assert found["summary"]["output_tokens"] == 6


def test_no_request_is_sent_after_the_duration(server, tmp_path):
    server.answer = ["a"]
    _, found = bench(server, tmp_path / "out", "--rate", 20, "--requests", 1000, "--duration", 0.5)
    assert 1 <= found["summary"]["requests"] < 40
    assert max(row["scheduled"] for row in found["requests"]) <= 0.5


def raw_server(content):
    """Serve one connection with fixed bytes, and end it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = listener.accept()
        with connection, listener:
            connection.recv(1 << 16)
            connection.sendall(content)

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


EVENT = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("content", "error"),
    [
        # An end without [DONE], as some servers write it, with and without a length.
        (b"HTTP/1.1 200 OK\r\n\r\n" + EVENT, None),
        (b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EVENT) + EVENT, None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + EVENT, None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT), None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + EVENT, "malformed response"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "malformed response"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + EVENT.replace(b'"stop"', b"null"), "cut"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (b"SSH-2.0-OpenSSH\r\n", "malformed response"),
        (b"", "malformed response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "malformed response"),
    ],
)
def test_responses_of_other_servers(content, error):
    client, record = Client(raw_server(content), "m", None, BenchConfig(timeout=10)), Record(0, 4)
    asyncio.run(client.send(record, "Hi"))
    assert record.error == error, record.detail
    if error in (None, "cut"):
        assert len(record.arrivals) == 1


def test_a_server_that_is_not_there_is_one_sentence(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["bench-serve", f"http://127.0.0.1:{port}", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "the models of the server cannot be listed (connection)" in capsys.readouterr().err
    assert main([*command, "--model", "m"]) == 2
    assert "the warm-up request failed (connection)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", Lengths("fixed", 12)),
        ("uniform:3:9", Lengths("uniform", 3, 9)),
        ("lognormal:100:0.5", Lengths("lognormal", 100, 0.5)),
    ],
)
def test_length_distributions(text, expected):
    lengths = Lengths.parse(text, "--prompt-tokens")
    assert lengths == expected
    drawn = np.array(lengths.draw(4000, np.random.default_rng(0)))
    if lengths.kind == "fixed":
        assert set(drawn) == {12}
    elif lengths.kind == "uniform":
        assert set(drawn) == set(range(3, 10))
    else:
        assert np.median(drawn) == pytest.approx(100, rel=0.05)
        assert np.log(drawn).std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    "text", ["", "0", "1.5", "-3", "uniform:9:3", "uniform:3", "lognormal:100", "normal:1:2", "1e9"]
)
def test_odd_distributions_are_refused(text):
    with pytest.raises(PlamoError, match=r"--prompt-tokens .* is not allowed: it must be N, uniform:LOW:HIGH"):
        Lengths.parse(text, "--prompt-tokens")


class Counted(Client):
    """A client whose server has a tokenizer of four characters a token."""

    async def tokenize(self, text):
        return [1000 + ord(text[i]) for i in range(0, len(text), 4)]


def prompts(config, kind=Counted, count=5, length=40):
    async def run():
        maker = PromptMaker(kind("http://127.0.0.1:1/v1", "m", None, config), config)
        await maker.start()
        return maker.unit, [await maker.make(length) for _ in range(count)]

    return asyncio.run(run())


def test_prompts_have_their_lengths_in_the_servers_tokens():
    config = BenchConfig(shared_prefix=30, language="en")
    unit, texts = prompts(config)
    assert unit == "tokens"
    assert len(set(texts)) == 5
    assert all(abs(len(text) / 4 - 70) <= 3 for text in texts)
    assert len({text[: 29 * 4] for text in texts}) == 1
    assert len({text[: 33 * 4] for text in texts}) == 5
    _, ids = prompts(dataclasses.replace(config, endpoint="completions"))
    assert [len(each) for each in ids] == [70] * 5
    assert len({tuple(each[:30]) for each in ids}) == 1
    assert prompts(config) == (unit, texts)
    assert prompts(dataclasses.replace(config, seed=1))[1] != texts


def test_without_a_tokenizer_prompts_have_words():
    unit, texts = prompts(BenchConfig(language="en"), Client)
    assert unit == "words"
    assert all(35 <= len(text.split()) <= 45 for text in texts)


def test_the_wait_before_sending_counts():
    """A load generator that falls behind must not make the server look faster."""
    record = Record(0, 4, scheduled=1.0, sent=3.0, ended=6.0, arrivals=[4.0, 5.0], completion_tokens=3)
    late = Record(1, 4, scheduled=2.0, sent=2.0, ended=2.0, error="not sent")
    summary = summarize([record, late], BenchConfig(slo_ttft=3500, slo_itl=400))
    assert summary["ttft_ms"]["p50"] == 3000
    assert summary["e2e_ms"]["p50"] == 5000
    assert summary["itl_ms"]["p50"] == 1000
    assert summary["tpot_ms"]["p50"] == 500
    assert summary["tokens_per_chunk"] == 1.5
    assert summary["goodput"]["fraction"] == 0
    assert summary["peak_in_flight"] == 1
    assert summarize([record, late], BenchConfig(slo_ttft=3000, slo_itl=500))["goodput"]["fraction"] == 0.5
    assert summarize([], BenchConfig())["requests"] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rate", "1", "--concurrency", "2"], "--rate and --concurrency cannot be combined"),
        (["--rate", "0"], "BenchConfig.rate=0.0 is not allowed"),
        (["--requests", "0"], "BenchConfig.requests=0 is not allowed"),
        (["--slo-itl", "-1"], "BenchConfig.slo_itl=-1.0 is not allowed"),
        (["--output-tokens", "x"], "--output-tokens 'x' is not allowed"),
    ],
)
def test_odd_options_are_refused(options, sentence, tmp_path, capsys):
    assert main(["bench-serve", "http://127.0.0.1:1", "--output", str(tmp_path / "out"), *options]) == 2
    assert sentence in capsys.readouterr().err
