"""The server's life: health, limits, keys, hostile clients, disconnects, the end."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import jsonschema
import pytest

from plamo2_jax.serve.auth import read_keys
from support.http_server import running


def call(server, path, body=None, headers=(), method=None):
    """Status, headers and parsed body of a request by the standard library."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"Content-Type": "application/json", **dict(headers)}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, found, text = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        status, found, text = error.code, error.headers, error.read()
    return status, found, json.loads(text) if found.get_content_type() == "application/json" else text.decode()


def completion(**fields):
    return {"model": "tiny", "prompt": "ab", "max_tokens": 4, **fields}


def metric(server, name):
    """The sum of a metric over its labels."""
    lines = call(server, "/metrics")[2].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def eventually(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_the_plain_endpoints(server, tokenizer):
    assert call(server, "/health")[::2] == (200, {"status": "ready"})
    (model,) = call(server, "/v1/models")[2]["data"]
    assert (model["id"], model["max_model_len"], model["object"]) == ("tiny", 256, "model")
    assert call(server, "/v1/models/tiny")[2] == model
    assert call(server, "/v1/models/other")[0] == 404
    text = "吾輩は<|plamo:eos|>"
    ids = call(server, "/tokenize", {"prompt": text})[2]["tokens"]
    assert ids == tokenizer.encode(text, bos=True).tolist()
    assert call(server, "/tokenize", {"prompt": text, "add_special_tokens": False})[2]["tokens"] == ids[1:]
    assert call(server, "/detokenize", {"tokens": ids[1:]})[2] == {"prompt": text}
    info = call(server, "/tokenizer_info")[2]
    for name in ("bos_token", "eos_token", "pad_token"):
        # lm-eval takes the first id of an encoded special token.
        assert call(server, "/tokenize", {"prompt": info[name], "add_special_tokens": False})[2]["tokens"] == [
            tokenizer.id_of(info[name])
        ]
    assert "plamo:op" in info["chat_template"]
    messages = [{"role": "user", "content": "ab"}]
    chat = call(server, "/tokenize", {"messages": messages})[2]["tokens"]
    assert chat[0] == tokenizer.bos_id
    assert chat[1] == tokenizer.op_id


@pytest.mark.parametrize(
    ("path", "body", "headers", "method", "status"),
    [
        ("/v1/completions", b"{", {}, None, 400),
        ("/v1/completions", b"[1]", {}, None, 400),
        ("/v1/completions", b'{"prompt": NaN}', {}, None, 400),
        ("/v1/completions", b'{"prompt": "\\ud800"}', {}, None, 400),
        ("/v1/completions", b"[" * 100_000, {}, None, 400),
        ("/v1/completions", b'{"model": "tiny", "model": "tiny"}', {}, None, 400),
        ("/v1/completions", b"{}", {"Content-Type": "text/plain"}, None, 415),
        ("/v1/completions", b" " * (2 << 20), {}, None, 413),
        ("/v1/completions", None, {}, "GET", 405),
        ("/nothing", None, {}, "GET", 404),
        ("/detokenize", {"tokens": [-1]}, {}, None, 400),
        ("/tokenize", {}, {}, None, 400),
        ("/v1/completions", {"model": "tiny", "prompt": "a" * 500_000}, {}, None, 400),
    ],
)
def test_bad_requests_get_an_error_in_openai_s_form(small, path, body, headers, method, status):
    found, response_headers, answer = call(small, path, body, headers, method)
    assert found == status
    assert response_headers.get_content_type() == "application/json"
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert call(small, "/v1/completions", completion())[0] == 200


@pytest.fixture(scope="module")
def small(generator):
    """A server with tight limits."""
    with running(
        generator, slots=2, max_waiting=2, max_body=1, max_tokens=600, client_timeout=1.0, max_connections=64
    ) as server:
        yield server


def test_too_much_is_refused_before_any_work(small):
    status, _, answer = call(small, "/v1/completions", completion(n=5))
    assert (status, answer["error"]["param"]) == (400, "n")
    status, _, answer = call(small, "/v1/completions", completion(n=4, max_tokens=200))
    assert (status, answer["error"]["param"]) == (400, "max_tokens")
    # Four texts fill slots and queue; another one has to wait.
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        long = completion(max_tokens=150, n=2, ignore_eos=True)
        first = [pool.submit(call, small, "/v1/completions", long) for _ in range(2)]
        assert eventually(lambda: small.admission.jobs == 4)
        status, headers, answer = call(small, "/v1/completions", completion())
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["Retry-After"]) >= 1
        assert [each.result()[0] for each in first] == [200, 200]
    assert small.admission.jobs == 0
    assert metric(small, "plamo2_refused_requests_total") >= 3


def test_request_heads_that_do_not_arrive_are_dropped(small):
    """A client with 64 of them would lock out everybody."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(small.socket.getsockname()[:2])) for _ in range(3)]
        slow[1].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        # One whole request, and a part of the next one.
        slow[2].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HTTP/1.1\r\n")
        for connection in slow:
            connection.settimeout(20)
            while connection.recv(4096):
                pass
    assert call(small, "/health")[0] == 200


def test_keys(generator, tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("# comment\nfirst-key\n\nsecond-key\n")
    monkeypatch.setenv("PLAMO2_API_KEY", "third-key")
    keys = read_keys(path)
    assert keys == (b"first-key", b"second-key", b"third-key")
    with running(generator, keys=keys) as server:
        assert call(server, "/health")[0] == 200
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer first"},
            {"Authorization": "first-key"},
        ):
            for path in ("/v1/models", "/metrics", "/tokenizer_info", "/nothing"):
                status, found, answer = call(server, path, headers=headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert found["WWW-Authenticate"] == "Bearer"
        for key in keys:
            assert call(server, "/v1/models", headers={"Authorization": f"Bearer {key.decode()}"})[0] == 200


def test_names_of_others_do_not_reach_a_local_server(generator):
    """A site could resolve its own name to 127.0.0.1 (DNS rebinding)."""
    with running(generator, warm_up=False, allowed_hosts=("Tunnel.example",)) as server:
        for host, status in (("evil.example", 403), ("localhost:99", 200), ("[::1]:99", 200), ("tunnel.example", 200)):
            assert call(server, "/v1/models", headers={"Host": host})[0] == status


def test_answers_are_as_the_document_says(server):
    document = call(server, "/openapi.json")[2]

    def validate(answer, name):
        jsonschema.validate(answer, {**document, "$ref": f"#/components/schemas/{name}"})

    jsonschema.Draft202012Validator.check_schema(document["components"]["schemas"])
    for path, name in (("/v1/models", "Models"), ("/v1/models/tiny", "Model"), ("/health", "Health")):
        validate(call(server, path)[2], name)
    validate(call(server, "/tokenizer_info")[2], "TokenizerInfo")
    validate(call(server, "/tokenize", {"prompt": "ab"})[2], "Tokens")
    validate(call(server, "/detokenize", {"tokens": [7]})[2], "Text")
    chat = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    for path, body, request, answer in (
        ("/v1/completions", completion(echo=True, logprobs=1), "CompletionRequest", "Completion"),
        ("/v1/chat/completions", chat, "ChatRequest", "Chat"),
    ):
        validate(body, request)
        validate(call(server, path, body)[2], answer)
        validate(call(server, path, {**body, "n": 0})[2], "Error")
        with pytest.raises(jsonschema.ValidationError):
            validate({**body, "n": 0}, request)


def connect(server):
    host, port = server.socket.getsockname()[:2]
    return socket.create_connection((host, port), timeout=60)


def post(body, length=None):
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {length or len(data)}\r\n\r\n"
    return head.encode() + data


def test_a_client_that_leaves_frees_its_slots(server):
    """Generation runs on after the client left (vllm#32439, textgen#4521), above all where nothing is streamed."""
    for stream in (True, False):
        before = metric(server, "plamo2_samples_total")
        with connect(server) as leaving:
            leaving.sendall(post(completion(prompt="ab", max_tokens=240, n=3, stream=stream, ignore_eos=True)))
            assert eventually(lambda: server.admission.jobs == 3)
        assert eventually(lambda: server.admission.jobs == 0)
        assert eventually(lambda: metric(server, "plamo2_running") == 0)
        assert metric(server, "plamo2_samples_total") == before + 3
    lines = call(server, "/metrics")[2]
    assert 'reason="disconnect"' in lines


def test_a_client_that_sends_too_slowly_is_dropped(small):
    with connect(small) as slow:
        slow.sendall(post(completion(), length=500))
        assert b"408" in slow.recv(4096)
    assert call(small, "/v1/completions", completion())[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff garbage\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 300_000,
    ],
)
def test_bytes_that_are_not_http_harm_nobody(small, data):
    with connect(small) as hostile:
        try:
            hostile.sendall(data)
            hostile.shutdown(socket.SHUT_WR)
            while hostile.recv(65536):
                pass
        except OSError:
            pass
    assert call(small, "/health")[0] == 200


def test_many_streams_at_once_are_each_their_own(server, client):
    """Concurrent requests crash or mix (llama.cpp#27537, sglang#39342)."""

    def ask(seed):
        return (
            client.completions.create(model="tiny", prompt="ab" * (seed % 5 + 1), max_tokens=12, seed=seed)
            .choices[0]
            .text
        )

    expected = [ask(seed) for seed in range(24)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == expected


def test_nothing_is_compiled_after_the_warm_up(server, client):
    """Also for sampling settings, lengths, echo, grammars of the prompt's cut, and the prefix cache."""
    for length in (1, 15, 16, 17, 33, 70):
        for extra in ({}, {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}):
            client.completions.create(
                model="tiny", prompt=[5] * length, max_tokens=3, echo=True, logprobs=length % 3, extra_body=extra
            )
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "猫" * 40}], max_tokens=3, n=2)
    assert server.engine.compilations == 0
    assert metric(server, "plamo2_compilations_after_warm_up_total") == 0


def test_compilations_are_counted(generator):
    """The count of the test above is no constant."""
    # No other test of this process may have compiled it.
    with running(generator, warm_up=False, slots=7) as server:
        call(server, "/v1/completions", completion())
        assert metric(server, "plamo2_compilations_after_warm_up_total") > 0


def test_metrics_count_what_happened(generator):
    with running(generator) as server:
        for _ in range(2):
            assert (
                call(server, "/v1/completions", completion(prompt="ab" * 30, n=2, max_tokens=3, ignore_eos=True))[0]
                == 200
            )
        assert metric(server, "plamo2_samples_total") == 4
        assert metric(server, "plamo2_generated_tokens_total") == 12
        # Both samples of a request share one prompt.
        answer = call(server, "/v1/completions", completion(prompt="ab" * 30, max_tokens=1))[2]
        assert metric(server, "plamo2_prompt_tokens_total") == 3 * answer["usage"]["prompt_tokens"]
        assert metric(server, "plamo2_cached_prompt_tokens_total") > 0
        assert metric(server, "plamo2_time_to_first_token_seconds_count") == 5
        assert metric(server, "plamo2_inter_token_seconds_count") == 4
        assert metric(server, "plamo2_slots") == 4
        assert metric(server, "plamo2_prefix_cache_bytes") > 0


def test_a_deadline_ends_a_text_with_a_reason(generator):
    with running(generator, request_timeout=0.05) as server:
        _, _, answer = call(server, "/v1/completions", completion(max_tokens=250, ignore_eos=True, n=4))
        assert {(each["finish_reason"], each["stop_reason"]) for each in answer["choices"]} == {("abort", "deadline")}


@pytest.mark.parametrize("patience", [120.0, 0.0])
def test_a_signal_lets_texts_end_or_aborts_them_with_a_reason(generator, patience):
    """SIGTERM kills streams (vllm#24885, #34730)."""
    with running(generator, shutdown_timeout=patience) as server:
        results = []
        body = completion(max_tokens=200, ignore_eos=True, n=2)

        def ask(stream):
            status, _, answer = call(server, "/v1/completions", {**body, "stream": stream})
            if stream:
                assert answer.endswith("data: [DONE]\n\n")
                events = [json.loads(line[6:]) for line in answer.split("\n\n")[:-2]]
                reasons = [each["choices"][0]["finish_reason"] for each in events]
            else:
                reasons = [each["finish_reason"] for each in answer["choices"]]
            results.append((status, [reason for reason in reasons if reason]))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False, True)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: server.admission.jobs == 6)
        server.stop()
        if patience:
            assert eventually(lambda: server.admission.draining)
            assert call(server, "/health")[::2] == (503, {"status": "draining"})
            status, headers, _ = call(server, "/v1/completions", completion())
            assert (status, headers["Retry-After"]) == (503, "10")
        for thread in threads:
            thread.join(120)
        assert len(results) == 3
        expected = "length" if patience else "abort"
        for status, reasons in results:
            assert status == 200
            assert len(reasons) == 2
            assert set(reasons) <= {expected, "length"}
        assert patience or any("abort" in reasons for _, reasons in results)


def test_while_the_model_loads_the_server_says_so(generator):
    gate = threading.Event()

    def load():
        gate.wait(120)
        raise ValueError("no such model")

    with running(generator, load=load, wait=False) as server:
        assert eventually(lambda: server.started)
        assert call(server, "/health")[::2] == (503, {"status": "starting"})
        status, headers, _ = call(server, "/v1/completions", completion())
        assert (status, "Retry-After" in headers) == (503, True)
        gate.set()
        assert eventually(lambda: server.should_exit)
    assert "no such model" in str(server.engine.error)


def test_a_failed_engine_answers_with_errors(generator, monkeypatch):
    with running(generator) as server:
        scheduler = server.engine.models["tiny"].scheduler
        monkeypatch.setattr(scheduler, "run_round", lambda: 1 / 0)
        status, _, answer = call(server, "/v1/completions", completion())
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert eventually(lambda: call(server, "/health")[0] == 503) or server.should_exit
