"""Preference data: a policy answers prompts several times, rules and a judge score the answers, and pairs are made of them.

    OUTPUT/config.json      settings that decide the result, and descriptions of prompts, policy and judge
    OUTPUT/journal.jsonl    answers and verdicts, one line per finished prompt
    OUTPUT/answers.jsonl    all answers with scores and verdicts, in the order of the prompts
    OUTPUT/pairs.jsonl      input of `plamo2 dpo`, with its origin under `provenance`
    OUTPUT/heldout.jsonl    the same for held-out prompts
    OUTPUT/report.json      counts, means and failures

The groups in which prompts are answered depend on their order only, and the randomness depends on the seed, the prompt and the sample
number only. So a run that was killed and resumed writes the same bytes as a run without interruption.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from plamo2_jax import models
from plamo2_jax.align.preference_data.config import PreferenceDataConfig, identity, stored_identity
from plamo2_jax.align.preference_data.entries import CONFIG, OR_AGAIN, REPORT, is_entry, read_identity, read_report
from plamo2_jax.align.preference_data.files import write_files
from plamo2_jax.align.preference_data.judge import compare, win_shares
from plamo2_jax.align.preference_data.pairing import repeated
from plamo2_jax.align.preference_data.prompts import Prompt, digest, drop_alike, read_prompts
from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import answer_rules as rule
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatModel, ChatRequest, ChatResponse, RequestError
from plamo2_jax.sandbox import isolation_problem
from plamo2_jax.storage import lock_folder
from plamo2_jax.train.config import differences

JOURNAL = "journal.jsonl"
FILES = (JOURNAL, "answers.jsonl", "pairs.jsonl", "heldout.jsonl", REPORT, CONFIG)

Progress = Callable[[int, int], None]
"""Called with the number of finished prompts and the number of all prompts."""


def make_preference_data(
    config: PreferenceDataConfig, *, again: bool = False, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Make preference data, or resume. A complete folder is not changed.

    Args:
        again: remove the files of an earlier run in the folder first.
        on_progress: called after every finished group of prompts.

    Returns:
        The contents of report.json. It lists failed prompts, which the next call tries again.

    Raises:
        PlamoError: the folder is in use or has another configuration, a prompt or rule is malformed, a model cannot be read, an
            endpoint refuses all requests, or there are `code` rules and programs cannot be isolated.
    """
    output = Path(config.output)
    prompts = read_prompts(config.prompts, config.rules)
    has_code = any("code" in prompt.rules for prompt in prompts)
    if has_code and not config.allow_unisolated_code and (problem := isolation_problem()):
        raise PlamoError(problem)
    current = {"config": identity(config), "prompts": digest(prompts)}
    with lock_folder(output):
        if again:
            for name in FILES:
                (output / name).unlink(missing_ok=True)
        stored = read_identity(output)
        if stored is None and (output / JOURNAL).exists():
            raise PlamoError(f"{output} has a {JOURNAL} but no {CONFIG}; {OR_AGAIN}")
        if stored is not None:
            stored["config"] = stored_identity(stored["config"], config)
            _refuse_other(output, current, stored)
            report = read_report(output)
            if report is not None and not report["failed"]:
                return report
        return _Run(config, prompts, on_progress).run(current, stored)


class _Run:
    """One call of `make_preference_data`."""

    def __init__(self, config: PreferenceDataConfig, prompts: Sequence[Prompt], on_progress: Progress | None):
        self._config, self._on_progress = config, on_progress
        self._prompts, self._alike = drop_alike(prompts, config.near_prompts)
        self._policy = models.open(config.policy)
        self._judge: ChatModel | None = models.open(config.judge) if config.judge.model else None
        self._parallel = self._policy.parallel and (self._judge is None or self._judge.parallel)
        self._scorers = ThreadPoolExecutor(os.cpu_count() or 1)

    def run(self, current: Mapping[str, Any], stored: Mapping[str, Any] | None) -> dict[str, Any]:
        output = Path(self._config.output)
        opened = {"policy": self._policy, "judge": self._judge}
        described = {name: model and dict(model.description) for name, model in opened.items()}
        if stored is None:
            write_json(output / CONFIG, {**current, **described})
        for name, found in described.items() if stored else ():
            # The description of an endpoint holds its address, which may change.
            if found != stored.get(name) and getattr(self._config, name).url is None:
                was = str(stored[name])[:120]
                raise PlamoError(
                    f"{output} was started with a different {name}: {was}, not {str(found)[:120]}; {OR_AGAIN}"
                )
        journal = Journal(output / JOURNAL, lambda entry: is_entry(entry, self._config.samples))
        try:
            self._answer_all(journal)
            return write_files(output, self._config, self._prompts, self._alike, journal.entries, described)
        finally:
            journal.close()
            self._stop()

    def _stop(self) -> None:
        """Cancel all requests and scoring. Callers that wait for them get CancelledError."""
        self._scorers.shutdown(wait=False, cancel_futures=True)
        for model in (self._policy, self._judge):
            if model is not None:
                model.close()

    def _answer_all(self, journal: Journal) -> None:
        """Add the missing entries to the journal."""

        def is_missing(id: str) -> bool:
            return id not in journal.entries or "failed" in journal.entries[id]

        groups = [group for group in self._groups() if any(is_missing(prompt.id) for prompt in group)]
        done = len(self._prompts) - sum(map(len, groups))

        def work(group: Sequence[Prompt]) -> int:
            # Answer whole groups, as without an interruption: the last bits of the logits may depend on the other rows of a batch.
            for entry in self._entries(group):
                if is_missing(entry["id"]):
                    journal.append(entry)
            return len(group)

        def report_progress(count: int) -> None:
            nonlocal done
            done += count
            if self._on_progress:
                self._on_progress(done, len(self._prompts))

        report_progress(0)
        if not self._parallel:
            for group in groups:
                report_progress(work(group))
            return
        pool = ThreadPoolExecutor(self._config.policy.concurrency)
        try:
            for future in as_completed([pool.submit(work, group) for group in groups]):
                report_progress(future.result())
        finally:
            # After an error or Ctrl-C no thread may wait for an answer or write to the closed journal.
            self._stop()
            pool.shutdown(cancel_futures=True)

    def _groups(self) -> list[Sequence[Prompt]]:
        """Return the prompts in groups that fill a batch of the local model, in order; with endpoints alone, one prompt per group."""
        own = self._config.judge if self._policy.parallel else self._config.policy
        size = 1 if self._parallel else max(1, own.batch_size // self._config.samples)
        return [self._prompts[start : start + size] for start in range(0, len(self._prompts), size)]

    def _entries(self, group: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Return the journal entry of each prompt."""
        config = self._config
        requests = [
            ChatRequest(
                prompt.id, prompt.messages, prompt.variables, config.sampling, config.stop, config.seed, config.samples
            )
            for prompt in group
        ]
        responses = self._policy.chat(requests)
        answers = [
            [] if isinstance(some, RequestError) else self._scored(prompt, some)
            for prompt, some in zip(group, responses, strict=True)
        ]
        verdicts: list[Any] = [[] for _ in group]
        if self._judge is not None:
            texts = [{one["sample"]: one["text"] for one in some if one["dropped"] is None} for some in answers]
            verdicts = compare(self._judge, config.judge, requests, texts, config.seed)
        entries = []
        for prompt, some, judged, response in zip(group, answers, verdicts, responses, strict=True):
            error = next((one for one in (response, judged) if isinstance(one, RequestError)), None)
            if error is not None:
                entries.append({"id": prompt.id, "failed": error.reason, "retries": error.retries})
                continue
            self._add_scores(prompt, some, judged)
            entries.append({"id": prompt.id, "answers": some, "verdicts": [dataclasses.asdict(one) for one in judged]})
        return entries

    def _scored(self, prompt: Prompt, responses: Sequence[ChatResponse]) -> list[dict[str, Any]]:
        """Return the answers with their scores under the rules, and the reason if an answer cannot be used."""
        unisolated = self._config.allow_unisolated_code
        texts = [response.text for response in responses]
        finished = [response.finish_reason == "stop" for response in responses]
        scores = list(
            self._scorers.map(
                lambda text, ended: rule.score(prompt.rules, text, ended, allow_unisolated_code=unisolated),
                texts,
                finished,
            )
        )
        repeats = repeated(texts, self._config.pairing.near_answers)
        answers = []
        for sample, (response, ended, found, earlier) in enumerate(
            zip(responses, finished, scores, repeats, strict=True)
        ):
            dropped = _unusable(response.text) or (None if earlier is None else f"repeats {earlier}")
            answers.append(
                {
                    "sample": sample,
                    "text": response.text,
                    "finished": ended,
                    "tokens": response.usage.completion_tokens,
                    "retries": response.retries,
                    "dropped": dropped,
                    "rules": found,
                    "rules_mean": round(rule.mean(found), 6),
                }
            )
        return answers

    def _add_scores(self, prompt: Prompt, answers: Sequence[dict[str, Any]], verdicts: Sequence[Any]) -> None:
        """Add the judge's share of wins and the score to the answers."""
        stay = [one["sample"] for one in answers if one["dropped"] is None]
        shares = win_shares(stay, verdicts) if self._judge is not None else {}
        # Without rules the judge alone decides.
        rules_weight = self._config.rules_weight if prompt.rules or not shares else 0.0
        for one in answers:
            share = shares.get(one["sample"])
            judge_weight = 0.0 if share is None else self._config.judge.weight
            weighted = rules_weight * one["rules_mean"] + judge_weight * (share or 0.0)
            total = rules_weight + judge_weight
            one["judge"] = None if share is None else round(share, 6)
            one["score"] = round(weighted / total, 6) if total else None


def _refuse_other(output: Path, current: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    if found := differences(current["config"], stored["config"], free=frozenset()):
        raise PlamoError(
            f"{output} contains preference data of a different configuration ({'; '.join(found)[:200]}); {OR_AGAIN}"
        )
    if current["prompts"] != stored["prompts"]:
        raise PlamoError(
            f"{output} contains preference data for different prompts: the prompt files have changed; {OR_AGAIN}"
        )


def _unusable(text: str) -> str | None:
    """Return why a text cannot be trained on: "empty", or "broken" with replacement characters or noncharacters; None if it can."""
    if not text.strip():
        return "empty"
    return "broken" if any(c == "\ufffd" or "\ufdd0" <= c <= "\ufdd2" for c in text) else None
