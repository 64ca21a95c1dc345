"""The report of a run: what was trained, how it went, how well it predicts, what it writes."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from plamo2_jax import checkpoint
from plamo2_jax.model_files import optional_file
from plamo2_jax.report.plots import curves
from plamo2_jax.storage import located, write_whole
from plamo2_jax.train.metrics import METRICS, read_metrics

REPORT = "report.html"
EVALUATION = "evaluation.json"
SAMPLES = "samples.jsonl"
_LANGUAGES = {"ja": "Japanese", "en": "English"}
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write report.html into a run folder from its config.json and metrics.jsonl, with evaluation.json and samples.jsonl if present.

    Returns:
        The page, which needs no other file.

    Raises:
        ValueError: the folder is not a run that has logged a step, or one of its files is not what it should be.
    """
    folder = located(folder)
    config = checkpoint.read_config(folder)
    metrics = read_metrics(folder / METRICS)
    steps = [line for line in metrics if "loss" in line]
    if not steps:
        raise ValueError(f"{folder / METRICS} has no training step yet; there is nothing to report")
    model = checkpoint.read_model_config(folder)
    evaluation = _read_evaluation(folder / EVALUATION)
    languages = _languages(metrics, evaluation)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plamo2_jax.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html").render(
        name=config.get("name", folder.name),
        model=model,
        parameters=model.parameter_count(),
        steps=steps,
        tokens=sum(line.get("tokens", 0) for line in steps) or _tokens(config, steps),
        seconds=metrics[-1]["time"] - metrics[0]["time"],
        languages=languages,
        plots=[Markup(svg) for svg in _plots(steps, languages)],
        samples=_read_samples(folder / SAMPLES),
        versions={name: metadata.version(name) for name in _PACKAGES},
        machine=f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}",
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )
    write_whole(folder / REPORT, html.encode())
    return folder / REPORT


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value


def _read_evaluation(path: Path) -> dict[str, dict[str, float]]:
    """Figures by language; none where there is no evaluation."""
    if optional_file(path.parent, path.name) is None:
        return {}
    languages = _parse(path.read_text(encoding="utf-8"), str(path)).get("languages")
    if not isinstance(languages, dict) or not all(isinstance(figures, dict) for figures in languages.values()):
        raise ValueError(f'{path} must hold "languages", figures by language, as plamo2 evaluate --output writes it')
    return languages


def _read_samples(path: Path) -> list[dict[str, Any]]:
    if optional_file(path.parent, path.name) is None:
        return []
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        sample = _parse(line, f"{path}, line {number},")
        missing = {"prompt", "text", "token_ids", "finish_reason"} - sample.keys()
        if missing:
            raise ValueError(
                f"{path}, line {number}, lacks {', '.join(sorted(missing))}; plamo2 generate --json writes it"
            )
        samples.append(sample)
    # Of a run that wrote some at every evaluation, those of the last.
    newest = max((sample.get("step", 0) for sample in samples), default=0)
    return [sample for sample in samples if sample.get("step", newest) == newest]


def _tokens(config: dict[str, Any], steps: list[dict[str, float]]) -> int:
    """Positions seen, padding included, where the log does not count tokens."""
    return len(steps) * config["data"]["batch_size"] * config["data"]["sequence_length"]


def _languages(metrics: list[dict[str, float]], evaluation: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Held-out figures by language: the curve from the log, the final figure and xz's from the evaluation."""
    names = sorted({key.split("/")[1] for line in metrics for key in line if key.startswith("heldout/")})
    rows = []
    for name in names:
        key = f"heldout/{name}/bits_per_byte"
        curve = [(line["step"], line[key]) for line in metrics if key in line]
        figures = evaluation.get(name, {})
        rows.append(
            {
                "code": name,
                "name": _LANGUAGES.get(name, name),
                "curve": curve,
                "bits_per_byte": figures.get("bits_per_byte", curve[-1][1]),
                "xz": figures.get("xz_bits_per_byte"),
                "bytes": figures.get("bytes"),
            }
        )
    return rows


def _plots(steps: list[dict[str, float]], languages: list[dict[str, Any]]) -> list[str]:
    x = [line["step"] for line in steps]

    def series(key: str) -> list[float]:
        return [line[key] for line in steps]

    plots = [
        curves("training loss (nats a token)", [("loss", x, series("loss"))]),
        curves(
            "bits per byte, held out",
            [("training batches", x, series("bits_per_byte"))],
            [(row["name"], *zip(*row["curve"], strict=True)) for row in languages],
            [(f"xz -9e, {row['name']}", row["xz"]) for row in languages if row["xz"]],
        ),
        curves("learning rate", [("learning rate", x, series("learning_rate"))]),
        curves("gradient norm before clipping", [("norm", x, series("grad_norm"))], log_scale=True),
    ]
    return plots
