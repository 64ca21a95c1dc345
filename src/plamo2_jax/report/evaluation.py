"""Write the HTML page of an evaluation: a table of scores, bars with confidence intervals, and examples of answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from plamo2_jax.eval.results import TaskResult, read_results
from plamo2_jax.storage import is_link, write_whole

REPORT = "report.html"
_SHOWN = 1200
"""Maximum number of characters of a question or an answer on the page."""
_EXAMPLES = 2
"""Number of the best and of the worst answers of a task on the page."""
_LARGEST_PLOT = 4 << 20
_NORMAL = 1.96
"""A 95 % confidence interval has this many standard errors on each side."""


def write_evaluation_report(folder: Path) -> Path:
    """Write report.html into a folder of results, from the result and the answers of each task.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        PlamoError: the folder has no results, or a file cannot be read.
    """
    results = read_results(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plamo2_jax.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    models = list(dict.fromkeys(_name(one.result["model"]) for one in results.values()))
    html = environment.get_template("evaluation.html").render(
        title=", ".join(models),
        models=models,
        tasks=[_view(name, one, folder / name, len(models) > 1) for name, one in results.items()],
    )
    write_whole(folder / REPORT, html.encode())
    return folder / REPORT


def _view(name: str, found: TaskResult, folder: Path, several: bool) -> dict[str, Any]:
    """Return the values that the page shows about a task."""
    result = found.result
    score, error = result.get("score"), result.get("stderr")
    provenance, tokens = result["provenance"], result["tokens"]
    chance = provenance.get("chance")
    details = [
        (each, f"{metric['value']:.4f}", "–" if metric["stderr"] is None else f"{metric['stderr']:.4f}", metric["n"])
        for each, metric in result["metrics"].items()
    ]
    return {
        "name": name,
        "model": _name(result["model"]) if several else None,
        "metric": result["metric"],
        "score": "–" if score is None else f"{score:.4f}",
        "error": "–" if error is None else f"{error:.4f}",
        "chance": f"{chance:.3f}" if isinstance(chance, int | float) else "–",
        "n": result["n"],
        "failed": result["failed"],
        "errors": [(one.get("id"), one.get("reason")) for one in result.get("errors", []) if isinstance(one, dict)][:5],
        "bar": _bar(score, error, chance),
        "contamination": _contamination(result),
        "details": details,
        "examples": _examples(found),
        "plots": _plots(result, folder),
        "facts": {
            "model": _flat(result["model"]),
            "judge": _flat(result.get("judge")),
            "settings": _flat(result["settings"]),
            "sampling": "; ".join(map(_flat, result.get("sampling", []))),
            "data": _flat({key: value for key, value in provenance.items() if key != "config"}),
            "hash of the prompts": str(result.get("prompt_hash")),
            "tokens": _flat(tokens),
            "seconds": str(result.get("seconds")),
            "versions": _flat(result["versions"]),
            "finished": str(result.get("finished")),
        },
    }


def _contamination(result: Mapping[str, Any]) -> list[tuple[str, int, str, str]]:
    """Return a row for the items that the training data contains and one for the others: kind, number, main metric, standard error."""
    found, rows = result.get("contamination"), []
    if not isinstance(found, dict):
        return []
    for name, label in (("contaminated", "in the training data"), ("clean", "not in the training data")):
        part = found[name]
        metric = part["metrics"].get(result["metric"])
        error = None if metric is None else metric["stderr"]
        value = "–" if metric is None else f"{metric['value']:.4f}"
        rows.append((label, part["n"], value, "–" if error is None else f"{error:.4f}"))
    return rows


def _bar(score: Any, error: Any, chance: Any) -> dict[str, float] | None:
    """Return the positions of a bar in percent; None if the score is not a share."""
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        return None
    bar = {"value": 100 * score}
    if isinstance(error, int | float):
        low, high = max(0.0, score - _NORMAL * error), min(1.0, score + _NORMAL * error)
        bar |= {"low": 100 * low, "width": 100 * (high - low)}
    if isinstance(chance, int | float) and 0 <= chance <= 1:
        bar["chance"] = 100 * chance
    return bar


def _examples(found: TaskResult) -> list[dict[str, str]]:
    """Return the best and the worst answers by the main metric, or by the first score if the metric is not a score of items."""
    rows = [row for row in found.answers.values() if row["scores"]]
    if not rows:
        return []
    metric = found.result["metric"]
    if not all(metric in row["scores"] for row in rows):
        metric = next(iter(rows[0]["scores"]))
        rows = [row for row in rows if metric in row["scores"]]
    lower_is_better = metric in ("bits_per_byte", "bits_per_byte_of_text", "perplexity")
    ordered = sorted(rows, key=lambda row: row["scores"][metric], reverse=not lower_is_better)
    chosen = [("best", row) for row in ordered[:_EXAMPLES]]
    chosen += [("worst", row) for row in ordered[max(_EXAMPLES, len(ordered) - _EXAMPLES) :]]
    return [
        {
            "kind": kind,
            "id": row["id"],
            "question": _short(row["question"]),
            "answer": _short(_text(row.get("answer"))),
            "reference": _short(_text(row.get("reference"))) if row.get("reference") is not None else "",
            "score": f"{metric} {row['scores'][metric]:.3g}",
        }
        for kind, row in chosen
    ]


def _plots(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the plots of a task as addresses of embedded data."""
    found = []
    for name in result.get("plots", []):
        if isinstance(name, str) and Path(name).name == name and name.endswith(".png"):
            file = folder / name
            if file.is_file() and not is_link(file) and file.stat().st_size <= _LARGEST_PLOT:
                found.append("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode())
    return found


def _name(model: Mapping[str, Any]) -> str:
    return str(model.get("model") or model.get("fingerprint") or "unknown model")


def _text(value: Any) -> str:
    """Return the text of an answer, or its JSON if it has other parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"] or "(empty)"
    return json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}\n[…]\n{text[-_SHOWN // 2 :]}"


def _flat(value: Any) -> str:
    """Return a JSON object on one line."""
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    parts = (
        f"{key} {one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)}" for key, one in value.items()
    )
    return _short(", ".join(parts))
