"""HumanEval (Chen et al., arXiv:2107.03374), JHumanEval and HumanEval+: the model writes Python functions, which must pass tests.

completion: the model continues the prompt until a stop sequence of the paper.
chat: the model is asked for the whole function. The last Python code block of the answer is tested, after the imports and helper functions
of the prompt.

With one trial, decoding is greedy. With n trials, samples are drawn at temperature 0.8 and top-p 0.95, and pass@k is the unbiased estimate
1 - C(n - c, k) / C(n, k) for c samples that pass.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import BUNDLED, data_identity
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, TaskOptions
from plamo2_jax.eval.tasks import TASKS
from plamo2_jax.eval.tasks.code_problems import STOP, Problem, answered, completed, read_plus_problems, read_problems
from plamo2_jax.models import ChatRequest, CompletionRequest
from plamo2_jax.sandbox import Limits, SandboxError, isolation_problem, passes

_ENGLISH = """Complete the following Python function.
Answer with the whole function, including the imports that it needs, in one code block that starts with ```python."""
_JAPANESE = """次のPythonの関数を完成させてください。
必要なimport文を含めて関数全体を、```pythonで始まる一つのコードブロックで答えてください。"""
_KS = (1, 10, 100)
_MODES = ("completion", "chat")
_LIMITS = Limits(seconds=10.0)
_PLUS_LIMITS = Limits(seconds=60.0, memory=2 << 30)
"""HumanEval+ has up to 1,900 inputs a problem, and its canonical solutions take up to 14 s on a busy core."""


@dataclasses.dataclass(frozen=True)
class CodeTask:
    """Programming problems whose answers are tested."""

    name: str
    problems: Mapping[str, Problem]
    """Problems by item id."""
    provenance: Mapping[str, Any]
    mode: str
    instruction: str
    """Text before the prompt in the mode chat."""
    trials: int
    max_new_tokens: int
    sampling: SamplingConfig
    seed: int
    limits: Limits
    processes: int
    allow_unisolated_code: bool
    metric: str = "pass@1"

    @functools.cached_property
    def items(self) -> list[Item]:
        """One item for each problem; its trials are samples of one request."""
        return [Item(id, problem.prompt) for id, problem in self.problems.items()]

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Ask for all samples at once. The answer is {"text": ...}, or {"texts": [...]} with several trials."""
        problem = self.problems[item.id]
        stop = StopConfig(max_new_tokens=self.max_new_tokens, strings=STOP if self.mode == "completion" else ())
        settings: dict[str, Any] = {
            "id": f"{self.name}/{item.id}",
            "sampling": self.sampling,
            "stop": stop,
            "seed": self.seed,
            "n": self.trials,
        }
        if self.mode == "completion":
            responses = yield CompletionRequest(problem.prompt, **settings)
        else:
            content = f"{self.instruction}\n\n```python\n{problem.prompt.rstrip()}\n```"
            responses = yield ChatRequest(messages=[{"role": "user", "content": content}], **settings)
        texts = [response.text for response in responses]  # type: ignore[union-attr]
        return {"text": texts[0]} if self.trials == 1 else {"texts": texts}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Run all programs against their tests. Equal programs run once."""
        program = completed if self.mode == "completion" else answered
        rows = []
        for item, answer in zip(items, answers, strict=True):
            problem = self.problems[item.id]
            texts = answer["texts"] if "texts" in answer else [answer["text"]]
            rows.append([(problem, program(problem, text)) for text in texts])
        runs = list(dict.fromkeys((problem.id, source) for row in rows for problem, source in row))
        by_id = {problem.id: problem for problem in self.problems.values()}
        with ThreadPoolExecutor(self.processes) as pool:
            # A thread only waits: every check has two processes of its own.
            passed = dict(zip(runs, pool.map(lambda run: self._passed(by_id[run[0]], run[1]), runs), strict=True))
        return [self._scores([passed[problem.id, source] for problem, source in row]) for row in rows]

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the means over all problems."""
        return mean_metrics(items, scores)

    def _passed(self, problem: Problem, program: str) -> dict[str, bool]:
        """Return the result of each test by score. The tests `plus` count only if the tests `base` pass."""
        found: dict[str, bool] = {}
        for name, tests in problem.tests.items():
            found[name] = all(found.values()) and passes(
                program,
                tests,
                self.limits,
                names=[problem.entry_point],
                allow_unisolated=self.allow_unisolated_code,
            )
        return found

    def _scores(self, samples: Sequence[Mapping[str, bool]]) -> dict[str, float]:
        scores = {}
        *others, last = samples[0]
        for name, prefix in ((last, ""), *((other, f"{other}_") for other in others)):
            correct = sum(sample[name] for sample in samples)
            for k in _KS:
                if k <= len(samples):
                    scores[f"{prefix}pass@{k}"] = pass_at_k(len(samples), correct, k)
        return scores


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the probability that at least one of k samples passes, where `correct` of n samples pass and k <= n."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def open(name: str, options: TaskOptions) -> CodeTask:
    """Open the task humaneval, jhumaneval or humaneval_plus.

    Raises:
        PlamoError: an option has another value than it may have, or the data is malformed.
        SandboxError: this system cannot isolate programs.
    """
    mode = options.mode or "completion"
    if mode not in _MODES:
        raise PlamoError(f"the task {name} has no mode {mode!r}: it has {' and '.join(_MODES)}")
    trials = 1 if options.trials is None else options.trials
    if trials < 1:
        raise PlamoError(f"trials is {trials} (task {name}): it must be at least 1")
    problem = isolation_problem()
    if problem and not options.allow_unisolated_code:
        raise SandboxError(problem)
    path = options.path or BUNDLED / "humaneval" / "HumanEval.jsonl.gz"
    problems = (read_plus_problems if name == "humaneval_plus" else read_problems)(path)
    sampling = SamplingConfig(temperature=0.0) if trials == 1 else SamplingConfig(temperature=0.8, top_p=0.95)
    instruction = _JAPANESE if name == "jhumaneval" else _ENGLISH
    max_new_tokens = options.max_new_tokens or (512 if mode == "completion" else 1024)
    return CodeTask(
        name=name,
        problems={problem.id: problem for problem in problems},
        provenance={
            "licence": TASKS[name].licence,
            **data_identity(path),
            "mode": mode,
            "trials": trials,
            "examples": [],
            "sampling": {**dataclasses.asdict(sampling), "max_new_tokens": max_new_tokens, "seed": options.seed},
            "stop": list(STOP) if mode == "completion" else [],
        },
        mode=mode,
        instruction=instruction,
        trials=trials,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=options.seed,
        limits=_PLUS_LIMITS if name == "humaneval_plus" else _LIMITS,
        processes=options.processes or os.cpu_count() or 1,
        allow_unisolated_code=options.allow_unisolated_code,
    )
