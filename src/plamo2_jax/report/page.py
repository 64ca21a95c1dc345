"""Write the HTML report of a run: model, training curves, held-out evaluations and samples."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from plamo2_jax import checkpoint
from plamo2_jax.report.models import model_table, read_models, side_by_side
from plamo2_jax.report.plots import EDGES, curves
from plamo2_jax.report.run import EVALUATION, HeldOutRow, Run, read_evaluation, read_run
from plamo2_jax.report.stages import read_stages
from plamo2_jax.report.synthetic import read_synthetic
from plamo2_jax.storage import located, write_whole

REPORT = "report.html"
_PACKAGES = ("jax", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot over the steps of a run."""

    title: str
    series: Mapping[str, str]
    """Label → metric of a training step."""
    heldout: str | None = None
    """Metric of the held-out sets, drawn as points."""
    log_scale: bool = False
    in_summary: bool = False
    """Whether it is also shown for the runs inside a run folder."""


PLOTS = (
    Plot("training loss", {"loss": "loss"}, in_summary=True),
    Plot("bits per byte, held out", {"training batches": "bits_per_byte"}, "bits_per_byte", in_summary=True),
    Plot("reward accuracy", {"training batches": "reward_accuracy"}, "reward_accuracy", in_summary=True),
    Plot("reward margin", {"training batches": "reward_margin"}, "reward_margin", in_summary=True),
    Plot("reward", {"chosen": "reward_chosen", "rejected": "reward_rejected"}),
    Plot("log-ratio to the reference", {"chosen": "log_ratio_chosen", "rejected": "log_ratio_rejected"}),
    Plot("log-probability of answers", {"chosen": "log_prob_chosen", "rejected": "log_prob_rejected"}),
    Plot("divergence (kl)", {"training batches": "kl"}, "kl"),
    Plot("learning rate", {"learning rate": "learning_rate"}),
    Plot("gradient norm before clipping", {"norm": "grad_norm"}, log_scale=True),
    Plot("tokens per second", {"read": "tokens_per_second", "trained": "trained_tokens_per_second"}),
)
_TEXT = {"bits_per_byte": "bits per byte", "loss": "nats per token", "accuracy": "accuracy of the most likely token"}
_PAIRS = {
    "pairs": "pairs",
    "count_chosen": "chosen",
    "count_rejected": "rejected",
    "loss": "loss",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "margin",
    "reward_chosen": "reward of chosen",
    "reward_rejected": "reward of rejected",
    "log_ratio_chosen": "log-ratio of chosen",
    "log_ratio_rejected": "log-ratio of rejected",
    "kl": "kl",
}
_COUNTS = {"pairs", "count_chosen", "count_rejected"}
_SHARES = {"accuracy", "reward_accuracy"}


def write_report(folder: str | os.PathLike[str], on_note: Callable[[str], None] | None = None) -> Path:
    """Write report.html into a run folder, from config.json and, if they exist, metrics.jsonl, evaluation.json and samples.jsonl.

    A table shows the results of `plamo2 evaluate --tasks` in scores/MODEL, and others the counts of `plamo2 synth`. If a pipeline has run
    in the folder, the page shows its stages as a graph, and the table has all models that it made. The page ends with a summary of each
    run and model inside the folder.

    Args:
        folder: the run folder.
        on_note: called with a sentence about each file or line that could not be read; the page shows these sentences too.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        PlamoError: the folder is not a run: config.json is missing or does not describe a model.
    """
    folder = located(folder)
    run = read_run(folder)
    notes = list(run.notes)
    below = _runs_below(folder, notes)
    stages = read_stages(folder, notes)
    models, used = read_models(folder, run, below, stages, notes)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plamo2_jax.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html").render(
        run=run,
        view=_view(run, PLOTS),
        below=[(other, _view(other, [plot for plot in PLOTS if plot.in_summary])) for other in below],
        evaluations=[row for row in _evaluations(folder, notes) if row[0] not in used],
        stages=stages,
        models=model_table(models, stages),
        compared=side_by_side(models, below),
        synthetic=read_synthetic(folder, notes),
        edges=EDGES,
        notes=notes,
        versions=_versions(),
        machine=f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}",
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )
    write_whole(folder / REPORT, html.encode())
    for note in notes if on_note is not None else ():
        on_note(note)
    return folder / REPORT


def _versions() -> dict[str, str]:
    """Return the versions of the installed packages; libtpu is installed only where programs are compiled for TPU."""
    return {name: metadata.version(name) for name in _PACKAGES if any(metadata.distributions(name=name))}


def _runs_below(folder: Path, notes: list[str]) -> list[Run]:
    """Read the runs and models inside a run folder."""
    found = []
    for path in sorted(folder.iterdir()):
        if not (path.is_dir() and not path.name.startswith(".") and (path / checkpoint.CONFIG).is_file()):
            continue
        try:
            if isinstance(checkpoint.read_config(path).get("model"), dict):
                other = read_run(path)
                notes += other.notes
                found.append(dataclasses.replace(other, name=path.name))
        except ValueError as error:
            notes.append(str(error))
    return found


def _evaluations(folder: Path, notes: list[str]) -> list[tuple[str, str, dict[str, float]]]:
    """Return (file, language, metrics) of other evaluations in the folder, for example of a merged model."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name.endswith(EVALUATION) and path.name != EVALUATION:
            try:
                rows += [(path.name, language, figures) for language, figures in read_evaluation(path).items()]
            except ValueError as error:
                notes.append(str(error))
    return [row for row in rows if "bits_per_byte" in row[2]]


def _view(run: Run, plots: Sequence[Plot]) -> dict[str, Any]:
    """Return the values that the macros of the page show about a run."""
    prefers = any(figure.startswith("reward_") for row in run.heldout for figure in row.figures)
    columns = _PAIRS if prefers else _TEXT
    used = {name: title for name, title in columns.items() if any(name in row.figures for row in run.heldout)}
    table = [(row, [_number(name, row.figures.get(name)) for name in used]) for row in run.heldout]
    return {
        "columns": list(used.values()),
        "table": table,
        "prefers": prefers,
        "compares": any(_xz(row) for row in run.heldout),
        "plots": [Markup(html) for plot in plots if (html := _draw(plot, run))],
    }


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return f"{value:.1%}" if name in _SHARES else f"{value:,.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def _xz(row: HeldOutRow) -> float | None:
    return row.figures.get("xz_bits_per_byte")


def _draw(plot: Plot, run: Run) -> str:
    """Return the plot as HTML, or an empty text if the run logged none of its metrics."""
    lines = []
    for label, figure in plot.series.items():
        values = [(line["step"], line[figure]) for line in run.lines if figure in line]
        lines += [(label, *zip(*values, strict=True))] if values else []
    points = [
        (row.name, *zip(*row.curves[plot.heldout], strict=True)) for row in run.heldout if row.curves.get(plot.heldout)
    ]
    levels = []
    if plot.heldout == "bits_per_byte":
        levels = [(f"xz -9e, {row.name}", _xz(row)) for row in run.heldout if _xz(row) and row.curves.get(plot.heldout)]
    return curves(plot.title, lines, points, levels, plot.log_scale)
