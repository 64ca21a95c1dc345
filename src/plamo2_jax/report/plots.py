"""Draw the curves of a run as SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# The Okabe-Ito palette, which color-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Larger values are not drawn, because Matplotlib computes differences and squares of the values.
_LARGEST = 1e100
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plamo2", "axes.spines.top": False, "axes.spines.right": False}

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Label, steps, values."""


@matplotlib.rc_context(_STYLE)
def curves(
    title: str,
    lines: Sequence[Curve],
    points: Sequence[Curve] = (),
    levels: Sequence[tuple[str, float]] = (),
    log_scale: bool = False,
) -> str:
    """Return a plot over training steps as an `<svg>` element.

    Args:
        title: quantity of the vertical axis, with its unit.
        lines: curves of many values, drawn as thin lines under their running mean over 1/50 of the run.
        points: curves of few values, drawn with markers.
        levels: horizontal lines for comparison. Line i has the color of curve i of `points`.
        log_scale: whether the vertical axis is logarithmic.
    """
    lines, points = ([curve for curve in map(_drawable, some) if curve[1]] for some in (lines, points))
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, (label, steps, values) in enumerate(lines):
        width = max(1, len(values) // 50)
        thin = {"alpha": 0.25} if width > 1 else {"label": label, "marker": "." if len(values) == 1 else None}
        axes.plot(steps, values, color=_color(i), linewidth=0.8, **thin)
        if width > 1:
            mean = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], mean, color=_color(i), linewidth=1.6, label=label)
    offset = len(lines)
    for i, (label, steps, values) in enumerate(points):
        axes.plot(steps, values, color=_color(offset + i), marker="o", markersize=4, linewidth=1.2, label=label)
    for i, (label, value) in enumerate(levels):
        axes.axhline(value, color=_color(offset + i), linestyle="--", linewidth=1.0, label=_plain(label))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    if log_scale:
        axes.set_yscale("log")
    axes.grid(alpha=0.2)
    if len(lines) + len(points) + len(levels) > 1:
        axes.legend(frameon=False, fontsize=8)
    buffer = io.StringIO()
    # Matplotlib warns about fonts that only the browser has, and about logarithmic axes without positive values.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Remove the XML prologue, which is not allowed inside a page.
    return re.sub(r"\A.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def _drawable(curve: Curve) -> Curve:
    label, steps, values = curve
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if abs(value) <= _LARGEST]
    return _plain(label), [step for step, _ in kept], [value for _, value in kept]


def _plain(label: str) -> str:
    """Return a label without the characters that Matplotlib interprets: dollars, and a leading underscore."""
    return label.replace("$", r"\$").lstrip("_")[:60]


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]
