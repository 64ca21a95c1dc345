"""Adapter between lm-evaluation-harness and chat models: `loglikelihood`, `loglikelihood_rolling` and `generate_until`.

`evaluate` runs tasks of the harness. `LmEvalModel` is the model for `lm_eval.simple_evaluate`. Neither needs torch or transformers.

The harness's own models cut context + continuation after as many tokens as the context has alone. With a tokenizer that merges across the
cut, this scores the wrong tokens. Here the cut is after the longest shared prefix, as described in `ScoreRequest`. The choices of a
question are one `ScoreRequest`, so they are scored from the same position, and their context is read once.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatModel, ChatRequest, CompletionRequest, RequestError, ScoreRequest
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.models.scoring import split_texts
from plamo2_jax.models.stop_ids import answer_stop_ids
from plamo2_jax.progress import tqdm

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise PlamoError(
        f"lm-evaluation-harness needs the package {error.name}: install this project with the extra eval, as in pip install '.[eval]'"
    ) from None

_LOGGER = logging.getLogger(__name__)
_GROUPS = 256
"""Number of requests that are sent together, and stored in the journal as one entry."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclasses.dataclass(frozen=True)
class _Chat:
    """A conversation whose text the harness uses as a context."""

    messages: tuple[Mapping[str, Any], ...]
    """The conversation without the beginning of the answer."""
    ids: tuple[int, ...] | None
    """The conversation as token ids; None if the template is on a server."""
    answer: str
    """Beginning of the answer; often empty."""


class LmEvalModel(LM):
    """A model of lm-evaluation-harness that sends its requests to a `ChatModel`.

    Args:
        model: the model. A text that is longer than the context of a local model loses its beginning, as in the harness's own models. A
            server must not receive such texts.
        rolling_length: largest number of tokens of a window of `loglikelihood_rolling`. On a server, each text is one window.
        score_end: also score the token that ends a document in `loglikelihood_rolling`, as held-out bits per byte do. The harness's own
            models do not.
        max_gen_toks: largest number of tokens of an answer if the task does not set it.
        seed: random seed of sampled answers.
        journal: stores responses. A request that it holds is not sent again.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        rolling_length: int = 2048,
        score_end: bool = False,
        max_gen_toks: int = 256,
        seed: int = 0,
        journal: Journal | None = None,
    ):
        super().__init__()
        if rolling_length < 2:
            raise PlamoError(f"rolling_length={rolling_length} is not allowed: it must be at least 2")
        local = isinstance(model, LocalChatModel)
        if score_end and not local:
            raise PlamoError("score_end needs the token ids of a text: open the model folder without a server")
        self._model, self._journal, self._seed = model, journal, seed
        self._tokenizer = model.tokenizer if local else None
        self._max_length = model.generator.max_length if local else math.inf
        self._stop_ids = answer_stop_ids(model.generator.model, model.template, model.tokenizer) if local else ()
        self._rolling_length, self._score_end, self._max_gen_toks = rolling_length, score_end, max_gen_toks
        self._chats: dict[str, _Chat] = {}
        self.truncated = 0
        """Number of requests whose context lost its beginning."""

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer and the chat template in keys of the harness's cache."""
        names = [] if self._tokenizer is None else [self._tokenizer.fingerprint, self.chat_template()]
        return _digest([dict(self._model.description), *names])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the source of the model's chat template; empty if it is on a server."""
        return "" if self._tokenizer is None else self._model.template.source

    def get_model_info(self) -> dict[str, Any]:
        """Return the fields that identify the model, for the harness's results."""
        return {"plamo2": dict(self._model.description)}

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Return a text that stands for a conversation in later requests.

        For a local model, it is the text of the chat template. Its control tokens are used only in this place: the same characters in a
        message or in another context stay text.

        Args:
            chat_history: objects with `role` and `content`.
            add_generation_prompt: whether an answer begins after the text. If false, the last message is the beginning of the answer.
        """
        messages, answer = list(chat_history), ""
        if not add_generation_prompt and messages and messages[-1]["role"] == "assistant":
            answer = messages.pop()["content"]
        if self._tokenizer is None:
            text, ids = json.dumps([*messages, answer], ensure_ascii=False), None
        else:
            found = self._model.template.encode(self._tokenizer, messages, add_generation_prompt=True).ids
            text, ids = self._tokenizer.decode(found) + answer, tuple(found.tolist())
        chat = _Chat(tuple(messages), ids, answer)
        if self._chats.setdefault(text, chat) != chat:
            raise PlamoError(
                "two conversations have the same text in the chat template, one of them with control strings: remove that item"
            )
        return text

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether greedy decoding would generate it."""
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            # The same context in another question must not move the cut of this one.
            question = (request.task_name, request.doc_id) if request.doc_id is not None else i
            groups.setdefault((question, request.args[0]), []).append(i)
        rows = [(context, tuple(dict.fromkeys(requests[i].args[1] for i in of))) for (_, context), of in groups.items()]

        def ask(some: Sequence[tuple[str, tuple[str, ...]]]) -> list[list[tuple[float, bool]]]:
            scores = _answers(self._model.score([self._score_request(*row) for row in some]))
            return [[(score.logprob, score.is_greedy) for score in of] for of in scores]

        found = self._run(
            "loglikelihood", rows, ask, size=lambda row: len(row[0]) + max(map(len, row[1])), key=self._context_key
        )
        results: list[Any] = [None] * len(requests)
        for (_, continuations), members, scores in zip(rows, groups.values(), found, strict=True):
            by_text = dict(zip(continuations, scores, strict=True))
            for i in members:
                logprob, greedy = by_text[requests[i].args[1]]
                results[i] = (logprob, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, results[i])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Return the log-probability of each text after the beginning-of-document token, in windows of `rolling_length` tokens."""
        texts = list(dict.fromkeys(request.args[0] for request in requests))
        windows = [(text, *window) for text in texts for window in self._windows(text)]

        def ask(some: Sequence[tuple[str, Any, Any]]) -> list[float]:
            scores = _answers(
                self._model.score([ScoreRequest(context, [continuation]) for _, context, continuation in some])
            )
            return [score.logprob for (score,) in scores]

        settings = [self._rolling_length, self._score_end]
        found = self._run(
            "loglikelihood_rolling",
            windows,
            ask,
            size=lambda window: len(window[1]) + len(window[2]),
            key=lambda window: [*settings, *window[1:]],
        )
        parts: dict[str, list[float]] = collections.defaultdict(list)
        for (text, *_), logprob in zip(windows, found, strict=True):
            parts[text].append(logprob)
        results = [math.fsum(parts[request.args[0]]) for request in requests]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the answers, without the stop string. Repeated requests with sampling settings get different samples."""
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((request.args[0], json.dumps(request.args[1], sort_keys=True)), []).append(i)
        rows = [(context, settings, len(members)) for (context, settings), members in groups.items()]

        def ask(some: Sequence[tuple[str, str, int]]) -> list[list[str]]:
            asked = [self._generation(*row) for row in some]
            chats = [one for one in asked if isinstance(one, ChatRequest)]
            texts = [one for one in asked if isinstance(one, CompletionRequest)]
            responses = {ChatRequest: iter(_answers(self._model.chat(chats)) if chats else [])}
            responses[CompletionRequest] = iter(_answers(self._model.complete(texts)) if texts else [])
            return [[response.text for response in next(responses[type(one)])] for one in asked]

        found = self._run(
            "generate_until",
            rows,
            ask,
            # The local engine generates requests with the same settings together.
            size=lambda row: (row[1], len(row[0])),
            key=lambda row: [*self._context_key(row), self._seed, self._max_gen_toks],
        )
        results: list[Any] = [None] * len(requests)
        for members, texts in zip(groups.values(), found, strict=True):
            for j, i in enumerate(members):
                results[i] = texts[j % len(texts)]
                self.cache_hook.add_partial("generate_until", requests[i].args, results[i])
        return results

    def _run(
        self,
        kind: str,
        rows: Sequence[Any],
        ask: Callable[[Sequence[Any]], list[Any]],
        *,
        size: Callable[[Any], Any],
        key: Callable[[Any], Any],
    ) -> list[Any]:
        """Return a JSON value for each row: from the journal, or from `ask` with rows of similar size.

        The rows that are asked together do not depend on what the journal holds, so neither does the rounding of the results.
        """
        order = sorted(range(len(rows)), key=lambda i: size(rows[i]), reverse=True)
        results: list[Any] = [None] * len(rows)
        with tqdm(total=len(rows), desc=f"lm-eval {kind}", unit="request") as progress:
            for start in range(0, len(order), _GROUPS):
                members = order[start : start + _GROUPS]
                name = _digest([kind, dict(self._model.description), [key(rows[i]) for i in members]])
                stored = self._journal.entries.get(name) if self._journal is not None else None
                if stored is None:
                    stored = {"id": name, "values": ask([rows[i] for i in members])}
                    if self._journal is not None:
                        self._journal.append(stored)
                for i, value in zip(members, stored["values"], strict=True):
                    results[i] = value
                progress.update(len(members))
        return results

    def _context_key(self, row: Sequence[Any]) -> list[Any]:
        chat = self._chats.get(row[0])
        return [*row, None if chat is None else [chat.messages, chat.ids, chat.answer]]

    def _score_request(self, context: str, continuations: Sequence[str]) -> ScoreRequest:
        chat = self._chats.get(context)
        if chat is not None and chat.ids is None:
            raise PlamoError(
                "log-probabilities of answers in a conversation need the chat template of the model: remove "
                "--apply-chat-template, or open the model folder without a server"
            )
        # A token has at least one byte, so short texts need no check of their tokens.
        size = len(context.encode()) + max(len(text.encode()) for text in continuations)
        if chat is None and size < self._max_length:
            return ScoreRequest(context, list(continuations))
        if chat is None:
            ids, parts = split_texts(self._tokenizer, context, continuations)
        else:
            ids, parts = split_texts(self._tokenizer, chat.answer, continuations, bos=False)
            ids = np.concatenate([np.array(chat.ids, np.int32), ids])
        return ScoreRequest(self._cut(ids, max(map(len, parts))), parts)

    def _windows(self, text: str) -> Iterable[tuple[Any, Any]]:
        """Yield pairs of context and continuation that score every token of a text once."""
        if self._tokenizer is None:
            return [("", text)]
        ids = self._tokenizer.encode(text, eos=self._score_end).tolist()
        # A window of the harness has one more token: the last one, which is only predicted.
        length = min(self._rolling_length, self._max_length - 1)
        windows = get_rolling_token_windows(ids, self._tokenizer.bos_id, length, context_len=1)
        return list(map(make_disjoint_window, windows))

    def _generation(self, context: str, settings: str, repeats: int) -> ChatRequest | CompletionRequest:
        given = normalize_gen_kwargs(json.loads(settings), self._max_gen_toks)
        until, most, sampled = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample")
        if given.get("num_beams") == 1:
            del given["num_beams"]
        if unknown := sorted(set(given) - set(_SAMPLING)):
            raise PlamoError(
                f"generation_kwargs.{unknown[0]} of the task is not supported: until, max_gen_toks, do_sample, {', '.join(_SAMPLING)} are. "
                "Remove it from the task"
            )
        sampling = SamplingConfig(**{"temperature": 1.0 if sampled else 0.0, **given})
        stop = StopConfig(most, strings=tuple(text for text in until if text))
        chat, n = self._chats.get(context), repeats if sampling.temperature else 1
        options = {"id": _digest([context, settings]), "sampling": sampling, "seed": self._seed, "n": n}
        if self._tokenizer is None:
            if chat is None:
                return CompletionRequest(context, stop=stop, **options)
            if chat.answer:
                raise PlamoError(
                    "the task begins the answer (gen_prefix), which a server's chat interface does not allow: "
                    "remove --apply-chat-template, or open the model folder without a server"
                )
            return ChatRequest(messages=chat.messages, stop=stop, **options)
        if chat is None:
            ids = self._tokenizer.encode(context, bos=True)
        else:
            stop = dataclasses.replace(stop, ids=self._stop_ids)
            ids = np.array([*chat.ids, *self._tokenizer.encode(chat.answer).tolist()], np.int32)
        return CompletionRequest(self._cut(ids, most), stop=stop, **options)

    def _cut(self, ids: np.ndarray, more: int) -> np.ndarray:
        """Return the end of a context that leaves room for `more` tokens."""
        room = self._max_length - more
        if room < 1:
            raise PlamoError(
                f"{more} tokens after the context are not allowed: the model has a context of {self._max_length} tokens"
            )
        if len(ids) <= room:
            return ids
        self.truncated += 1
        if self.truncated == 1:
            _LOGGER.warning("a context of %d tokens lost its beginning: the model reads %d", len(ids), self._max_length)
        return ids[-room:]


def evaluate(
    model: ChatModel,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    rolling_length: int = 2048,
    score_end: bool = False,
    seed: int = 0,
    bootstrap_iters: int = 1000,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness and return its results, with the samples of each task.

    Tasks that read local files (`dataset_path: json`) work without a network. Set HF_HUB_OFFLINE=1 where there is none, so that the
    datasets library does not try to connect.

    Args:
        model: the evaluated model.
        tasks: names of tasks or groups.
        include_path: folder with the user's tasks as YAML; None: the harness's own tasks.
        limit: largest number of items of each task.
        num_fewshot: number of examples in the prompt; None: the task's.
        apply_chat_template: apply the chat template to questions.
        system_instruction: system message.
        rolling_length, score_end, seed, journal: see `LmEvalModel`.
        bootstrap_iters: number of resamplings for standard errors that have no formula.

    Raises:
        PlamoError: a task is unknown or cannot be loaded, or a request failed.
    """
    manager = _task_manager(tasks, include_path)
    adapter = LmEvalModel(model, rolling_length=rolling_length, score_end=score_end, seed=seed, journal=journal)
    results = simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        bootstrap_iters=bootstrap_iters,
        random_seed=seed,
        log_samples=True,
    )
    return {**results, "truncated_contexts": adapter.truncated}


def _task_manager(tasks: Sequence[str], include_path: str | None) -> TaskManager:
    """Return a task manager that knows all tasks. The harness's own tasks are indexed only if they are needed: this takes seconds."""
    unknown = list(tasks)
    for defaults in (False, True):
        if include_path is None and not defaults:
            continue
        manager = TaskManager(include_path=include_path, include_defaults=defaults)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if not unknown:
            return manager
    raise PlamoError(
        f"lm-evaluation-harness has no task {unknown[0]!r}: give the name of one of its tasks, or the folder of your own tasks with "
        "--include-path"
    )


def _answers(results: Sequence[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, RequestError):
            raise PlamoError(f"a request of lm-evaluation-harness has no answer: {result.reason}")
    return list(results)


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else dict(value)
