"""Heat maps of scores between 0 and 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Panel:
    """One map."""

    title: str
    columns: Sequence[str]
    """Labels of the horizontal axis."""
    rows: Sequence[str]
    """Labels of the vertical axis, from the top."""
    values: Mapping[tuple[str, str], float]
    """Scores by column and row. A missing one is left empty."""
    horizontal: str = "tokens"
    vertical: str = "depth"


def mean_panel(title: str, cells: Mapping[tuple[str, str], Sequence[float]], vertical: str = "depth") -> Panel:
    """Return a map of means.

    Args:
        title: title of the map.
        cells: scores by column, a number of tokens such as 4,096, and row.
        vertical: label of the vertical axis. Depths are sorted; other rows keep their order.
    """
    columns = sorted({column for column, _ in cells}, key=lambda column: int(column.replace(",", "")))
    rows = list(dict.fromkeys(row for _, row in cells))
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    return Panel(title, columns, sorted(rows) if vertical == "depth" else rows, means, vertical=vertical)


def heat_maps(path: Path, panels: Sequence[Panel], title: str, columns: int = 2) -> None:
    """Write a PNG with maps side by side.

    Args:
        path: the file.
        panels: the maps.
        title: title of the figure.
        columns: number of maps in a row.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    height = max(len(panel.rows) for panel in panels)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.5 * columns, 1.2 + lines * (1 + 0.32 * height)), squeeze=False, layout="constrained"
    )
    for panel, place in zip(panels, axes.flat, strict=False):
        grid = np.full((len(panel.rows), len(panel.columns)), np.nan)
        for (column, row), value in panel.values.items():
            grid[panel.rows.index(row), panel.columns.index(column)] = value
        image = place.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                place.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
        place.set_xticks(range(len(panel.columns)), panel.columns)
        place.set_yticks(range(len(panel.rows)), panel.rows, fontsize=8)
        place.set_title(panel.title, fontsize=10)
        place.set_xlabel(panel.horizontal)
        place.set_ylabel(panel.vertical)
    for place in axes.flat[len(panels) :]:
        place.axis("off")
    figure.colorbar(image, ax=axes, label="score")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
