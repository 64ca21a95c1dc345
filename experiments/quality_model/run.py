"""The quality model against the document length and fastText on held-out labels, and its speed.

python experiments/quality_model/run.py --model runs/demo --output experiments/quality_model/result.json

fastText (`pip install fasttext-numpy2-wheel`) is optional. It reads characters as words, with n-grams up to five of them, in as many bins.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from plamo2_jax import models
from plamo2_jax.data import corpus
from plamo2_jax.data.quality import auc
from plamo2_jax.data.quality_training import train_quality
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

LENGTH, SEEDS = 400, 3


def pages(language: str, seed: int) -> list[str]:
    """Return the beginnings of the pages of a language, shuffled."""
    found = [d["text"][:LENGTH] for d in corpus.documents(language, "train") if len(d["text"]) > LENGTH]
    random.Random(seed).shuffle(found)
    return found


def markov(texts: list[str], order: int, count: int, seed: int) -> list[str]:
    """Return texts of a Markov chain of characters."""
    after: dict[str, list[str]] = {}
    for text in texts:
        for i in range(len(text) - order):
            after.setdefault(text[i : i + order], []).append(text[i + order])
    rng, starts, made = random.Random(seed), sorted(after), []
    for _ in range(count):
        text = rng.choice(starts)
        while len(text) < LENGTH:
            text += rng.choice(after.get(text[-order:]) or [rng.choice(starts)])
        made.append(text)
    return made


def written(model: models.ChatModel, texts: list[str], seed: int) -> list[str]:
    """Return continuations of the first 20 characters of texts, as long as the texts, by a model."""
    requests = [
        models.CompletionRequest(
            text[:20],
            id=str(i),
            seed=seed,
            sampling=SamplingConfig(temperature=0.8),
            stop=StopConfig(max_new_tokens=200),
        )
        for i, text in enumerate(texts)
    ]
    made = [text[:20] + response[0].text for text, response in zip(texts, model.complete(requests), strict=True)]
    return [text[:LENGTH] for text in made]


def fasttext_scores(train: list[tuple[str, bool]], texts: list[str]) -> tuple[list[float], float] | None:
    """Return fastText's scores of texts and its speed in MB/s, or None without fastText."""
    try:
        import fasttext
    except ImportError:
        return None

    def line(text: str) -> str:
        return " ".join("_" if c.isspace() else c for c in text)

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.writelines(f"__label__{int(good)} {line(text)}\n" for text, good in train)
        file.flush()
        model = fasttext.train_supervised(
            file.name, wordNgrams=5, bucket=1 << 20, epoch=10, lr=0.5, dim=16, thread=1, verbose=0
        )
    lines = [line(text) for text in texts]
    start = time.perf_counter()
    found = [model.f.predict(one + "\n", 2, 0.0, "strict") for one in lines]
    seconds = time.perf_counter() - start
    scores = [dict((label, p) for p, label in one).get("__label__1", 0.0) for one in found]
    return scores, sum(len(text.encode()) for text in texts) / seconds / 1e6


def measure(good: list[str], bad: list[str], seed: int) -> dict[str, float]:
    """Train on four fifths of two classes and return the AUCs on the rest."""
    rng = random.Random(seed)
    rows = [(text, True) for text in good] + [(text, False) for text in bad]
    rng.shuffle(rows)
    cut = len(rows) * 4 // 5
    train, test = rows[:cut], rows[cut:]
    start = time.perf_counter()
    model = train_quality([text for text, _ in train], [float(label) for _, label in train])
    seconds = time.perf_counter() - start
    labels = [label for _, label in test]
    texts = [text for text, _ in test]
    found = {
        "auc": auc([model.logit(text) for text in texts], labels),
        "auc_of_length": auc([len(text) for text in texts], labels),
        "train_seconds": seconds,
        "texts": len(rows),
    }
    other = fasttext_scores(train, texts)
    if other is not None:
        found["auc_of_fasttext"], found["fasttext_mb_per_second"] = auc(other[0], labels), other[1]
    many = texts * max(1, 4000 // len(texts))
    speeds = []
    for _ in range(5):
        start = time.perf_counter()
        for text in many:
            model.logit(text)
        speeds.append(sum(len(text.encode()) for text in many) / (time.perf_counter() - start) / 1e6)
    found["mb_per_second"] = statistics.median(speeds)
    return found


def main() -> None:
    """Measure the tasks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Model that writes the bad texts.")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    with models.open(options.model) as model:
        for seed in range(SEEDS):
            for language in ("ja", "en"):
                all_pages = pages(language, seed)
                half = len(all_pages) // 2
                good, rest = all_pages[:half], all_pages[half:]
                tasks = {
                    "Markov chain of order 3": markov(rest, 3, half, seed),
                    "written by the model": written(model, rest[:half], seed),
                }
                for name, bad in tasks.items():
                    runs.setdefault(f"{name}, {language}", []).append(measure(good, bad, seed))
    result = {
        "tasks": {
            name: {
                key: {"median": float(np.median([one[key] for one in some])), "all": [one[key] for one in some]}
                for key in some[0]
            }
            for name, some in runs.items()
        },
        "seeds": SEEDS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in result["tasks"].items():
        print(name, {key: round(value["median"], 4) for key, value in row.items()})


if __name__ == "__main__":
    main()
