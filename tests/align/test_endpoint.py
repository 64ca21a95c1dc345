"""An endpoint over real HTTP that fails, hangs and talks nonsense before it works."""

import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.judge import JudgeConfig
from plamo2_jax.align.preference_data.sampling import make_preference_data
from plamo2_jax.cli.main import main
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import ChatModelConfig, ChatRequest, ChatResponse, RequestError
from plamo2_jax.models.openai_client import OpenAIClient, row_seed
from plamo2_jax.models.openai_format import EndpointError


def client(server, **fields):
    fields = {"timeout": 5.0, "max_retries": 3, "backoff": 0.01, **fields}
    return OpenAIClient(ChatModelConfig("model", server.url, **fields))


def ask(client, *texts, n=1, **fields):
    settings = {"sampling": SamplingConfig(0.8, top_p=0.9), "stop": StopConfig(50), "seed": 3, "n": n}
    with client:
        return client.chat(
            [ChatRequest(text, [{"role": "user", "content": text}], **settings) for text in texts], **fields
        )


def test_a_request_says_what_is_wanted(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    ((one, two),) = ask(client(server, api_key_env="SOME_KEY"), "猫", n=2)
    assert (one.finish_reason, one.retries, one.usage.completion_tokens) == ("stop", 0, len(one.text))
    assert one.text.startswith("猫への答え")
    assert len(server.requests) == 2
    path, headers, body = server.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert body["model"] == "model"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.8, 0.9, 50)
    assert {body["seed"] for *_, body in server.requests} == {row_seed(3, "猫", sample) for sample in (0, 1)}
    assert "top_k" not in body
    assert isinstance(two, ChatResponse)


def test_every_sampling_setting_reaches_the_server(server):
    sampling = SamplingConfig(0.5, 9, 0.8, 0.1, 1.2, 0.3, -0.4)
    with client(server) as model:
        model.chat([ChatRequest("猫", [{"role": "user", "content": "猫"}], sampling=sampling)])
    *_, body = server.requests[0]
    settings = dataclasses.asdict(sampling)
    assert {name: body[name] for name in settings} == settings


def test_a_missing_key_is_said(server):
    with pytest.raises(ValueError, match="the environment variable NO_SUCH_KEY is empty"):
        client(server, api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    "trouble",
    [
        500,
        503,
        429,
        "cut",
        b"",
        b"not json",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b'{"choices": [{"message": {"content": "useless"}}]}',
    ],
)
def test_what_may_pass_is_tried_again_and_counted(server, trouble):
    server.troubles["猫"] = [trouble, trouble]
    ((reply,),) = ask(client(server), "猫", accept=lambda text: text != "useless")
    assert reply.retries == 2
    assert len(server.requests) == 3


def test_one_that_hangs_is_given_up_and_asked_again(server):
    server.troubles["猫"] = ["hang"]
    start = time.monotonic()
    ((reply,),) = ask(client(server, timeout=0.3), "猫")
    assert reply.retries == 1
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("where", ["head", "body", "error"])
def test_an_answer_that_drips_is_given_up_in_time(server, where):
    server.troubles["猫"] = [f"drip {where}"] * 2
    start = time.monotonic()
    (failure,) = ask(client(server, timeout=0.5, max_retries=0), "猫")
    assert 0.4 < time.monotonic() - start < 20
    assert "no answer in 0.5 s" in failure.reason
    assert failure.reason.startswith("HTTP 400 Bad Request: a") is (where == "error")


def test_all_addresses_of_a_host_share_the_timeout(monkeypatch):
    with contextlib.ExitStack() as stack:
        # Nobody accepts, and a connection waits there for ever: their queues are full.
        places = []
        for _ in range(30):
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
            places.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname()))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        monkeypatch.setenv("no_proxy", "host")
        start = time.monotonic()
        asked = OpenAIClient(ChatModelConfig("model", "http://host:1/v1", timeout=0.6, max_retries=0))
        (failure,) = ask(asked, "猫")
        assert failure.reason.startswith("no answer in 0.6 s")
        assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 100,
        b"HTTP/1.1 99 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b" " * 5000000,
        b"HTTP/1.1 400 " + b"\x1b[31m" * 9000 + b"\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 429 Slow\r\nRetry-After: " + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"message": {"content": ["a"]}}]}',
        b'HTTP/1.1 200 OK\r\n\r\n{"choices": {"0": 1}}',
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100000,
        b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"message": {"content": "a"}}], "usage": []}' + b" " * 9 + b"1",
    ],
)
def test_an_odd_answer_is_one_sentence(server, answer):
    server.troubles["猫"] = [(answer,)]
    (failure,) = ask(client(server, max_retries=0), "猫")
    assert isinstance(failure, RequestError)
    assert failure.reason.isprintable()
    assert len(failure.reason) < 400


@pytest.mark.parametrize(
    ("tokens", "read"), [("7", 7), ("true", None), ("-1", None), ('"7"', None), ("1e3", None), ("9" * 99, None)]
)
def test_a_count_of_tokens_is_a_count_or_unknown(server, tokens, read):
    content = '{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": TOKENS}}'.replace(
        "TOKENS", tokens
    )
    server.troubles["猫"] = [content.encode()]
    ((reply,),) = ask(client(server), "猫")
    assert reply.usage.completion_tokens == read


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "http://",
        "http://a:b/v1",
        "http://a:99999",
        "http://[::1",
        "http://あ/v1",
        "http://a/v1?x=1",
        "http://u:p@a",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=r"ChatModelConfig\.url=.* it must be http://HOST"):
        ChatModelConfig("model", url)


def test_a_key_that_is_none_is_refused_and_not_shown(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very\nsecret")
    with pytest.raises(ValueError, match="the environment variable SOME_KEY is not an API key") as refused:
        client(server, api_key_env="SOME_KEY")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("SOME_KEY", "key\n")
    ask(client(server, api_key_env="SOME_KEY"), "猫")
    assert server.requests[-1][1]["Authorization"] == "Bearer key"


def test_what_does_not_pass_fails_its_question_alone(server):
    server.troubles = {"猫": [500] * 9, "犬": [400]}
    cat, dog, bird = ask(client(server), "猫", "犬", "鳥")
    assert cat == RequestError("HTTP 500 Internal Server Error (4 attempts)", 3)
    assert dog.reason.startswith("HTTP 400 Bad Request")
    assert dog.retries == 0
    assert isinstance(bird[0], ChatResponse)


@pytest.mark.parametrize("trouble", [401, 404, "redirect"])
def test_an_endpoint_that_will_never_answer_ends_it(server, trouble):
    server.troubles["猫"] = [trouble]
    with pytest.raises(EndpointError, match=r"refuses requests for the model 'model': HTTP"):
        ask(client(server), "猫")
    assert len(server.requests) == 1


def test_pauses_grow_and_heed_retry_after(server, monkeypatch):
    pauses = []
    asked = client(server, backoff=1.0, max_retries=4)
    monkeypatch.setattr(asked, "_pause", pauses.append)
    server.troubles["猫"] = [500] * 5
    ask(asked, "猫")
    assert len(pauses) == 4
    assert all(2**i / 2 <= pause <= 2**i for i, pause in enumerate(pauses))


def test_closing_waits_for_no_answer(server):
    server.troubles["猫"] = ["hang"]
    asked = client(server, timeout=60.0)
    threading.Timer(0.3, asked.close).start()
    start = time.monotonic()
    with pytest.raises(CancelledError):
        ask(asked, "猫", "犬")
    assert time.monotonic() - start < 20


@pytest.fixture
def make_config(server, write_lines, tmp_path):
    def make(**fields):
        prompts = write_lines([{"id": name, "prompt": f"{name}とは？"} for name in "猫犬鳥魚"], "prompts.jsonl")
        endpoint = {"url": server.url, "max_retries": 1, "backoff": 0.01, "timeout": 5.0, "concurrency": 3}
        settings = {
            "output": tmp_path / "out",
            "prompts": (prompts,),
            "policy": ChatModelConfig("policy", **endpoint),
            "judge": JudgeConfig("judge", **endpoint),
            "rules": {"language": "ja"},
            "near_prompts": None,
            "heldout_share": 0.0,
        }
        return PreferenceDataConfig(**{**settings, **fields})

    return make


def test_preference_data_from_endpoints(make_config, server, tmp_path):
    server.troubles = {"犬とは？": [500] * 8, "鳥とは？": [b"garbage"]}
    report = make_preference_data(make_config())
    assert list(report["failed"]) == ["犬"]
    assert report["retries"] >= 2
    assert report["prompts"] == 4
    # What failed is tried again, and nothing else is.
    before = len(server.requests)
    again = make_preference_data(make_config())
    assert again["failed"] == {}
    assert all("犬" in body["messages"][-1]["content"] for *_, body in server.requests[before:])
    count = len(server.requests)
    assert make_preference_data(make_config()) == again
    assert len(server.requests) == count
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == again["pairs"] > 0
    for pair in pairs:
        assert len(pair["chosen"][0]["content"]) > len(pair["rejected"][0]["content"])  # as the judge likes it
        assert pair["provenance"]["policy"]["model"] == "policy"
        assert [one["pair"] for one in pair["provenance"]["verdicts"]] == [sorted(pair["provenance"]["samples"])]
    # Without trouble the same comes out.
    server.troubles = {}
    make_preference_data(make_config(output=tmp_path / "calm"))
    for name in ("pairs.jsonl", "heldout.jsonl"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_wrong_key_ends_the_program_in_one_line(make_config, server, tmp_path, capsys):
    prompts = make_config().prompts[0]
    server.troubles = {"とは？": [401] * 99}
    (tmp_path / "c.py").write_text(
        "from pathlib import Path\nfrom plamo2_jax.align.preference_data.config import PreferenceDataConfig\n"
        "from plamo2_jax.models import ChatModelConfig\n"
        f"config = PreferenceDataConfig(Path({str(tmp_path / 'no')!r}), (Path({str(prompts)!r}),), ChatModelConfig('m', {server.url!r}))\n",
        encoding="utf-8",
    )
    assert main(["preference-data", str(tmp_path / "c.py")]) == 2
    assert "refuses requests for the model 'm': HTTP 401" in capsys.readouterr().err
    assert not (tmp_path / "no" / "pairs.jsonl").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_no_answer_and_keeps_what_is_done(make_config, server, tmp_path, sent):
    config = make_config()
    server.troubles["魚とは？"] = ["hang"] * 4
    endpoint = f"url={server.url!r}, timeout=60.0, max_retries=1, backoff=0.01, concurrency=3"
    (tmp_path / "c.py").write_text(
        "from pathlib import Path\nfrom plamo2_jax.align.preference_data.judge import JudgeConfig\n"
        "from plamo2_jax.align.preference_data.config import PreferenceDataConfig\nfrom plamo2_jax.models import ChatModelConfig\n"
        f"config = PreferenceDataConfig(Path('out'), (Path({str(config.prompts[0])!r}),), ChatModelConfig('policy', {endpoint}), "
        f"rules={config.rules!r}, judge=JudgeConfig('judge', {endpoint}), near_prompts=None, heldout_share=0.0)\n",
        encoding="utf-8",
    )
    # A shell's background jobs, and what they start, ignore Ctrl-C.
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = "from plamo2_jax.cli.main import main; sys.exit(main(['preference-data', 'c.py']))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heed}; {run}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out" / "journal.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") == 3):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    while not any("魚" in body["messages"][-1]["content"] for *_, body in list(server.requests)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(sent)
    _, error = process.communicate(timeout=120)
    # The answer would take 30 s, and two attempts are made.
    assert time.monotonic() - start < 30
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert error.rstrip().endswith("plamo2 preference-data: interrupted")
    else:
        assert process.returncode == -sent
    done = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in done if "failed" not in one] == [one["id"] for one in done]
    server.free.set()
    before = len(server.requests)
    assert make_preference_data(config)["failed"] == {}
    assert journal.read_text(encoding="utf-8").count("\n") == 4
    assert all("魚" in body["messages"][-1]["content"] for *_, body in server.requests[before:])
