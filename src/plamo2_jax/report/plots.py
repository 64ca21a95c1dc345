"""Curves of a run as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe-Ito: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plamo2", "axes.spines.top": False, "axes.spines.right": False}

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Label, steps, values."""


def curves(
    title: str,
    lines: Sequence[Curve],
    points: Sequence[Curve] = (),
    levels: Sequence[tuple[str, float]] = (),
    log_scale: bool = False,
) -> str:
    """A plot over training steps as an `<svg>` element.

    Args:
        title: what the vertical axis shows, with its unit.
        lines: drawn thin, with their running mean over a fiftieth of the run on top.
        points: few values, drawn with markers.
        levels: horizontal lines to compare with; the i-th has the colour of the i-th of `points`.
        log_scale: whether the vertical axis is logarithmic.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for colour, (label, steps, values) in zip(_COLOURS, lines, strict=False):
            width = max(1, len(values) // 50)
            axes.plot(steps, values, color=colour, alpha=0.25 if width > 1 else 1.0, linewidth=0.8)
            if width > 1:
                mean = np.convolve(values, np.ones(width) / width, mode="valid")
                axes.plot(steps[width - 1 :], mean, color=colour, linewidth=1.6, label=label)
        offset = len(lines)
        for i, (label, steps, values) in enumerate(points):
            axes.plot(steps, values, color=_COLOURS[offset + i], marker="o", markersize=4, linewidth=1.2, label=label)
        for i, (label, value) in enumerate(levels):
            axes.axhline(value, color=_COLOURS[offset + i], linestyle="--", linewidth=1.0, label=label)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        if log_scale:
            axes.set_yscale("log")
        axes.grid(alpha=0.2)
        if len(lines) + len(points) + len(levels) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # The element alone: an XML prologue has no place inside a page.
    return re.sub(r"\A.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
