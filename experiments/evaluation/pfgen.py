"""Rescore the public answers of pfgen-bench and compare with the benchmark's own numbers; time answers of a local model.

python experiments/evaluation/pfgen.py CHECKOUT --output experiments/evaluation/pfgen.json [--model runs/demo]

CHECKOUT is a checkout of https://github.com/pfnet-research/pfgen-bench with result/. The time of the first model includes counting the
n-grams of all references, because the cache is empty. With --model, 50 x 5 answers of the model are generated and scored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

RESULTS = ("llm-jp/llm-jp-3-150m", "pfnet/plamo-2-1b", "pfnet/plamo-2-8b")
_NAMES = ("score", "score_std", "num_trials", "length", "length_std")


def rescore(checkout: Path, name: str, folder: Path) -> dict:
    """Return the agreement with the stored results of a model, and the time."""
    from plamo2_jax.eval.pfgen.stored import score_file

    (stored,) = (checkout / "result" / name).glob("*/result.json")
    expected = json.loads(stored.read_text())
    begin = time.perf_counter()
    summary = score_file(checkout, stored.parent / "trials.jsonl.xz", folder / "scores.jsonl")
    seconds = time.perf_counter() - begin
    row = summary.row
    samples = [(id, sample) for id, one in expected["questions"].items() for sample in one["samples"]]
    lines = [{"question": id, "answer": sample["answer"]} for id, sample in samples]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score_file(checkout, folder / "samples.jsonl", folder / "sample_scores.jsonl")
    ours = [json.loads(line)["average"] for line in (folder / "sample_scores.jsonl").read_text().splitlines()]
    differences = [abs(a - sample["scores"]["average"]) for a, (_, sample) in zip(ours, samples, strict=True)]
    return {
        "name": name,
        "answers": summary.n,
        "seconds": round(seconds, 2),
        "answers_per_second": round(summary.n / seconds),
        "ours": dict(zip(_NAMES, (row.score, row.std, row.trials, row.length, row.length_std), strict=True)),
        "benchmark": {name: expected[name] for name in _NAMES},
        "stored_averages": len(differences),
        "equal_stored_averages": sum(difference < 1e-9 for difference in differences),
        "largest_difference": round(max(differences), 7),
    }


def generate(checkout: Path, model: str, trials: int, folder: Path) -> dict:
    """Return the time of answers of a local model, split into the model and the rest, and its scores."""
    from plamo2_jax import models
    from plamo2_jax.eval.run import run_task
    from plamo2_jax.eval.task import TaskOptions
    from plamo2_jax.eval.tasks import open_task

    begin = time.perf_counter()
    task = open_task("pfgen", TaskOptions(path=checkout, trials=trials))
    with models.open(model, max_prompt_tokens=1 << 20) as opened:
        loaded = time.perf_counter()
        result = run_task(task, opened, folder=folder / "run")
    names = ("fluency", "truthfulness", "helpfulness", "average", "length", "leaderboard_score", "leaderboard_std")
    return {
        "answers": result["n"],
        "open_seconds": round(loaded - begin, 1),
        "model_seconds": result["seconds"],
        "total_seconds": round(time.perf_counter() - begin, 1),
        "tokens": result["tokens"],
        "metrics": {name: result["metrics"][name] for name in names},
    }


def main() -> None:
    """Run the measurements and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name  # An empty cache.
        values = json.loads(options.output.read_text()) if options.output.is_file() else {}
        values["cores"] = os.cpu_count()
        values["python"] = sys.version.split()[0]
        values["rescored"] = [rescore(options.checkout, one, folder) for one in RESULTS]
        values["seconds"] = round(sum(one["seconds"] for one in values["rescored"]), 2)
        if options.model is not None:
            values["generated"] = generate(options.checkout, options.model, options.trials, folder)
    options.output.write_text(json.dumps(values, indent=2) + "\n")
    print(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
