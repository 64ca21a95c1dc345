"""Output files of preference data. They depend on the journal, the prompts and the configuration only."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plamo2_jax.align.preference_data.pairing import Answer, Pairing
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
        config: settings of the preference data.
        prompts: the prompts in order.
        alike: id of the earlier prompt that each omitted prompt repeats, by id.
        entries: entries of the journal, by id.
        models: descriptions of `policy` and `judge`.

    Returns:
        The report.
    """
    answered = [prompt for prompt in prompts if "failed" not in entries[prompt.id]]
    lines = {False: [], True: []}  # By whether the prompt is held out.
    pairings, reasons = {side: Pairing(config.pairing) for side in lines}, []
    for prompt in answered:
        side, entry = is_heldout(prompt.id, config.heldout_share), entries[prompt.id]
        pairs, reason = pairings[side].pairs([one for one in entry["answers"] if one["dropped"] is None])
        if not pairs:
            reasons.append(reason)
        lines[side] += [_pair(config.seed, prompt, *pair, entry["verdicts"], models) for pair in pairs]
    _write_lines(output / "answers.jsonl", (_answered(prompt, entries[prompt.id]) for prompt in answered))
    _write_lines(output / "pairs.jsonl", lines[False])
    _write_lines(output / "heldout.jsonl", lines[True])
    report = _report(prompts, alike, entries, lines, reasons)
    write_json(output / "report.json", report)
    return report


def _pair(
    seed: int,
    prompt: Prompt,
    chosen: Answer,
    rejected: Answer,
    verdicts: Sequence[Mapping[str, Any]],
    models: Mapping[str, Any],
) -> dict[str, Any]:
    samples = [chosen["sample"], rejected["sample"]]
    provenance = {
        "id": prompt.id,
        "place": prompt.place,
        "seed": seed,
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
    # Training needs the variables of the chat template too.
    sides = {"prompt": list(prompt.messages)}
    # As messages, because a text that looks like a conversation would be read as one.
    sides |= {
        name: [{"role": "assistant", "content": each["text"]}]
        for name, each in (("chosen", chosen), ("rejected", rejected))
    }
    return {**sides, **prompt.variables, "provenance": provenance}


def _answered(prompt: Prompt, entry: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"place": prompt.place, "prompt": list(prompt.messages), "rules": dict(prompt.rules)}
    return {"id": prompt.id, **asked, **entry}


def _report(
    prompts: Sequence[Prompt],
    alike: Mapping[str, str],
    entries: Mapping[str, Mapping[str, Any]],
    lines: Mapping[bool, Sequence[Mapping[str, Any]]],
    reasons: Sequence[str],
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
        "answers_dropped": _counts(one["dropped"].split()[0] for one in answers if one["dropped"]),
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
        "prompts_without_pair": _counts(reasons),
        "margin": _mean(one["provenance"]["margin"] for one in pairs),
        "characters": {side: _mean(len(one[side][0]["content"]) for one in pairs) for side in ("chosen", "rejected")},
    }
    if "code" in rules:
        report["code_without_network"] = isolation_problem() is None
    return report


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(statistics.fmean(values), 6) if values else None


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
