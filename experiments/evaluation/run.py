"""Evaluate the models of the demo, and ablations of them, on every task whose data is here.

    python experiments/evaluation/run.py --demo runs/demo                  # resumes; writes models.json, models.png and README.md
    python experiments/evaluation/run.py --demo runs/demo --limit 100      # smaller standard errors
    python experiments/evaluation/run.py --models pretrained --limit 2 --output runs/try    # minutes, to see that it runs
    python experiments/evaluation/run.py --page                            # after a change of notes.md: writes README.md

Each model is evaluated by one process of `plamo2 evaluate`. Ablations: half of the training steps, 4-bit matrices, and pruning without
distillation. Most benchmarks are far too hard for models of this size: a score is "at chance" if its 95 % confidence interval contains the
score of random answers, or of no right answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.checkpoint import write_json
from plamo2_jax.eval.results import read_results
from plamo2_jax.eval.run import versions
from plamo2_jax.eval.tasks import TASKS
from plamo2_jax.report.run import read_evaluation
from plamo2_jax.storage import write_whole

HERE = Path(__file__).resolve().parent
MODELS = {
    "pretrained": "",
    "half of the steps": "@350",
    "4 bits": "",
    "pruned": "/pruned",
    "pruned, distilled, merged": "/merged",
    "full attention": "/long",
    "fine-tuned": "/sft",
    "tuned on preferences": "/tuned",
}
"""Names of the models, and their places in the folder of the demo."""
_NORMAL = 1.96
_MARKER = "<!-- models -->"


def offline_tasks() -> list[str]:
    """Return the tasks whose data is part of the package or generated and that need no judge, and the demo's prompts with rules."""
    return [*(name for name, info in TASKS.items() if info.source is None and not info.needs_judge), "rules"]


def plamo2(*words: object) -> int:
    """Run a command and return its exit status."""
    print("plamo2", *words, file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, "-m", "plamo2_jax.cli.main", *map(str, words)], check=False).returncode


def evaluate(demo: Path, work: Path, name: str, tasks: list[str], limit: int) -> Path:
    """Evaluate a model, unless it is evaluated, and return the folder of its results."""
    folder, model = work / name.replace(", ", "-").replace(" ", "_"), f"{demo}{MODELS[name]}"
    if name == "4 bits":
        model = work / "four"
        if not model.exists() and plamo2("quantize", demo, model, "--bits", 4):
            sys.exit("the model cannot be quantized")
    if (folder / "evaluation.json").is_file():
        return folder
    heldout = [f"{language}={demo}/data/{language}/heldout" for language in ("ja", "en")]
    rules = f"rules={demo}/prompts/heldout.jsonl"
    settings = ("--limit", limit, "--lengths", 1024, "--max-new-tokens", 48, "--sequence-length", 512)
    given = ("--tasks", *tasks, "--path", rules, "--heldout", *heldout, *settings, "--output", folder)
    # Exit status 1: some requests failed. The table has their number.
    if plamo2("evaluate", model, *given) not in (0, 1):
        sys.exit(f"the evaluation of {model} failed")
    return folder


def summary(folder: Path) -> dict[str, Any]:
    """Return the scores and the held-out bits per byte of a folder of results."""
    tasks = {
        task: {key: one.result[key] for key in ("metric", "score", "stderr", "n", "failed")}
        | {"chance": one.result["provenance"].get("chance", 0.0), "seconds": one.result.get("seconds")}
        for task, one in read_results(folder).items()
    }
    heldout = read_evaluation(folder / "evaluation.json")
    return {"bits_per_byte": {name: figures["bits_per_byte"] for name, figures in heldout.items()}, "tasks": tasks}


def at_chance(found: Mapping[str, Any]) -> bool:
    """Return whether the confidence interval of a score contains the score of random answers."""
    error = found["stderr"] or 0.0
    return found["score"] is None or found["score"] - _NORMAL * error <= found["chance"]


def cell(found: Mapping[str, Any] | None) -> str:
    """Return a score with its standard error, in parentheses if it is at chance."""
    if found is None or found["score"] is None:
        return "–"
    text = f"{found['score']:.3f}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.3f}")
    return f"({text})" if at_chance(found) else text


def table(models: Mapping[str, Mapping[str, Any]], limit: int) -> str:
    """Return the table of all scores in Markdown: a row for each task, a column for each model."""
    lines = [
        "| task | metric | random answers | " + " | ".join(models) + " |",
        "|---|---|---:|" + "---:|" * len(models),
    ]
    for language in next(iter(models.values()))["bits_per_byte"]:
        figures = [f"{found['bits_per_byte'][language]:.3f}" for found in models.values()]
        lines.append(f"| held-out text, {language} | bits per byte | | {' | '.join(figures)} |")
    for task in dict.fromkeys(task for found in models.values() for task in found["tasks"]):
        some = [found["tasks"].get(task) for found in models.values()]
        first = next(one for one in some if one is not None)
        lines.append(
            f"| {task} | {first['metric']} | {first['chance']:.3f} | {' | '.join(cell(one) for one in some)} |"
        )
    return "\n".join(
        [
            f"At most {limit} items of each task; score ± standard error. In parentheses: at chance, so the 95 % confidence interval",
            "contains the score of random answers, which is 0 where there is nothing to guess. Command: "
            f"`run.py --demo runs/demo --limit {limit}`.",
            "",
            *lines,
            "",
            "![scores](models.png)",
            "",
        ]
    )


def write_page(output: Path, found: Mapping[str, Any]) -> None:
    """Write README.md: the text of notes.md with the table of the models in the place of its marker."""
    notes = (HERE / "notes.md").read_text(encoding="utf-8")
    page = notes.replace(_MARKER, table(found["models"], found["limit"]).rstrip("\n"))
    write_whole(output / "README.md", page.encode())


def plot(path: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the scores with 95 % confidence intervals: one panel a task, one bar a model, a line for random answers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(task for found in models.values() for task in found["tasks"]))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, sharey=True, layout="constrained"
    )
    names = list(models)
    for panel, task in zip(axes.flat, tasks, strict=False):
        some = [models[name]["tasks"].get(task) or {"score": None, "stderr": None, "chance": 0.0} for name in names]
        scores, errors = [one["score"] or 0.0 for one in some], [_NORMAL * (one["stderr"] or 0.0) for one in some]
        panel.barh(names, scores, xerr=errors, color="#56B4E9", capsize=2)
        panel.axvline(some[0]["chance"], color="#D55E00", linestyle="--", linewidth=1)
        panel.set(title=task, xlim=(0, 1))
        if not any(scores):
            panel.text(0.5, (len(names) - 1) / 2, "all scores are 0", ha="center", va="center")
    axes.flat[0].invert_yaxis()
    for panel in axes.flat[len(tasks) :]:
        panel.axis("off")
    figure.suptitle("Scores with 95 % confidence intervals; dashed: random answers")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Evaluate all models and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of the demo")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/evaluation_models"), help="folder of scores and of the 4-bit model"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder of models.json, models.png and README.md (default: this one)"
    )
    parser.add_argument("--limit", type=int, default=24, help="maximum number of items of each task")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="models to evaluate")
    parser.add_argument("--tasks", nargs="*", default=offline_tasks(), help="tasks")
    parser.add_argument("--page", action="store_true", help="only write README.md from notes.md and models.json")
    options = parser.parse_args()
    if options.page:
        write_page(options.output, json.loads((options.output / "models.json").read_bytes()))
        return
    for folder in (options.work, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    models = {
        name: summary(evaluate(options.demo, options.work, name, options.tasks, options.limit))
        for name in options.models
    }
    command = f"python experiments/evaluation/run.py --demo runs/demo --limit {options.limit}"
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    found = {"command": command, "machine": machine, "versions": versions(), "limit": options.limit, "models": models}
    write_json(options.output / "models.json", found)
    write_page(options.output, found)
    plot(options.output / "models.png", models)


if __name__ == "__main__":
    main()
