"""Heat map of a retrieval probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def heat_map(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Write a PNG with one map per language and score: accuracy by length (horizontal) and depth (vertical).

    Args:
        rows: Rows of `retrieval.table`.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["depth"] is not None]
    languages = sorted({row["language"] for row in rows})
    scores = ("exact", "ranked")
    figure, panels = plt.subplots(
        len(languages), len(scores), figsize=(9, 1.2 + 2.6 * len(languages)), squeeze=False, layout="constrained"
    )
    for line, language in zip(panels, languages, strict=True):
        own = [row for row in rows if row["language"] == language]
        lengths, depths = (sorted({row[name] for row in own}) for name in ("length", "depth"))
        for panel, score in zip(line, scores, strict=True):
            grid = np.full((len(depths), len(lengths)), np.nan)
            for row in own:
                grid[depths.index(row["depth"]), lengths.index(row["length"])] = row[score]
            image = panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            for (i, j), value in np.ndenumerate(grid):
                panel.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
            panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            panel.set_yticks(range(len(depths)), [f"{depth:.2g}" for depth in depths])
            panel.set_title(f"{language}: {score}", fontsize=10)
            panel.set_xlabel("tokens")
            panel.set_ylabel("depth")
    figure.colorbar(image, ax=panels, label="accuracy")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
