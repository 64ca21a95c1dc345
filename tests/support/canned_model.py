"""A chat model that answers from the request alone and records what it was asked."""

import threading

from plamo2_jax.models import ChatResponse, RequestError, Score, Usage


class CannedModel:
    """Answers in capitals; a text with "fail" is an error. A continuation's score is minus its length.

    Attributes:
        asked: the kind and the text of every request.
        calls: the kind and the number of requests of every call.
    """

    def __init__(self, name="canned", parallel=False):
        self.description, self.parallel = {"fingerprint": name}, parallel
        self.asked, self.calls, self.closed, self._lock = [], [], False, threading.Lock()

    def _record(self, kind, texts):
        with self._lock:
            self.asked += [(kind, text) for text in texts]
            self.calls.append((kind, len(texts)))

    def _answer(self, text):
        return (
            RequestError("it failed") if "fail" in text else [ChatResponse(text.upper(), "stop", Usage(len(text), 1))]
        )

    def chat(self, requests, *, accept=None):
        texts = [one.messages[-1]["content"] for one in requests]
        self._record("chat", texts)
        return list(map(self._answer, texts))

    def complete(self, requests):
        self._record("complete", [one.prompt for one in requests])
        return [self._answer(one.prompt) for one in requests]

    def score(self, requests):
        self._record("score", [one.context for one in requests])
        return [[Score(-float(len(text)), True, (-1.0,)) for text in one.continuations] for one in requests]

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
