"""Send the requests of a task to its models, and store every response in a journal, so that no request is sent twice.

The key of a response is a hash of the request and of the model's identity. After a change of a prompt, a model or a setting, exactly the
requests that the change concerns have new keys, and are asked.

A local model gets batches of requests that are sorted, so that equal beginnings are adjacent. The last bits of its results may depend on
the batch. Batches depend on the requests only, and a batch that was interrupted is asked as a whole. So a run that was killed and started
again has the same results as a run without interruption. A server gets single requests, several at a time.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import request_json
from plamo2_jax.eval.task import Request, Responses
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatModel, RequestError

NO_JUDGE = "the task needs a judge: add --judge MODEL_OR_URL"
_MOST_FAILURES = 20


class ServerFailing(PlamoError):
    """A server fails one request after another. A later start may succeed."""


class Asker:
    """Asks models, and remembers the responses.

    Args:
        model: the evaluated model.
        judge: the judge model, or None.
        journal: stores the responses; None: they are kept in memory only.
        batch_size: maximum number of requests in one call of a local model. After a kill, the requests of one call are asked again.
        concurrency: number of concurrent requests to a server.
        on_progress: called with a number of new requests, and the number of requests that have just been answered.
    """

    def __init__(
        self,
        model: ChatModel,
        judge: ChatModel | None = None,
        journal: Journal | None = None,
        *,
        batch_size: int = 256,
        concurrency: int = 8,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        self._model, self._judge, self._journal = model, judge, journal
        self._batch_size, self._concurrency = batch_size, concurrency
        self._on_progress = on_progress or (lambda new, done: None)
        self._entries: MutableMapping[str, Any] = {} if journal is None else journal.entries
        self._tried: set[str] = set()
        self._failures = 0
        self._lock = threading.Lock()
        self.used: dict[str, Any] = {}
        """The entries of all requests so far, by key."""

    def __call__(self, requests: Sequence[Request]) -> list[Responses | RequestError]:
        """Return the responses to requests, or an error for each one that failed. Equal requests are asked once.

        Raises:
            PlamoError: a request is for the judge, and there is none; or a server refuses all requests.
            ServerFailing: a server fails all requests.
        """
        keys = [self._key(request) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        order = sorted(unique, key=lambda key: (*request_json.place(unique[key]), key))
        self._on_progress(len(order), 0)
        for kind, some in itertools.groupby(order, lambda key: request_json.kind_of(unique[key])):
            model, members = self._judge if kind == "judge" else self._model, list(some)
            if model.parallel:
                missing = list(filter(self._is_missing, members))
                self._on_progress(0, len(members) - len(missing))
                self._ask_separately(model, kind, {key: unique[key] for key in missing})
                continue
            for start in range(0, len(members), self._batch_size):
                batch = members[start : start + self._batch_size]
                self._ask_together(model, kind, {key: unique[key] for key in batch})
                self._on_progress(0, len(batch))
        self.used |= {key: self._entries[key] for key in unique}
        return [request_json.read_entry(self._entries[key]) for key in keys]

    def _key(self, request: Request) -> str:
        kind = request_json.kind_of(request)
        model = self._judge if kind == "judge" else self._model
        if model is None:
            raise PlamoError(NO_JUDGE)
        return request_json.digest([request_json.request_json(request), request_json.identity(model.description, kind)])

    def _is_missing(self, key: str) -> bool:
        """Return whether a request must be asked: it has no entry, or it failed in an earlier run."""
        return key not in self._entries or ("failed" in self._entries[key] and key not in self._tried)

    def _ask_together(self, model: ChatModel, kind: str, batch: dict[str, Request]) -> None:
        """Ask the missing requests of a batch in one call; all of them if the batch was interrupted while it was written."""
        missing = list(filter(self._is_missing, batch))
        name = request_json.digest(list(batch))
        absent = any(key not in self._entries for key in batch)
        torn = absent and any(self._entries[key].get("batch") == name for key in batch if key in self._entries)
        asked = list(batch) if torn else missing
        if not asked:
            return
        begin = time.monotonic()
        responses = send(model, kind, [batch[key] for key in asked])
        seconds = round((time.monotonic() - begin) / len(asked), 4)
        entries = [
            request_json.response_entry(key, one, seconds=seconds, batch=name, **_judged(kind))
            for key, one in zip(asked, responses, strict=True)
        ]
        self._keep([entry for entry in entries if entry["id"] in missing])

    def _ask_separately(self, model: ChatModel, kind: str, requests: dict[str, Request]) -> None:
        """Ask each request in a call of its own, several at a time."""

        def work(key: str) -> None:
            begin = time.monotonic()
            (response,) = send(model, kind, [requests[key]])
            seconds = round((time.monotonic() - begin) / self._concurrency, 4)
            self._keep([request_json.response_entry(key, response, seconds=seconds, **_judged(kind))])
            self._count_failures(response)

        if not requests:
            return
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for future in as_completed([pool.submit(work, key) for key in requests]):
                future.result()
                self._on_progress(0, 1)
        except BaseException:
            # After an error or Ctrl-C, no thread may wait for a response or write to the closed journal.
            model.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _count_failures(self, response: Responses | RequestError) -> None:
        """Raise ServerFailing after many failures in a row, because a server that does not answer would take hours to fail them all."""
        with self._lock:
            self._failures = self._failures + 1 if isinstance(response, RequestError) else 0
            if self._failures >= _MOST_FAILURES:
                raise ServerFailing(
                    f"the last {self._failures} requests failed, the last one because: {response.reason}. All "
                    "answers are stored: run the same command again to resume"
                )

    def _keep(self, entries: Iterable[dict[str, Any]]) -> None:
        entries = list(entries)
        if self._journal is not None:
            self._journal.extend(entries)
        with self._lock:
            if self._journal is None:
                self._entries.update((entry["id"], entry) for entry in entries)
            self._tried.update(entry["id"] for entry in entries)

    def tokens(self) -> dict[str, int]:
        """Return the number of prompt, generated and scored tokens of all requests so far."""
        total: collections.Counter[str] = collections.Counter(prompt=0, generated=0, scored=0)
        for entry in self.used.values():
            total.update(request_json.token_counts(entry))
        return dict(total)

    def seconds(self) -> float:
        """Return the time in which the models answered all requests so far, in this and earlier runs."""
        return round(sum(entry["seconds"] for entry in self.used.values()), 1)


def _judged(kind: str) -> dict[str, bool]:
    """Return a field of the entries of the judge, whose responses may have another price."""
    return {"judge": True} if kind == "judge" else {}


def send(model: ChatModel, kind: str, requests: Sequence[Request]) -> Sequence[Responses | RequestError]:
    """Send requests of one kind to a model in one call."""
    if kind == "score":
        return model.score(requests)
    if kind == "complete":
        return model.complete(requests)
    return model.chat([one.request for one in requests] if kind == "judge" else requests)
