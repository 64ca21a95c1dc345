"""Results of lm-evaluation-harness in the format of our own tasks, so that the report and comparisons include them.

FOLDER/lm_eval.json                     results of the harness, without samples
FOLDER/lm-eval-TASK/result.json         metrics with standard errors, model, settings, versions
FOLDER/lm-eval-TASK/answers.jsonl       the samples
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from plamo2_jax.checkpoint import write_json
from plamo2_jax.eval.run import ANSWERS, RESULT, versions
from plamo2_jax.storage import write_whole

ALL = "lm_eval.json"


def write_results(
    folder: Path, results: Mapping[str, Any], model: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Write the results of `lm_eval.evaluate`. Return the contents of result.json by the name of its folder.

    Args:
        folder: folder of an evaluation.
        results: results of the harness, with samples.
        model: fields that identify the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ALL, _plain({name: value for name, value in results.items() if name != "samples"}))
    written = []
    for task, samples in results["samples"].items():
        label = f"lm-eval-{task}"
        (folder / label).mkdir(exist_ok=True)
        result = _result(task, results, samples, model)
        lines = (json.dumps(_row(sample), ensure_ascii=False).encode() + b"\n" for sample in _first_filter(samples))
        write_whole(folder / label / ANSWERS, b"".join(lines))
        write_json(folder / label / RESULT, result)
        written.append((label, result))
    return written


def _result(
    task: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], model: Mapping[str, Any]
) -> dict[str, Any]:
    metrics = {}
    n = len(_first_filter(samples))
    for name, value in results["results"][task].items():
        metric, comma, filtered = name.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = results["results"][task].get(f"{metric}_stderr,{filtered}")
        label = metric if filtered == "none" else f"{metric}/{filtered}"
        metrics[label] = {"value": float(value), "stderr": float(stderr) if _is_number(stderr) else None, "n": n}
    main = next(iter(metrics), None)
    settings = {name: results["config"].get(name) for name in ("limit", "random_seed", "fewshot_seed")}
    return {
        "task": f"lm-eval-{task}",
        "metric": main or "none",
        "score": metrics[main]["value"] if main else None,
        "stderr": metrics[main]["stderr"] if main else None,
        "n": n,
        "metrics": metrics,
        "failed": 0,
        "errors": [],
        "prompt_hash": _hash_of_prompts(samples),
        "provenance": {
            "lm_eval": metadata.version("lm_eval"),
            "data_sha256": _hash_of_data(samples),
            "version": _plain(results.get("versions", {}).get(task)),
            "shots": _plain(results.get("n-shot", {}).get(task)),
            "config": _plain(results.get("configs", {}).get(task)),
            "truncated_contexts": results["truncated_contexts"],
        },
        "settings": settings,
        "model": dict(model),
        "judge": None,
        "tokens": {},
        "plots": [],
        "versions": {**versions(), "lm_eval": metadata.version("lm_eval")},
        "seconds": _plain(float(results.get("total_evaluation_time_seconds") or 0.0)),
    }


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the samples of the task's first filter. The harness lists every document once for each filter."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: float(sample[name]) for name in sample["metrics"] if _is_number(sample.get(name))}
    return {
        "id": str(sample["doc_id"]),
        "group": None,
        "question": str(sample["arguments"][0][0]),
        "reference": _plain(sample["target"]),
        "prompt_hash": sample["prompt_hash"],
        "answer": {"responses": _plain(sample["filtered_resps"])},
        "scores": scores,
    }


def _hash_of_prompts(samples: Sequence[Mapping[str, Any]]) -> str:
    from plamo2_jax.eval.request_json import digest

    return digest([sample["prompt_hash"] for sample in _first_filter(samples)])


def _hash_of_data(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the sha256 of the harness's hashes of the documents, in their order."""
    return hashlib.sha256("\n".join(sample["doc_hash"] for sample in _first_filter(samples)).encode()).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Return a JSON value: other objects, such as functions in a task's configuration, become text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and not isinstance(value, str):
        return _plain(value.item())
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
