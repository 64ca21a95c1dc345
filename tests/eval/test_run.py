"""Tests of eval/run.py."""

import types

import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import Item, JudgeRequest
from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest, RequestError, Score, ScoreRequest


class Recorder:
    """A chat model that answers from the request and records the sizes of its calls."""

    description, parallel = {"fingerprint": "recorder"}, False

    def __init__(self):
        self.calls = []

    def chat(self, requests, *, accept=None):
        self.calls.append(("chat", len(requests)))
        return [[ChatResponse(f"re: {one.messages[-1]['content']}", "stop")] for one in requests]

    def complete(self, requests):
        self.calls.append(("complete", len(requests)))
        return [
            RequestError("it is too long") if "long" in one.prompt else [ChatResponse(one.prompt.upper(), "stop")]
            for one in requests
        ]

    def score(self, requests):
        self.calls.append(("score", len(requests)))
        return [[Score(-float(len(text)), True, ()) for text in one.continuations] for one in requests]


def two_steps(item):
    """Complete, then judge the completion; item 1 needs only scores."""
    if item.id == "1":
        scores = yield ScoreRequest(item.question, ["a", "bb"])
        return {"choice": max(range(2), key=lambda i: scores[i].logprob)}
    (response,) = yield CompletionRequest(item.question)
    (verdict,) = yield JudgeRequest(ChatRequest(item.id, [{"role": "user", "content": response.text}]))
    return {"text": verdict.text}


def task(*questions):
    items = [Item(str(i), question) for i, question in enumerate(questions)]
    return types.SimpleNamespace(name="made", items=items, requests=two_steps)


def test_requests_of_one_kind_share_a_call_and_answers_keep_their_places():
    model, judge = Recorder(), Recorder()
    answers = answer_items(task("x", "y", "z"), model, judge)
    assert answers == [{"text": "re: X"}, {"choice": 0}, {"text": "re: Z"}]
    assert model.calls == [("score", 1), ("complete", 2)]
    assert judge.calls == [("chat", 2)]


def test_a_failed_request_and_a_missing_judge_are_refused():
    with pytest.raises(PlamoError, match="item 2 of the task made has no answer: it is too long"):
        answer_items(task("x", "y", "long"), Recorder(), Recorder())
    with pytest.raises(PlamoError, match="add --judge"):
        answer_items(task("x"), Recorder())
