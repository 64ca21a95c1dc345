"""Instruction following: IFEval, M-IFEval's Japanese prompts, and the rule-based constraints of JFBench.

A prompt holds one or more instructions, and a checker (`plamo2_jax.checkers`) decides each. Strict: the answer itself is checked. Loose: an
instruction counts as followed if one of eight variants of the answer follows it. Variants lack the first line, the last line, both or none,
and all asterisks or none. So an answer that is introduced by "Sure, here it is:" does not fail for that line.

Sources: Zhou et al. 2023, arXiv:2311.07911; Dussolle et al. 2025, arXiv:2502.04688; pfnet-research/jfbench.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from plamo2_jax import checkers
from plamo2_jax.checkers import Checker
from plamo2_jax.checkers.ifeval import to_checker
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.bundled import read_json, read_lines
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, TaskOptions
from plamo2_jax.models import ChatRequest

IFEVAL_FILES = {"ifeval": "m_ifeval/en_input_data.jsonl.xz", "mifeval_ja": "m_ifeval/ja_input_data.jsonl.xz"}
MAX_NEW_TOKENS = 2048
"""Default for the largest number of tokens of an answer."""
PROMPTS_PER_CONSTRAINT = 3
"""Default for the number of JFBench's 300 prompts that each constraint is tested with. `trials=300` tests all pairs, as JFBench does."""
Call = tuple[Checker, Mapping[str, Any]]


def open(name: str, options: TaskOptions) -> InstructionTask:
    """Open `ifeval`, `mifeval_ja` or `jfbench`. Options: max_new_tokens, seed; for jfbench also trials and kinds (groups).

    Raises:
        PlamoError: an option is out of range.
    """
    return _open_jfbench(options) if name == "jfbench" else _open_ifeval(name, options)


def variants(answer: str) -> list[str]:
    """Return the eight variants of an answer for loose scores."""
    lines = answer.split("\n")
    parts = [answer] + ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return parts + [part.replace("*", "") for part in parts]


def follows(call: Call, texts: Sequence[str]) -> bool:
    """Return whether one of some texts passes a checker. A blank text follows no instruction."""
    checker, parameters = call
    return any(text.strip() and checker.check(text, parameters) for text in texts)


class InstructionTask:
    """Prompts with instructions that checkers decide.

    Args:
        calls: For each item the checkers of its instructions, with parameters, and whether the check must fail (JFBench only).
        names: For each item the names of its instructions, for the means of each kind.
        loose: Whether loose scores are computed too, and a blank answer fails every check, as in IFEval.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Item],
        calls: Sequence[Sequence[tuple[Call, bool]]],
        names: Sequence[Sequence[str]],
        loose: bool,
        provenance: Mapping[str, Any],
        options: TaskOptions,
    ):
        self.name, self.metric, self.items = name, "prompt_strict", items
        self._calls = {item.id: (call, kinds) for item, call, kinds in zip(items, calls, names, strict=True)}
        self._loose, self._seed = loose, options.seed
        self._sampling = SamplingConfig(temperature=0.0)
        most = MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        self._stop = StopConfig(max_new_tokens=most)
        self.provenance = {**provenance, "temperature": 0.0, "max_new_tokens": most}

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Ask the prompt once, greedily."""
        message = {"role": "user", "content": item.question}
        (response,) = yield ChatRequest(item.id, [message], {}, self._sampling, self._stop, self._seed)
        return {"text": response.text, "finish_reason": response.finish_reason}

    def verdicts(self, item: Item, answer: str) -> dict[str, list[bool]]:
        """Return whether an answer follows each instruction of its prompt, by `strict` and, if scored, `loose`."""
        calls, _ = self._calls[item.id]
        if not self._loose:
            return {"strict": [checker.check(answer, given) != negated for (checker, given), negated in calls]}
        texts = variants(answer)
        return {
            "strict": [follows(call, [answer]) for call, _ in calls],
            "loose": [follows(call, texts) for call, _ in calls],
        }

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return the scores of each answer.

        prompt_strict and prompt_loose are 1 if all instructions of the prompt are followed. instruction_strict and instruction_loose are
        the share of its instructions. strict/KIND is the share of the instructions of a kind.
        """
        rows = []
        for item, answer in zip(items, answers, strict=True):
            row: dict[str, float] = {}
            found = self.verdicts(item, answer["text"])
            for mode, verdicts in found.items():
                row[f"prompt_{mode}"] = float(all(verdicts))
            for mode, verdicts in found.items():
                row[f"instruction_{mode}"] = sum(verdicts) / len(verdicts)
            kinds: dict[str, list[bool]] = {}
            for kind, verdict in zip(self._calls[item.id][1], found["strict"], strict=True):
                kinds.setdefault(kind, []).append(verdict)
            rows.append(row | {f"strict/{kind}": sum(values) / len(values) for kind, values in kinds.items()})
        return rows

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return means over prompts, and for instruction_* the share of all instructions, as the benchmarks do."""
        metrics = mean_metrics(items, scores)
        weights = [len(self._calls[item.id][0]) for item in items]
        for mode in ("strict", "loose"):
            if f"instruction_{mode}" in metrics:
                shares = [row[f"instruction_{mode}"] for row in scores]
                metrics[f"instruction_{mode}"] = _ratio(shares, weights)
        return metrics


def _ratio(shares: Sequence[float], weights: Sequence[int]) -> Metric:
    """Return the weighted mean. Its standard error treats the instructions of a prompt as one draw (ratio estimator)."""
    total, n = sum(weights), len(weights)
    value = math.fsum(share * weight for share, weight in zip(shares, weights, strict=True)) / total
    if n == 1:
        return Metric(value, None, n)
    residuals = math.fsum((weight * (share - value)) ** 2 for share, weight in zip(shares, weights, strict=True))
    return Metric(value, math.sqrt(residuals * n / (n - 1)) / total, n)


def _call(name: str, parameters: Mapping[str, Any]) -> Call:
    return checkers.find(name), checkers.validate(name, parameters)


def _open_ifeval(name: str, options: TaskOptions) -> InstructionTask:
    file = IFEVAL_FILES[name]
    records, digest = read_lines(file)
    items, calls, kinds = [], [], []
    for record in records:
        ids = record["instruction_id_list"]
        where = f"{file}, key {record['key']}"
        pairs = [to_checker(one, arguments, where) for one, arguments in zip(ids, record["kwargs"], strict=True)]
        items.append(Item(str(record["key"]), record["prompt"]))
        calls.append([(_call(checker, parameters), False) for checker, parameters in pairs])
        kinds.append([one.split(":", 1)[1] for one in ids])
    provenance = {"sha256": digest, "licence": "Apache-2.0", "source": "lightblue-tech/M-IFEval", "mode": "chat"}
    return InstructionTask(name, items, calls, kinds, True, provenance, options)


def jfbench_prompt(prompt: str, instruction: str) -> str:
    """Return JFBench's prompt with one constraint."""
    return (
        f"# 指示文\n{prompt}\n\n# 回答に関する注意事項\n特に指定がなければ、日本語で回答してください。"
        "ただし、英語での回答が求められている場合は英語で回答してください。\n"
        f"ただし、以下の制約条件を全て守ってください。\n- {instruction}"
    )


def jfbench_wording(wordings: Sequence[str], prompt: int, constraint: int) -> str:
    """Return the wording that JFBench draws for a prompt and a constraint, by their numbers from 0."""
    digest = hashlib.sha256(f"ifbench||{prompt}||rule||{constraint}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little")).choice(wordings)


def _open_jfbench(options: TaskOptions) -> InstructionTask:
    prompts, digest = read_lines("jfbench/prompts.jsonl.xz")
    constraints, constraints_digest = read_json("jfbench/constraints.json")
    groups = list(dict.fromkeys(constraint["group"] for constraint in constraints))
    unknown = [kind for kind in options.kinds if kind not in groups]
    if unknown:
        raise PlamoError(f"the task jfbench has no kind {unknown[0]!r}: it must be one of {', '.join(groups)}")
    trials = PROMPTS_PER_CONSTRAINT if options.trials is None else options.trials
    if not 1 <= trials <= len(prompts):
        raise PlamoError(f"trials {trials} is not allowed for jfbench: it must be from 1 to {len(prompts)}")
    items, calls, kinds = [], [], []
    for constraint in constraints:
        if options.kinds and constraint["group"] not in options.kinds:
            continue
        rng = random.Random(f"jfbench/{options.seed}/{constraint['number']}")
        for number in sorted(rng.sample(range(len(prompts)), trials)):
            prompt = prompts[number]["prompt"]
            wording = jfbench_wording(constraint["wordings"], number, constraint["number"])
            parameters = dict(constraint["parameters"])
            if constraint.get("document"):
                parameters["document"] = prompt
            items.append(
                Item(f"{number}/{constraint['number']}", jfbench_prompt(prompt, wording), group=constraint["group"])
            )
            calls.append([(_call(constraint["checker"], parameters), constraint.get("negated", False))])
            kinds.append([constraint["constraint"]])
    provenance = {
        "sha256": digest,
        "constraints_sha256": constraints_digest,
        "licence": "prompts: ODC-BY 1.0; wordings: MIT",
        "source": "pfnet-research/jfbench",
        "mode": "chat",
        "constraints": len({item.id.split("/")[1] for item in items}),
        "prompts_per_constraint": trials,
    }
    return InstructionTask("jfbench", items, calls, kinds, False, provenance, options)
