"""Read a run folder for its report: log, evaluations and samples.

A report is most useful after a failure. So damaged lines and files are skipped, and the page shows a note about them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file
from plamo2_jax.train.metrics import METRICS, is_step, read_lines, scan_metrics

EVALUATION = "evaluation.json"
SAMPLES = "samples.jsonl"
_MOST_SAMPLES, _MOST_TEXT = 50, 5000
LANGUAGES = {"ja": "Japanese", "en": "English"}
_PREFIXES = {"heldout/": "", "heldout_ema/": " (moving average)"}

Lines = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class HeldOutRow:
    """The evaluation of one held-out set."""

    name: str
    curves: Mapping[str, list[tuple[int, float]]]
    """Metric → (step, value) pairs, from the log."""
    figures: Mapping[str, float]
    """Metric → its newest value. Values of evaluation.json replace values of the log."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run folder that its report shows."""

    folder: Path
    name: str
    kind: str
    config: Mapping[str, Any]
    model: ModelConfig
    lines: Lines
    """Lines of the log, one for each update."""
    heldout: list[HeldOutRow]
    samples: Lines
    seconds: float
    """Time from the first line of the log to the last."""
    tokens: int | None
    """Number of tokens read, or None if it is not known."""
    notes: list[str]
    """Sentences about files and lines that could not be read."""


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        PlamoError: config.json is missing or does not describe a model.
    """
    config = checkpoint.read_config(folder)
    model = checkpoint.read_model_config(folder)
    metrics, bad = scan_metrics(folder / METRICS)
    notes = _counted(bad)
    samples, bad = read_lines(folder / SAMPLES, _sample_problem)
    notes += _counted(bad)
    evaluation = {}
    if optional_file(folder, EVALUATION) is not None:
        try:
            evaluation = read_evaluation(folder / EVALUATION)
        except ValueError as error:
            notes.append(str(error))
    lines = [line for line in metrics if "loss" in line]
    times = [line["time"] for line in metrics if "time" in line]
    counted = bool(lines) and all("tokens" in line for line in lines)
    name = config.get("name")
    return Run(
        folder=folder,
        name=name if isinstance(name, str) else folder.name,
        kind=kind_of(config),
        config=config,
        model=model,
        lines=lines,
        heldout=_heldout(metrics, evaluation),
        samples=_newest(samples),
        seconds=max(times) - min(times) if times else 0.0,
        tokens=int(sum(line["tokens"] for line in lines)) if counted else _positions(config, lines),
        notes=notes,
    )


def read_evaluation(path: Path) -> dict[str, dict[str, float]]:
    """Read the file that `plamo2 evaluate --output` writes: language → metric → value.

    Raises:
        PlamoError: the file is damaged or has another form; the message names the file.
    """
    languages = read_json_object(path).get("languages")
    if not (isinstance(languages, dict) and all(isinstance(figures, dict) for figures in languages.values())):
        raise PlamoError(
            f'{path} must hold "languages", the metrics of each language, as plamo2 evaluate --output writes it'
        )
    return {
        language: {name: value for name, value in figures.items() if _is_number(value)}
        for language, figures in languages.items()
    }


_KINDS = {"dpo": "preferences", "sft": "fine-tuning", "distill": "distillation", "pretrain": "pretraining"}


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the kind of training of a run, in words."""
    task = config.get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    words = _KINDS.get(str(kind), "a model")
    return f"{words}, adapters" if checkpoint.lora_of(config) else words


def _heldout(metrics: Lines, evaluation: Mapping[str, Mapping[str, float]]) -> list[HeldOutRow]:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in metrics:
        for key, value in line.items():
            for prefix, suffix in _PREFIXES.items():
                if key.startswith(prefix):
                    name, _, figure = key.removeprefix(prefix).rpartition("/")
                    figures = curves.setdefault(LANGUAGES.get(name, name) + suffix, {})
                    figures.setdefault(figure, []).append((line["step"], value))
    final = {LANGUAGES.get(name, name): figures for name, figures in evaluation.items()}
    return [
        HeldOutRow(
            name,
            curves.get(name, {}),
            {figure: values[-1][1] for figure, values in curves.get(name, {}).items()} | final.get(name, {}),
        )
        for name in sorted(curves.keys() | final.keys())
    ]


def _sample_problem(line: Mapping[str, Any]) -> str | None:
    if missing := {"prompt", "text", "token_ids", "finish_reason"} - line.keys():
        return f"has no {', '.join(sorted(missing))}; plamo2 generate --json writes such lines"
    texts = all(isinstance(line[name], str) for name in ("prompt", "text", "finish_reason"))
    if not texts or not isinstance(line["token_ids"], list) or not is_step(line.get("step", 0)):
        return "is not a sample: prompt, text and finish_reason must be strings, token_ids a list, step an integer"
    return None


def _newest(samples: Lines) -> Lines:
    """Return the samples of the newest step, with long texts cut."""
    newest = max((sample.get("step", 0) for sample in samples), default=0)
    shown = [sample for sample in samples if sample.get("step", newest) == newest][:_MOST_SAMPLES]
    return [{**sample, "prompt": _cut(sample["prompt"]), "text": _cut(sample["text"])} for sample in shown]


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ... ({len(text) - _MOST_TEXT:,} more characters)"


def _positions(config: Mapping[str, Any], lines: Lines) -> int | None:
    """Return the number of positions in all batches, including padding; None if the configuration does not have the sizes."""
    data = config.get("data")
    shape = [data.get(name) for name in ("batch_size", "sequence_length")] if isinstance(data, dict) else [None]
    return len(lines) * shape[0] * shape[1] if all(is_step(size) for size in shape) else None


def _counted(bad: list[str]) -> list[str]:
    return [f"{len(bad)} damaged line(s) skipped; the first: {bad[0]}"] if bad else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
