"""pfgen-bench as a benchmark task: 50 questions, answered in several trials with different examples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.pfgen.benchmark import LICENCE, SOURCE, Benchmark
from plamo2_jax.eval.pfgen.leaderboard import leaderboard_row
from plamo2_jax.eval.pfgen.prompts import EXAMPLES, MODES, cut_answer, make_prompt, trial_seed
from plamo2_jax.eval.pfgen.scorer import score_questions
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, TaskOptions
from plamo2_jax.models import ChatRequest, CompletionRequest

_TRIALS = 10
_MAX_NEW_TOKENS = 300
_ATTEMPTS = 10
_SAMPLING = SamplingConfig(temperature=1.0, top_p=0.98)
_PLACE = "place"


def open(name: str, options: TaskOptions) -> PfgenTask:
    """Open the task."""
    return PfgenTask(name, options)


class PfgenTask:
    """Answers the questions `trials` times, and scores fluency, truthfulness and helpfulness.

    An empty answer is asked again with another seed, up to 10 times in all. The benchmark fails if an answer is still empty; here its
    scores are 0.

    Raises:
        PlamoError: the checkout is missing or damaged, or an option is not allowed.
    """

    metric = "average"

    def __init__(self, name: str, options: TaskOptions):
        self.name = name
        self._mode = "completion" if options.mode is None else options.mode
        if self._mode not in MODES:
            raise PlamoError(f"--mode {self._mode} is not allowed for {name}: it must be one of {', '.join(MODES)}")
        trials = _TRIALS if options.trials is None else options.trials
        if trials < 1:
            raise PlamoError(f"--trials {trials} is not allowed for {name}: it must be at least 1")
        self._examples = (benchmark := Benchmark(options.path)).examples()
        self._shots = EXAMPLES if options.shots is None else options.shots
        if not 0 <= self._shots < len(self._examples):
            raise PlamoError(
                f"--shots {self._shots} is not allowed for {name}: it must be from 0 to {len(self._examples) - 1}"
            )
        self._seed = "" if options.seed == 0 else str(options.seed)
        self._processes = options.processes
        self._files = {file.id: file for file in benchmark.questions}
        strings = ("Q:", "\n\n") if self._mode == "completion" else ("Q:",)
        length = _MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        self._stop = StopConfig(max_new_tokens=length, strings=strings)
        # Trials are adjacent, because the prompts of a trial have most examples in common.
        self.items = [
            Item(f"{file.id}/{trial}", file.text, group=file.category)
            for trial in range(1, trials + 1)
            for file in self._files.values()
        ]
        self.provenance = {
            "source": SOURCE,
            "licence": LICENCE,
            "data_sha256": hashlib.sha256("".join(file.sha256 for file in self._files.values()).encode()).hexdigest(),
            "examples_sha256": hashlib.sha256(json.dumps(self._examples).encode()).hexdigest(),
            "mode": self._mode,
            "trials": trials,
            "shots": self._shots,
            "examples": "the other questions in the order of SHA-1 of SEED::TRIAL::QUESTION",
            "seed": self._seed,
            "sampling": dataclasses.asdict(_SAMPLING),
            "stop": list(strings),
            "max_new_tokens": length,
        }

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Ask a question until the text is not empty."""
        _, trial = _parts(item)
        prompt = make_prompt(item.question, self._examples, self._mode, trial, self._shots, self._seed)
        for attempt in range(1, _ATTEMPTS + 1):
            seed = trial_seed(trial, self._seed, attempt)
            if self._mode == "completion":
                (response,) = yield CompletionRequest(
                    prompt.user, id=item.id, sampling=_SAMPLING, stop=self._stop, seed=seed
                )
            else:
                messages = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
                messages.append({"role": "user", "content": prompt.user})
                (response,) = yield ChatRequest(item.id, messages, sampling=_SAMPLING, stop=self._stop, seed=seed)
            if response.text:
                break
        return {"text": cut_answer(response.text, self._mode), "attempts": attempt}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return the scores of answers, their length in characters, and their place among the answers to the question.

        The leaderboard sorts the answers to a question bytewise, and its trial i has the i-th answer to each question.
        """
        places: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            places[_parts(item)[0]].append(i)
        files = [self._files[id] for id in places]
        texts = [[answers[i]["text"] for i in some] for some in places.values()]
        rows: list[Mapping[str, float]] = [{}] * len(items)
        for some, scores in zip(places.values(), score_questions(files, texts, processes=self._processes), strict=True):
            order = sorted(
                some, key=lambda i: (json.dumps(answers[i]["text"], ensure_ascii=False).encode(), items[i].id)
            )
            for i, one in zip(some, scores, strict=True):
                rows[i] = {
                    **dataclasses.asdict(one),
                    "length": float(len(answers[i]["text"])),
                    _PLACE: float(order.index(i) + 1),
                }
        return rows

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the means of the scores, also for each subject, and the leaderboard's score and standard deviation over trials.

        The questions are fixed and the answers are random. If each question has at least two answers, the standard error of a mean is
        therefore computed from the answers to the same question; otherwise, from all answers.
        """
        plain = [{name: value for name, value in row.items() if name != _PLACE} for row in scores]
        metrics = mean_metrics(items, plain)
        groups: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            groups[""].append(i)
            if item.group is not None:
                groups[f"/{item.group}"].append(i)
        for suffix, some in groups.items():
            for name in plain[some[0]]:
                stderr = _stderr([(_parts(items[i])[0], plain[i][name]) for i in some])
                metric = metrics[name + suffix]
                metrics[name + suffix] = metric if stderr is None else dataclasses.replace(metric, stderr=stderr)
        by_question: dict[str, list[Mapping[str, float]]] = defaultdict(list)
        for item, row in zip(items, scores, strict=True):
            by_question[_parts(item)[0]].append(row)
        averages = [
            [row["average"] for row in sorted(rows, key=lambda row: row[_PLACE])] for rows in by_question.values()
        ]
        board = leaderboard_row(averages, [int(row["length"]) for row in scores])
        metrics["leaderboard_score"] = Metric(board.score, None, board.trials)
        metrics["leaderboard_std"] = Metric(board.std, None, board.trials)
        return metrics


def _parts(item: Item) -> tuple[str, int]:
    """Return the question and the trial of an item."""
    question, trial = item.id.split("/")
    return question, int(trial)


def _stderr(values: Sequence[tuple[str, float]]) -> float | None:
    """Return the standard error of the mean of (question, value) with fixed questions; None if a question has one value."""
    strata: dict[str, list[float]] = defaultdict(list)
    for question, value in values:
        strata[question].append(value)
    if min(map(len, strata.values())) < 2:
        return None
    # Of the mean over all values, a question with n values has the weight n, and its mean the variance s^2 / n.
    return math.sqrt(math.fsum(len(some) * statistics.variance(some) for some in strata.values())) / len(values)
