"""`OpenAIClient.complete` and `score` against a server that runs our own model: both sides must agree."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plamo2_jax import models
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import CompletionRequest, RequestError, ScoreRequest, openai_format
from plamo2_jax.models.openai_client import row_seed
from plamo2_jax.models.openai_format import EndpointError


class Server:
    """`/v1/completions` in the form of OpenAI's older interface, as vLLM and lm-eval know it."""

    def __init__(self, model):
        self.model, self.bodies, self.echoes = model, [], True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                content = json.dumps(outer.answer(body)).encode()
                self.send_response(200 if self.path == "/v1/completions" else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body):
        if body.get("echo"):
            prompts = list(enumerate(body["prompt"]))
            # A server may answer in any order.
            return {"choices": [self.echoed(i, prompt, body) for i, prompt in reversed(prompts)]}
        stop = StopConfig(body["max_tokens"], strings=tuple(body.get("stop", ())))
        sampling = SamplingConfig(body["temperature"], top_p=body["top_p"])
        bos = body.get("add_special_tokens", True)
        [[one]] = self.model.complete([CompletionRequest(body["prompt"], bos, "", sampling, stop, body["seed"])])
        usage = {"prompt_tokens": one.usage.prompt_tokens, "completion_tokens": one.usage.completion_tokens}
        return {"choices": [{"index": 0, "text": one.text, "finish_reason": one.finish_reason}], "usage": usage}

    def echoed(self, index, prompt, body):
        ids = prompt
        if isinstance(prompt, str):
            ids = self.model.tokenizer.encode(prompt, bos=body.get("add_special_tokens", True)).tolist()
        # Each token by itself, so that it is known whether it is the likeliest.
        scores = [self.model.score([ScoreRequest(ids[:i], (ids[i : i + 1],))])[0][0] for i in range(1, len(ids))]
        logprobs = [None, *(one.logprob for one in scores), -1.0]
        top = [None, *({"t": one.logprob if one.is_greedy else 0.0} for one in scores), {"t": -1.0}]
        tokens = [*(self.model.tokenizer.decode([id]) for id in ids), "x"]
        if not self.echoes:
            tokens, logprobs, top = tokens[-1:], logprobs[-1:], top[-1:]
        found = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top}
        return {"index": index, "text": prompt, "logprobs": found, "finish_reason": "length"}


@pytest.fixture
def server(model, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(model)
    yield server
    server.close()


@pytest.fixture
def client(server):
    with models.open(server.url, model="model", concurrency=2, max_retries=0, timeout=60.0) as client:
        yield client


def test_completions_of_texts_and_ids(client, server, model):
    stop = StopConfig(6)
    ids = model.tokenizer.encode("ab", bos=True)
    requests = [
        CompletionRequest("ab", id="one", stop=stop, n=2),
        CompletionRequest(ids, sampling=SamplingConfig(0.0), stop=stop),
        CompletionRequest("ab", bos=False, sampling=SamplingConfig(0.0), stop=stop),
    ]
    (one, two), (greedy,), (bare,) = client.complete(requests)
    seeds = [row_seed(0, "one", sample) for sample in (0, 1)]
    expected = [model.complete([CompletionRequest("ab", stop=stop, seed=seed)])[0][0].text for seed in seeds]
    assert [one.text, two.text] == expected
    assert greedy.text == model.complete(requests[1:2])[0][0].text
    assert bare.usage == model.complete(requests[2:])[0][0].usage
    assert [body.get("add_special_tokens") for body in server.bodies].count(False) == 1
    assert greedy.finish_reason == "length"


@pytest.mark.parametrize("kind", ["texts", "ids"])
def test_scores_agree_with_the_local_engine(client, model, kind):
    requests = [ScoreRequest("大学0g ", ("f1 c2c", "x")), ScoreRequest("東3", ("学", "大"))]
    if kind == "ids":
        encode = model.tokenizer.encode
        requests = [
            ScoreRequest(encode(one.context, bos=True), [encode(text) for text in one.continuations])
            for one in requests
        ]
    for there, here in zip(client.score(requests), model.score(requests), strict=True):
        assert [one.is_greedy for one in there] == [one.is_greedy for one in here]
        for one, other in zip(there, here, strict=True):
            assert one.token_logprobs == pytest.approx(other.token_logprobs, rel=1e-4, abs=1e-5)
            assert math.isclose(one.logprob, other.logprob, rel_tol=1e-4)


def test_a_server_that_does_not_echo_is_refused(client, server):
    server.echoes = False
    for request in (ScoreRequest("ab", ("c",)), ScoreRequest([1, 5], ([7],))):
        with pytest.raises(EndpointError, match="does not return the log-probabilities of a prompt"):
            client.score([request])


def test_a_score_that_cannot_be_is_an_error(client):
    empty, good, ids, mixed = client.score(
        [
            ScoreRequest("", ("b",), bos=False),
            ScoreRequest("", ("b",)),
            ScoreRequest([], ([5, 6],)),
            ScoreRequest("a", ([5, 6],)),
        ]
    )
    assert isinstance(empty, RequestError)
    assert isinstance(ids, RequestError)
    assert "all texts or all token ids" in mixed.reason
    assert len(good[0].token_logprobs) == 1


def test_a_reply_without_content_is_empty_if_it_has_an_end():
    """A reasoning model at its token limit has no content."""
    choice = {"message": {"role": "assistant", "content": None, "reasoning_content": "hm"}, "finish_reason": "length"}
    found = openai_format.read_chat(json.dumps({"choices": [choice]}).encode(), 0)
    assert (found.text, found.finish_reason) == ("", "length")
    with pytest.raises(openai_format.MalformedResponse):
        openai_format.read_chat(json.dumps({"choices": [{**choice, "finish_reason": None}]}).encode(), 0)
