"""The stages of a pipeline in the report of its folder: a graph as SVG, and a table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from plamo2_jax.checkpoint import CONFIG
from plamo2_jax.pipeline.state import FOLDER, Record, State, Status
from plamo2_jax.report.layout import place
from plamo2_jax.storage import is_link

_WIDTH, _HEIGHT, _GAP, _ROW_GAP = 148, 46, 14, 28
_WORDS: Mapping[Status, str] = {
    "waiting": "not run",
    "running": "running",
    "done": "done",
    "skipped": "skipped (finished earlier)",
    "failed": "failed",
}


@dataclasses.dataclass(frozen=True)
class StageRow:
    """A stage, as the page shows it."""

    name: str
    command: str
    before: Sequence[str]
    status: Status
    words: str
    seconds: str
    size: str
    share: float
    """Its share of the time of all stages, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a pipeline, as the page shows them."""

    rows: list[StageRow]
    """Each after the stages that it depends on, without the stage that writes this page."""
    graph: Markup
    """An `<svg>` element."""
    seconds: str
    """Time of all stages together."""
    size: str
    """Size of the outputs of all stages together."""
    makers: dict[str, str]
    """Folder inside the pipeline's folder with a model → the stage that made it, in the order of the stages. "" is the folder itself."""


def read_stages(folder: Path, notes: list[str]) -> Stages | None:
    """Read the records of a pipeline in its folder.

    Args:
        folder: the pipeline's folder.
        notes: gets a sentence about each record that could not be read.

    Returns:
        The stages; None if no pipeline has run in the folder.
    """
    if is_link(folder / FOLDER):  # It may lead out of the folder.
        return None
    state = State(folder)
    try:
        progress = state.read_progress()
    except ValueError as error:
        notes.append(str(error))
        return None
    # The stage that writes this page depends on everything that the page shows. Its edges would hide the others.
    progress = {name: one for name, one in progress.items() if not one.command.startswith("report ")}
    if not progress:
        return None
    records = {name: _finished(state, name, notes) for name in progress}
    makers: dict[str, str] = {}
    for name, record in records.items():
        if record is None:
            continue
        if progress[name].status == "waiting":  # The last call did not choose it.
            progress[name].status, progress[name].seconds = "skipped", record.seconds
        for path in record.outputs or ():
            parent, _, file = path.rpartition("/")
            if file == CONFIG and "/" not in parent:
                makers[parent] = name
    sizes = {
        name: None if record is None else sum(figures[0] for figures in (record.outputs or {}).values())
        for name, record in records.items()
    }
    total = sum(one.seconds for one in progress.values())
    rows = []
    for name, one in progress.items():
        rows.append(
            StageRow(
                name=name,
                command=one.command,
                before=[each for each in one.before if each in progress],
                status=one.status,
                words=_WORDS[one.status],
                seconds=duration(one.seconds) if one.status in ("done", "skipped", "failed") else "–",
                size=in_bytes(sizes[name]),
                share=one.seconds / total if total > 0 else 0.0,
            )
        )
    size = sum(size for size in sizes.values() if size is not None)
    return Stages(rows, _draw(rows), duration(total), in_bytes(size), makers)


def _finished(state: State, name: str, notes: list[str]) -> Record | None:
    """Return the record of a stage that has succeeded, or None."""
    try:
        record = state.read(name)
    except ValueError as error:
        notes.append(str(error))
        return None
    return record if record is not None and record.outputs is not None else None


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits it."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5999.5 else f"{seconds / 3600:.1f} h"


def in_bytes(size: int | None) -> str:
    """Return a size in the decimal unit that fits it; a dash for None."""
    if size is None:
        return "–"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _draw(rows: Sequence[StageRow]) -> Markup:
    """Return the graph as an `<svg>` element; the page's CSS has the colors."""
    layout = place({row.name: row.before for row in rows}, _WIDTH, _GAP)
    width, height = layout.width + 8, layout.rows * (_HEIGHT + _ROW_GAP) - _ROW_GAP + 8
    parts = [
        f'<svg class="stages" width="{width:.0f}" height="{height:.0f}" viewBox="-4 -4 {width:.0f} {height:.0f}" role="img" '
        'aria-label="Graph of the stages; the table below has the same data">'
    ]
    for (start, _), path in layout.edges.items():
        top = layout.places[start][1] * (_HEIGHT + _ROW_GAP)
        words = [f"M{path[0]:.1f} {top + _HEIGHT}"]
        for i, (before, after) in enumerate(itertools.pairwise(path)):
            y = top + _HEIGHT + i * (_HEIGHT + _ROW_GAP)
            middle = y + _ROW_GAP / 2
            words.append(f"C{before:.1f} {middle:.0f} {after:.1f} {middle:.0f} {after:.1f} {y + _ROW_GAP}")
            if i < len(path) - 2:
                words.append(f"V{y + _ROW_GAP + _HEIGHT}")
        parts.append(f'<path class="edge" d="{"".join(words)}"/>')
    for row in rows:
        x, level = layout.places[row.name]
        left, top = x - _WIDTH / 2, level * (_HEIGHT + _ROW_GAP)
        title = f"{row.name}: {row.words}, {row.seconds}, {row.size}\nplamo2 {row.command}"
        name = row.name if len(row.name) <= 19 else f"{row.name[:18]}…"
        figures = row.words if row.status in ("waiting", "running", "failed") else f"{row.seconds} · {row.size}"
        parts.append(
            f'<g class="{row.status}" transform="translate({left:.1f} {top})"><title>{escape(title)}</title>'
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
            f'<rect class="share" x="10" y="{_HEIGHT - 7}" width="{max(row.share, 0) * (_WIDTH - 20):.1f}" height="3"/>'
            f'<text x="10" y="18">{escape(name)}</text><text class="soft" x="10" y="33">{escape(figures)}</text></g>'
        )
    return Markup("".join([*parts, "</svg>"]))
