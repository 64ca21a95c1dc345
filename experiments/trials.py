"""What the experiments on surgery share: data, short resumable runs, curves of loss by tokens, and tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from scales import Scale

from plamo2_jax.checkpoint import latest_step, read_config, write_json
from plamo2_jax.cli.main import main as plamo2
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches
from plamo2_jax.model import Plamo2
from plamo2_jax.model.bits_per_byte import make_evaluator
from plamo2_jax.surgery.distill import Distill
from plamo2_jax.train import loop
from plamo2_jax.train.config import RunConfig, to_json
from plamo2_jax.train.metrics import METRICS, read_metrics
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.schedule import ScheduleConfig

LANGUAGES = {"ja": 0.33, "en": 0.67}
STOPPED = "stopped; the same command goes on from there"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run's outcome."""

    losses: list[float]
    """Training loss of every step."""
    heldout: float
    """Mean of the languages' held-out bits per byte at the end."""


def prepare(work: Path, vocab_size: int) -> None:
    """A tokenizer and shards of the bundled corpus, once; programs that are compiled are kept too."""
    work.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
    if not (work / "tokenizer.jsonl").exists():
        run("tokenizer", "train", "--input", "bundled:all:train", "--vocab-size", vocab_size, "--output", work)
    for language in LANGUAGES:
        for split in ("train", "heldout"):
            folder = work / "data" / language / split
            if not folder.exists():
                run(
                    "data", "prepare", "--input", f"bundled:{language}:{split}", "--tokenizer", work, "--output", folder
                )


def train_to_end(config: RunConfig) -> Path:
    """The run's folder, once its last step is done; a run that is done is left alone.

    Raises:
        SystemExit: it was told to stop.
    """
    if latest_step(config.folder) != config.steps and loop.train(config).signal is not None:
        raise SystemExit(STOPPED)
    return config.folder


def heldout_bits(work: Path, model: Path, length: int, rows: int, batches: int) -> dict[str, float]:
    """Bits a byte of a model on the first batches of each language's held-out text."""
    loaded = load_model(model)
    evaluate = make_evaluator(Plamo2(loaded.config), loaded.tokenizer.padded_byte_lengths(loaded.config.vocab_size))
    found = {}
    for language in LANGUAGES:
        folder = work / "data" / language / "heldout"
        data = DataConfig((MixtureItem(folder),), length, rows)
        first = itertools.islice(heldout_batches(data, folder, loaded.tokenizer), batches)
        found[language] = evaluate(loaded.params, first).bits_per_byte
    return found


def run(*arguments: object) -> None:
    """`plamo2 ...`, which must succeed."""
    if plamo2([str(argument) for argument in arguments]):
        raise SystemExit(f"plamo2 {' '.join(map(str, arguments))} failed")


def train(
    work: Path,
    name: str,
    scale: Scale,
    model: ModelConfig,
    steps: int,
    seed: int,
    init_from: Path | None = None,
    teacher: Path | None = None,
    **changes: object,
) -> Trial:
    """Train to the end, going on where an earlier call stopped; a run that is done is read. `changes` are fields of RunConfig."""
    config = RunConfig(
        name=name,
        model=model,
        tokenizer=work / "tokenizer.jsonl",
        data=DataConfig(
            tuple(MixtureItem(work / "data" / language / "train", share) for language, share in LANGUAGES.items()),
            scale.length,
            scale.rows,
            seed=seed,
        ),
        steps=steps,
        task=Pretrain() if teacher is None else Distill(teacher),
        output=work / "runs",
        init_from=init_from,
        heldout={language: work / "data" / language / "heldout" for language in LANGUAGES},
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(
            learning_rate=scale.learning_rate, warmup=0.05, decay_fraction=0.5, decay_shape="linear"
        ),
        dtype=scale.dtype,
        seed=seed,
        checkpoint_every=max(1, steps // 2),
        evaluate_every=steps,
    )
    config = dataclasses.replace(config, **changes)
    result = config.folder / "trial.json"
    if result.exists() and any(
        read_config(config.folder)[part] != to_json(config)[part] for part in ("model", "steps")
    ):
        raise SystemExit(f"{config.folder} is a run of another model or length; give another --work")
    if not result.exists():
        outcome = loop.train(config)
        if outcome.signal is not None:
            raise SystemExit(STOPPED)
        losses = {line["step"]: line["loss"] for line in read_metrics(config.folder / METRICS) if "loss" in line}
        heldout = statistics.mean(found.bits_per_byte for found in outcome.heldout.values())
        write_json(result, {"losses": [losses[step] for step in sorted(losses)], "heldout": heldout})
    return Trial(**json.loads(result.read_text(encoding="utf-8")))


def smooth(losses: list[float], span: int = 20) -> np.ndarray:
    """Mean of the last `span` steps, at each step."""
    total = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - span, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def steps_to_reach(losses: list[float], goal: float) -> int | None:
    """First step whose smoothed loss is at most the goal, and None where none is."""
    below = np.flatnonzero(smooth(losses) <= goal)
    return int(below[0]) + 1 if below.size else None


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds as text."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def plot(curves: Mapping[str, list[list[float]]], tokens: int, path: Path, title: str) -> None:
    """Smoothed training loss by tokens, with `tokens` in a step: the mean over seeds, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for name, runs in curves.items():
        mean = np.mean([smooth(losses) for losses in runs], axis=0)
        axis.plot(np.arange(1, len(mean) + 1) * tokens / 1e6, mean, label=name)
    axis.set(xlabel="million tokens", ylabel="nats per token, mean of 20 steps", title=title)
    axis.set_ylim(top=float(np.max([smooth(losses)[len(losses) // 10] for losses in curves["scratch"]])))
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def where() -> dict[str, object]:
    """Return the machine and the versions, for the results of an experiment."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    if jax.default_backend() != "cpu":
        machine += f", {jax.device_count()} × {jax.devices()[0].device_kind}"
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return {"machine": machine, "versions": versions}


def write_results(folder: Path, results: dict, page: Callable[[dict], str]) -> None:
    """Write results.json, with machine and versions, and the README that follows from it."""
    results = where() | results
    write_json(folder / "results.json", results)
    (folder / "README.md").write_text(page(results), encoding="utf-8")
