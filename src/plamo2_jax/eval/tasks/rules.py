"""Prompts with rules that check an answer, such as the held-out prompts of `plamo2 data instructions`."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.readers import read_records
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.answer_rules import check_rules, mean, score
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, Task, TaskOptions
from plamo2_jax.models import ChatRequest

_NEW_TOKENS = 128


def open(name: str, options: TaskOptions) -> Task:
    """Open a file of prompts.

    Raises:
        PlamoError: the file is missing or malformed, or a rule is.
    """
    return Rules(name, options)


class Rules:
    """The task: greedy answers to conversations, scored by the rules of each prompt. Groups are the fields `task`, if there are any."""

    metric = "score"

    def __init__(self, name: str, options: TaskOptions):
        self.name, self._options = name, options
        report, path = ReadReport(max_bad_rate=0.0, judge_after=1), Path(options.path)
        self._prompts: dict[str, tuple[list, Mapping]] = {}
        self.items: list[Item] = []
        digest = hashlib.sha256()
        for place, record in read_records(path, report):
            messages, rules = record.get("messages"), record.get("rules")
            well_formed = isinstance(messages, list) and all(
                isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
                for one in messages
            )
            if not well_formed or not messages or not isinstance(rules, dict):
                raise PlamoError(
                    f'{place} is not allowed: it must have "messages", objects with role and content, and "rules", an object. plamo2 data '
                    "instructions writes such records"
                )
            check_rules(rules)
            # The record may end with an answer to learn from.
            asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            item_id, group = str(record.get("id", place)), record.get("task")
            if not asked or item_id in self._prompts:
                raise PlamoError(f"{place} is not allowed: it must have a question, and an id that occurs once")
            self._prompts[item_id] = asked, rules
            self.items.append(
                Item(item_id, asked[-1]["content"], rules, group if isinstance(group, str) else None)
            )  # fmt: skip
            digest.update(f"{item_id}\n{asked}\n{rules}\n".encode())
        if not self.items:
            raise PlamoError(f"{path} has no prompt: it must have at least one record")
        self.provenance = {"path": str(path), "data_sha256": digest.hexdigest(), "mode": "chat", "temperature": 0.0}

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the conversation of an item. Return {"text": the answer, "finished": whether it ended by itself}."""
        messages, _ = self._prompts[item.id]
        stop = StopConfig(max_new_tokens=self._options.max_new_tokens or _NEW_TOKENS)
        [response] = yield ChatRequest(item.id, messages, sampling=SamplingConfig(temperature=0.0), stop=stop)
        return {"text": response.text, "finished": response.finish_reason == "stop"}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return for each item the mean over its rules as `score`, and the score of each rule."""
        found = []
        for item, answer in zip(items, answers, strict=True):
            allow = self._options.allow_unisolated_code
            scores = score(item.reference, answer["text"], answer["finished"], allow_unisolated_code=allow)
            found.append({"score": mean(scores), **scores})
        return found

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the mean score, and the mean of each rule, over all items that have it and of each group."""
        return mean_metrics(items, scores)
