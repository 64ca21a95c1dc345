"""Kill `plamo2 evaluate` at moments all over its work, and compare its results with those of an undisturbed run."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path

from killing import Command, main
from prefer import prepare as prepare_model

from plamo2_jax.data.corpus import documents
from plamo2_jax.eval.run import ANSWERS, JOURNAL, RESULT, TIMES

ITEMS, BATCH = 48, 2
REQUESTS = 4 * BATCH
"""Requests in one call of the model."""
STARTS = 2
"""Kills that fall into starting."""
TASKS = """
- name: choices
  kind: multiple_choice
  data: rows.jsonl
  prompt: "{{ text }}"
  choices: choices
  target: "{{ target }}"
  shots: 2
- name: answers
  kind: generate
  data: rows.jsonl
  prompt: "{{ text }}"
  target: "{{ target }}"
  temperature: 1.0
  trials: 2
  max_new_tokens: 24
"""
NAMES = ("choices", "answers")
RESPONSES = ITEMS - 2 + 2 * ITEMS
"""Lines in all journals at the end."""


def prepare(folder: Path) -> None:
    """A small model with random parameters, and tasks on texts of the bundled corpus."""
    prepare_model(folder)
    texts = [document["text"] for document in documents("en", "heldout")][:ITEMS]
    rows = [
        {"text": text[: 40 + i], "choices": [other[40:50] for other in texts[i:] + texts[:i]][:4], "target": "0"}
        for i, text in enumerate(texts)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tasks.yaml").write_text(TASKS, encoding="utf-8")


def lines(folder: Path) -> int:
    """Responses in the journals."""
    journals = [folder / "out" / name / JOURNAL for name in NAMES]
    return sum(journal.read_bytes().count(b"\n") for journal in journals if journal.exists())


def differing(left: Path, right: Path) -> list[str]:
    """Results that differ, without the fields with times, and journals that have a response twice."""
    found = []
    for name in NAMES:
        a, b = ({**_result(folder, name), **dict.fromkeys(TIMES)} for folder in (left, right))
        if a != b:
            found.append(f"{name}/{RESULT}")
        a, b = ((folder / "out" / name / ANSWERS).read_bytes() for folder in (left, right))
        if a != b:
            found.append(f"{name}/{ANSWERS}")
        ids = [json.loads(line)["id"] for line in (right / "out" / name / JOURNAL).read_bytes().splitlines()]
        if len(ids) > len(set(ids)):
            found.append(f"{name}/{JOURNAL}")
    return found


def campaign(folder: Path, kills: int, rng: random.Random) -> dict:
    """All of it, in an empty folder."""
    prepare(folder)
    options = ("evaluate", "../model", "--tasks", "../tasks.yaml", "--output", "out", "--batch-size", str(BATCH))
    whole, warm, killed = (Command(folder / name, options, folder / "compiled") for name in ("whole", "warm", "killed"))
    whole.finish()
    began = time.time()
    warm.finish()
    if differing(whole.folder, warm.folder):
        raise SystemExit("two undisturbed runs differ")
    # The journal is made when the model has been loaded.
    first = (warm.folder / "out" / NAMES[0] / ".lock").stat().st_mtime
    last = (warm.folder / "out" / NAMES[1] / RESULT).stat().st_mtime
    starting, batch = first - began, (last - first) / RESPONSES * REQUESTS
    found, ends = [], []
    while len(found) < kills:
        left, there = kills - len(found), lines(killed.folder)
        if len(found) < STARTS:
            goal, seconds = 0, rng.uniform(0, starting)
        else:  # Within the next of as many equal parts of what is not done as there are kills to come.
            goal, seconds = there + rng.randint(1, max(1, (RESPONSES - there) // left)), rng.uniform(0, batch)
        if killed.kill(lambda goal=goal: lines(killed.folder) >= goal, seconds):
            found.append({"lines": goal, "seconds": round(seconds, 2), "hit": lines(killed.folder)})
            print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
        else:
            ends.append({"differ": differing(whole.folder, killed.folder)})
            shutil.rmtree(killed.folder / "out")
    killed.finish()
    ends.append({"differ": differing(whole.folder, killed.folder)})
    times = {"starting": starting, "batch": batch, "work": last - first}
    return {
        "responses": RESPONSES,
        "seconds": {name: round(value, 2) for name, value in times.items()},
        "kills": found,
        "ends": ends,
    }


def _result(folder: Path, name: str) -> dict:
    return json.loads((folder / "out" / name / RESULT).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(__doc__, "evaluate", campaign)
