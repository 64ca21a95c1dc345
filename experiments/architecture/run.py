"""A hybrid against models of attention layers alone, at equal parameters and at equal training FLOPs: held-out text and phonebooks.

python experiments/architecture/run.py                          # resumes; writes results.json, plot.png and README.md
python experiments/architecture/run.py --seeds 0 --first 8 --steps 8 --documents 400 --samples 1 --work runs/try --output runs/try
python experiments/architecture/run.py --page                   # only README.md and the plots, from results.json, speed.json and notes.md
python experiments/architecture/run.py --scale gpu              # a hybrid of 65 million parameters

All models are trained from scratch on the same tokens in the same order: short phonebooks, and then phonebooks and the bundled corpus.
Finished models and their figures are kept in `--work`. Models whose figures are in results.json, from the same settings, machine and
versions, are not trained again. speed.py measures how fast the three kinds of models read and write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from arms import Arm, arms  # noqa: E402
from phonebooks import Books, measure, prepare  # noqa: E402
from results_page import write  # noqa: E402
from scales import Scale, parse  # noqa: E402
from trials import train_to_end, where  # noqa: E402

from plamo2_jax.checkpoint import write_json  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.metrics import METRICS, read_metrics  # noqa: E402
from plamo2_jax.train.pretraining import Pretrain  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

# Looking up is learnt from some hundred thousand questions about short books, after a plateau, so it comes first and by itself.
FIRST = {"short": 1.0}
THEN = {"short": 0.1, "long": 0.4, "ja/train": 0.17, "en/train": 0.33}
"""Shares of the training tokens."""
SHORT = 5
"""Most entries of a short book."""


def train(home: Path, arm: Arm, scale: Scale, seed: int, first: int, steps: int) -> tuple[Path, Path]:
    """Train a model to the end, and return the folders of its two trainings."""
    books, both = (DataConfig(mixture(home, shares), scale.length, scale.rows, seed=seed) for shares in (FIRST, THEN))
    looking_up = train_to_end(run_config(home, f"{arm.name}-{seed}-first", arm, scale, seed, books, first, None))
    return looking_up, train_to_end(run_config(home, f"{arm.name}-{seed}", arm, scale, seed, both, steps, looking_up))


def mixture(home: Path, shares: Mapping[str, float]) -> tuple[MixtureItem, ...]:
    """Return the shards by their shares."""
    return tuple(MixtureItem(home / "data" / name, share) for name, share in shares.items())


def run_config(
    home: Path, name: str, arm: Arm, scale: Scale, seed: int, data: DataConfig, steps: int, start: Path | None
) -> RunConfig:
    """Return a training. One that starts from another has two thirds of its learning rate."""
    rate = scale.learning_rate if start is None else scale.learning_rate * 2 / 3
    return RunConfig(
        name=name,
        output=home / "runs",
        model=arm.model,
        tokenizer=home / "tokenizer.jsonl",
        data=data,
        steps=steps,
        task=Pretrain(),
        init_from=start,
        schedule=ScheduleConfig(learning_rate=rate, warmup=0.05, decay_fraction=0.5, decay_shape="linear"),
        dtype=scale.dtype,
        seed=seed,
        checkpoint_every=max(1, steps // 6),
        max_to_keep=1,
    )


def losses(folder: Path) -> list[float]:
    """Return the mean training loss of every ten steps."""
    found = {line["step"]: line["loss"] for line in read_metrics(folder / METRICS) if "loss" in line}
    values = [found[step] for step in sorted(found)]
    return [round(sum(values[i : i + 10]) / len(values[i : i + 10]), 4) for i in range(0, len(values), 10)]


def main() -> None:
    """Train and measure what is missing, and write the results after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first", type=int, help="steps of the first training, on short phonebooks")
    parser.add_argument("--steps", type=int, help="steps of the second training, on text and phonebooks")
    parser.add_argument("--documents", type=int, help="phonebooks of each kind")
    parser.add_argument("--entries", type=int, help="most entries of a long phonebook")
    parser.add_argument("--digits", type=int, help="digits of a number")
    parser.add_argument("--samples", type=int, default=12, help="questions of each language, length and depth")
    parser.add_argument("--batches", type=int, default=30, help="held-out batches of each language")
    parser.add_argument("--page", action="store_true", help="only write README.md and the plots")
    options, scale = parse(parser, "architecture", HERE)
    if options.page:
        write(options.output)
        return
    kinds = {"short": (2, SHORT, SHORT), "long": (2, options.entries, options.entries // 2)}
    books = Books(options.digits, kinds)
    prepare(options.work, books, options.documents, scale.vocab_size)
    compared = arms(scale.models["hybrid"], scale.length)
    window = scale.models["hybrid"].attention_window_size
    settings = {
        "scale": options.scale,
        "first": options.first,
        "steps": options.steps,
        "rows": scale.rows,
        "length": scale.length,
        "shares": {"first": FIRST, "then": THEN},
        "learning_rate": scale.learning_rate,
        "documents": options.documents,
        "entries": options.entries,
        "digits": options.digits,
        "samples": options.samples,
        "batches": options.batches,
        "window": window,
        # Three quarters of the window, the window, twice and four times the window.
        "lengths": [3 * window // 4, window, 2 * window, 4 * window],
        "dtype": scale.dtype,
        "models": {
            arm.name: {"kind": arm.kind, "parameters": arm.model.parameter_count(), "config": arm.model.to_json()}
            | {"training_flops_per_token": 3 * arm.model.flops_per_token(scale.length)}
            for arm in compared
        },
        "comparisons": {
            comparison: {arm.kind: arm.name for arm in compared if arm.comparison in (None, comparison)}
            for comparison in ("parameters", "flops")
        },
    }
    seeds = published(options.output, {**settings, **where()})
    for seed in options.seeds:
        for arm in {arm.name: arm for arm in compared}.values():
            if arm.name in seeds.get(str(seed), {}):
                continue
            looking_up, folder = train(options.work, arm, scale, seed, options.first, options.steps)
            path = folder / f"measured-{options.samples}-{options.batches}.json"
            if not path.exists():
                figures = measure(
                    options.work,
                    folder,
                    books,
                    lengths=settings["lengths"],
                    samples=options.samples,
                    sequence=(scale.length, scale.rows),
                    batches=options.batches,
                )
                write_json(path, figures | {"losses_first": losses(looking_up), "losses": losses(folder)})
            seeds.setdefault(str(seed), {})[arm.name] = json.loads(path.read_text(encoding="utf-8"))
            options.output.mkdir(parents=True, exist_ok=True)
            write_json(options.output / "results.json", about(options) | settings | {"seeds": seeds})
            print(seed, arm.name, seeds[str(seed)][arm.name]["bits_per_byte"], flush=True)
    write(options.output)


def published(folder: Path, conditions: dict) -> dict[str, dict[str, dict]]:
    """Return the figures in results.json, by seed and model, if they have the same settings, machine and versions; otherwise none."""
    path = folder / "results.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(found.get(name) == value for name, value in json.loads(json.dumps(conditions)).items())
    return found["seeds"] if same else {}


def about(options: argparse.Namespace) -> dict:
    """Return command, machine and versions."""
    words = ["python experiments/architecture/run.py", "--seeds", *map(str, options.seeds)]
    return {
        "command": " ".join(words + (["--scale", options.scale] if options.scale != "cpu" else [])),
        **where(),
    }


if __name__ == "__main__":
    main()
