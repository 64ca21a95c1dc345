"""The files of preference data, made of a journal that is complete: the same journal, the same bytes."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plamo2_jax.align.preference_data.pairing import Candidate, Pairing
from plamo2_jax.align.preference_data.prompts import Prompt, is_heldout
from plamo2_jax.checkpoint import write_json
from plamo2_jax.sandbox import isolation_problem
from plamo2_jax.storage import write_whole

if TYPE_CHECKING:
    from plamo2_jax.align.preference_data.config import PreferenceDataConfig

_SCORES = ("rules", "rules_mean", "judge", "score")


def write_files(
    output: Path,
    config: PreferenceDataConfig,
    prompts: Sequence[Prompt],
    alike: Mapping[str, str],
    entries: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Any],
) -> dict[str, Any]:
    """Write answers.jsonl, pairs.jsonl, heldout.jsonl and, last, report.json.

    Args:
        output: the folder.
        config: what was made.
        prompts: in order.
        alike: of prompts that were left out, the id of the one that each repeats, by id.
        entries: the journal's, by id.
        models: what tells `policy` and `judge` from others.

    Returns:
        The report.
    """
    answered = [prompt for prompt in prompts if "failed" not in entries[prompt.id]]
    lines = {False: [], True: []}
    pairings, without = {side: Pairing(config.pairing) for side in lines}, Counter()
    for prompt in answered:
        side = is_heldout(prompt.id, config.heldout_share)
        answers = {one["sample"]: one for one in entries[prompt.id]["answers"]}
        candidates = [
            Candidate(sample, one["text"], one["score"]) for sample, one in answers.items() if one["dropped"] is None
        ]
        pairs, why = pairings[side].pairs(candidates)
        if not pairs:
            without[why] += 1
        verdicts = entries[prompt.id]["verdicts"]
        for chosen, rejected in pairs:
            both = answers[chosen.sample], answers[rejected.sample]
            lines[side].append(_pair(config, prompt, both, verdicts, models))
    _write_lines(output / "answers.jsonl", (_answered(prompt, entries[prompt.id]) for prompt in answered))
    _write_lines(output / "pairs.jsonl", lines[False])
    _write_lines(output / "heldout.jsonl", lines[True])
    report = _report(prompts, alike, entries, lines, without)
    write_json(output / "report.json", report)
    return report


def _pair(
    config: PreferenceDataConfig,
    prompt: Prompt,
    both: tuple[Mapping[str, Any], Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    models: Mapping[str, Any],
) -> dict[str, Any]:
    chosen, rejected = both
    samples = [chosen["sample"], rejected["sample"]]
    provenance = {
        "id": prompt.id,
        "place": prompt.place,
        "seed": config.seed,
        "samples": samples,
        "margin": round(chosen["score"] - rejected["score"], 6),
        "chosen": {name: chosen[name] for name in _SCORES},
        "rejected": {name: rejected[name] for name in _SCORES},
        "verdicts": [
            {name: one[name] for name in ("pair", "said", "winner")}
            for one in verdicts
            if sorted(one["pair"]) == sorted(samples)
        ],
        **models,
    }
    # The template gets the variables that the policy's prompt was made with.
    sides = {"prompt": list(prompt.messages), "chosen": chosen["text"], "rejected": rejected["text"]}
    return {**sides, **prompt.variables, "provenance": provenance}


def _answered(prompt: Prompt, entry: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"id": prompt.id, "place": prompt.place, "prompt": list(prompt.messages), "rules": dict(prompt.rules)}
    return {**asked, **{name: value for name, value in entry.items() if name != "id"}}


def _report(
    prompts: Sequence[Prompt],
    alike: Mapping[str, str],
    entries: Mapping[str, Mapping[str, Any]],
    lines: Mapping[bool, Sequence[Mapping[str, Any]]],
    without: Mapping[str, int],
) -> dict[str, Any]:
    found = [entries[prompt.id] for prompt in prompts]
    answers = [one for entry in found for one in entry.get("answers", ())]
    verdicts = [one for entry in found for one in entry.get("verdicts", ())]
    rules = sorted({name for one in answers for name in one["rules"]})
    pairs = [*lines[False], *lines[True]]
    report: dict[str, Any] = {
        "prompts": len(prompts),
        "prompts_alike": dict(alike),
        "failed": {prompt.id: entries[prompt.id]["failed"] for prompt in prompts if "failed" in entries[prompt.id]},
        "retries": sum(one["retries"] for one in (*answers, *verdicts))
        + sum(entry["retries"] for entry in found if "failed" in entry),
        "answers": len(answers),
        "answers_dropped": dict(
            sorted(Counter(one["dropped"].split()[0] for one in answers if one["dropped"]).items())
        ),
        "answers_finished": sum(one["finished"] for one in answers),
        "tokens": sum(one["tokens"] or 0 for one in answers),
        "rules": {name: _mean(one["rules"][name] for one in answers if name in one["rules"]) for name in rules},
        "score": _mean(one["score"] for one in answers if one["score"] is not None),
        "verdicts": {
            "pairs": len(verdicts),
            "ties": sum(one["winner"] is None for one in verdicts),
            "orders_disagree": sum(sorted(one["said"]) in (["A", "A"], ["B", "B"]) for one in verdicts),
            "unreadable": sum("?" in one["said"] for one in verdicts),
        },
        "pairs": len(lines[False]),
        "heldout_pairs": len(lines[True]),
        "prompts_without_pair": dict(sorted(without.items())),
        "margin": _mean(one["provenance"]["margin"] for one in pairs),
        "characters": {side: _mean(len(one[side]) for one in pairs) for side in ("chosen", "rejected")},
    }
    if "code" in rules:
        report["code_without_network"] = isolation_problem() is None
    return report


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(statistics.fmean(values), 6) if values else None


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
