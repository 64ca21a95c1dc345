"""Measure how fast a model answers 400 multiple-choice items, and 250 sampled answers to few-shot prompts.

    python experiments/evaluation/throughput.py --model runs/demo

Multiple choice: the items have the same five examples before them and four choices. In `letters`, they have the form of JMMLU: the answer
is one of four letters. In `texts`, the choices are 20 characters of text each. The naive loop scores each choice in a call of its own. Both
are measured in pairs after a first call that compiles the programs, on the same items. The naive loop is measured on a part of the items
(`--naive-items`), because it is slow; its time is reported for an item.

Sampled answers: 50 questions, 5 trials, 20 examples before each question, up to 300 tokens, with the sampling settings of pfgen-bench.
With `--pfgen DIR`, they are the questions of pfgen-bench, else sentences of the bundled corpus. The time contains the compilation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax

from plamo2_jax import models
from plamo2_jax.checkpoint import write_json
from plamo2_jax.data.corpus import documents
from plamo2_jax.eval.run import answer_items, drive, spread
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.eval.tasks.user import open_file
from plamo2_jax.models import ScoreRequest

CHOICE_TASK = """
name: continuation
kind: multiple_choice
data: continuation.jsonl
%s
target: "{{ answer }}"
shots: 5
"""
_LISTED = "".join(f"\\\\n{letter}. {{{{ choices[{i}] }}}}" for i, letter in enumerate("ABCD"))
FORMS = {
    "letters": f"""prompt: "文: {{{{ beginning }}}}{_LISTED}\\\\n答え:"
choices: ["A", "B", "C", "D"]""",
    "texts": """prompt: "文: {{ beginning }}\\n続き:"
choices: choices""",
}
ANSWER_TASK = """
name: answers
kind: generate
data: answers.jsonl
examples: examples.jsonl
prompt: "Q: {{ question }}\\nA:"
target: "{{ answer }}"
shots: 20
temperature: 1.0
top_p: 0.98
max_new_tokens: 300
stop: ["Q:"]
trials: 5
"""


def main() -> None:
    """Measure choices and answers, print the results, and write them to throughput.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--naive-items", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--pfgen", type=Path, help="folder of pfgen-bench")
    parser.add_argument("--only", choices=("choices", "answers"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("throughput.json"))
    options = parser.parse_args()
    result = {"machine": f"{platform.machine()}, {os.cpu_count()} CPU cores", "jax": jax.__version__}
    with tempfile.TemporaryDirectory() as folder, models.open(options.model, max_prompt_tokens=1 << 20) as model:
        if options.only != "answers":
            result["choices"] = {}
            for form in FORMS:
                task = write_choices(Path(folder), options.items, form)
                result["choices"][form] = measure_choices(model, task, options)
            print(json.dumps(result["choices"], indent=2))
        if options.only != "choices":
            result["answers"] = measure_answers(model, open_answers(Path(folder), options.pfgen))
            print(json.dumps(result["answers"], indent=2))
    write_json(options.output, result)


def measure_choices(model: models.ChatModel, task, options: argparse.Namespace) -> dict:
    """Measure the runner and the naive loop in turn."""
    some = spread(task.items, options.naive_items)
    first = time.monotonic()
    answer_items(task, model)
    compile_ours = time.monotonic() - first
    first = time.monotonic()
    naive(task, model, some)
    compile_naive = time.monotonic() - first
    pairs = []
    for _ in range(options.pairs):
        begin = time.monotonic()
        ours = answer_items(task, model)
        middle = time.monotonic()
        theirs = naive(task, model, some)
        end = time.monotonic()
        pairs.append(((middle - begin) / len(task.items), (end - middle) / len(some)))
    by_id = {item.id: answer["choice"] for item, answer in zip(task.items, ours, strict=True)}
    same = sum(by_id[item.id] == answer["choice"] for item, answer in zip(some, theirs, strict=True))
    return {
        "items": len(task.items),
        "naive_items": len(some),
        "accuracy": sum(row["accuracy"] for row in task.score(task.items, ours)) / len(ours),
        "same_choices": f"{same} of {len(some)}",
        "seconds_an_item": [round(a, 5) for a, _ in pairs],
        "naive_seconds_an_item": [round(b, 5) for _, b in pairs],
        "speedup": round(statistics.median(b / a for a, b in pairs), 2),
        "first_call_seconds": {"ours": round(compile_ours, 1), "naive": round(compile_naive, 1)},
    }


def naive(task, model: models.ChatModel, items) -> list:
    """Answer items one after another, and score each choice in a call of its own."""

    def ask(requests):
        found = []
        for request in requests:
            scores = []
            for choice in request.continuations:
                [[score]] = model.score([ScoreRequest(request.context, [choice])])
                scores.append(score)
            found.append(scores)
        return found

    answers = []
    for item in items:
        ((_, answer),) = drive([task.requests(item)], ask)
        answers.append(answer)
    return answers


def measure_answers(model: models.ChatModel, task) -> dict:
    """Measure sampled answers, with the compilation."""
    begin = time.monotonic()
    answers = answer_items(task, model)
    seconds = time.monotonic() - begin
    lengths = [len(answer["text"]) for answer in answers]
    return {
        "task": task.name,
        "answers": len(answers),
        "seconds": round(seconds, 1),
        "mean_characters": round(statistics.fmean(lengths), 1),
    }


def open_answers(folder: Path, pfgen: Path | None):
    """Return pfgen with five trials, or a task of the same shape."""
    if pfgen is not None:
        return open_task("pfgen", TaskOptions(path=pfgen, trials=5))
    sentences = _sentences(30, 90)[:140]
    rows = [{"question": a[:30], "answer": b[:100]} for a, b in zip(sentences[::2], sentences[1::2], strict=True)]
    for name, part in (("answers", rows[:50]), ("examples", rows[50:])):
        _write(folder / f"{name}.jsonl", part)
    (folder / "answers.yaml").write_text(ANSWER_TASK, encoding="utf-8")
    (task,) = open_file(folder / "answers.yaml", TaskOptions())
    return task


def write_choices(folder: Path, count: int, form: str):
    """Return a task: which of four pieces of text continues a sentence of the bundled corpus?"""
    sentences = _sentences(60, 160)
    rows = []
    for i in range(count + 5):
        right = sentences[i]
        wrong = [sentences[(i + step) % len(sentences)] for step in (101, 211, 307)]
        choices = [right[40:60], *(one[40:60] for one in wrong)]
        place = hashlib.sha256(right.encode()).digest()[0] % 4
        choices[0], choices[place] = choices[place], choices[0]
        rows.append({"beginning": right[:40], "choices": choices, "answer": str(place)})
    _write(folder / "continuation.jsonl", rows)
    (folder / "continuation.yaml").write_text(CHOICE_TASK % FORMS[form], encoding="utf-8")
    (task,) = open_file(folder / "continuation.yaml", TaskOptions())
    return task


def _sentences(shortest: int, longest: int) -> list[str]:
    """Return sentences of the held-out Japanese documents, then of the others, each once, in an order that is the same everywhere."""
    found: dict[str, None] = {}
    for split in ("heldout", "train"):
        for document in documents("ja", split):
            for line in document["text"].split("\n"):
                if shortest <= len(line) <= longest:
                    found[line] = None
    return list(found)


def _write(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
