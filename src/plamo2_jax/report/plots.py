"""Draw the curves of a run as SVG. The script of the page shows the values under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import escape

_COLORS = 7
"""Number of colors c0, c1, … in the page's CSS: the Okabe-Ito palette, which color-blind readers can tell apart."""
_LARGEST = 1e100
"""Larger values are not drawn: differences between them could overflow."""
_POINTS = 300
"""Maximum number of points of a curve on the page. Longer curves are thinned out evenly."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 240, 54, 410, 8, 206
"""Size of a plot, and edges of its axes, in the units of its viewBox."""
EDGES = (_LEFT, _RIGHT, _TOP, _BOTTOM)
"""Left, right, top and bottom of the axes, for the script."""

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Label, steps, values."""


class _Axes:
    """The scales of a plot."""

    def __init__(self, steps: Sequence[float], values: Sequence[float], log_scale: bool):
        self.log = log_scale
        self.first, self.last = _padded(min(steps), max(steps), 0.0)
        scaled = [math.log10(value) for value in values] if log_scale else values
        self.low, self.high = _padded(min(scaled), max(scaled), 0.04)

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * (_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        scaled = math.log10(value) if self.log else value
        return _BOTTOM - (scaled - self.low) / (self.high - self.low) * (_BOTTOM - _TOP)

    def path(self, steps: Sequence[float], values: Sequence[float]) -> str:
        points = (f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in zip(steps, values, strict=True))
        return "M" + "L".join(points)

    def value_ticks(self) -> list[float]:
        if not self.log:
            return _ticks(self.low, self.high, 5)
        if self.high - self.low < 1:
            low, high = 10**self.low, 10**self.high
            return [tick for tick in _ticks(low, high, 5) if low <= tick <= high and tick > 0]
        exponents = range(math.ceil(self.low), math.floor(self.high) + 1)
        return [10.0**exponent for exponent in exponents[:: max(1, len(exponents) // 5)]]


def curves(
    title: str,
    lines: Sequence[Curve],
    points: Sequence[Curve] = (),
    levels: Sequence[tuple[str, float]] = (),
    log_scale: bool = False,
) -> str:
    """Return a plot over training steps as HTML with an `<svg>` element; an empty text if no value can be drawn.

    Args:
        title: quantity of the vertical axis, with its unit.
        lines: curves of many values, drawn as thin lines under their running mean over 1/50 of the run.
        points: curves of few values, drawn with markers.
        levels: horizontal lines for comparison. Line i has the color of curve i of `points`.
        log_scale: whether the vertical axis is logarithmic.
    """
    lines, points = ([curve for each in some if (curve := _drawable(each, log_scale))[1]] for some in (lines, points))
    if not lines and not points:
        return ""
    everything = [*lines, *points]
    values = [value for _, _, found in everything for value in found] + [value for _, value in levels]
    axes = _Axes([step for _, steps, _ in everything for step in steps], values, log_scale)
    parts, legend, shown = _grid(axes), [], []
    for i, (label, steps, found) in enumerate(lines):
        width = max(1, len(found) // 50)
        if width > 1:
            parts.append(f'<path class="thin c{i % _COLORS}" d="{axes.path(*_thinned(steps, found))}"/>')
            steps, found = steps[width - 1 :], np.convolve(found, np.ones(width) / width, mode="valid").tolist()
            label = f"{label}, mean of {width} steps"
        steps, found = _thinned(steps, found)
        parts.append(f'<path class="line c{i % _COLORS}" d="{axes.path(steps, found)}"/>')
        if len(found) == 1:
            parts.append(_marker(axes, steps[0], found[0], i))
        shown.append((label, i, steps, found))
    for i, (label, steps, found) in enumerate(points, start=len(lines)):
        steps, found = _thinned(steps, found)
        parts.append(f'<path class="line c{i % _COLORS}" d="{axes.path(steps, found)}"/>')
        parts += [_marker(axes, step, value, i) for step, value in zip(steps, found, strict=True)]
        shown.append((label, i, steps, found))
    legend += [(label, i, "") for label, i, _, _ in shown]
    for i, (label, value) in enumerate(levels, start=len(lines)):
        y = axes.y(value)
        parts.append(f'<path class="level c{i % _COLORS}" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        legend.append((label, i, "dashed"))
    data = {
        "axes": [axes.first, axes.last, axes.low, axes.high, int(log_scale)],
        "curves": [[label, i % _COLORS, steps, [float(f"{value:.4g}") for value in found]] for label, i, steps, found in shown],
    }  # fmt: skip
    keys = "".join(f'<span><i class="{kind} c{i % _COLORS}"></i>{escape(label)}</span>' for label, i, kind in legend)
    return (
        f'<figure class="plot" data-plot="{escape(json.dumps(data, separators=(",", ":")))}"><div class="title">{escape(title)}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over steps">{"".join(parts)}</svg>'
        + (f"<figcaption>{keys}</figcaption>" if len(legend) > 1 or "mean of" in legend[0][0] else "")
        + "</figure>"
    )


def _grid(axes: _Axes) -> list[str]:
    """Return the lines and numbers of both axes."""
    parts = []
    for tick in axes.value_ticks():
        y = axes.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(axes.first, axes.last, 5):
        anchor = "end" if axes.x(tick) > _RIGHT - 12 else "middle"
        parts.append(f'<text x="{axes.x(tick):.1f}" y="{_BOTTOM + 16}" text-anchor="{anchor}">{_number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    return parts


def _marker(axes: _Axes, step: float, value: float, number: int) -> str:
    return f'<circle class="c{number % _COLORS}" cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" r="3"/>'


def _drawable(curve: Curve, log_scale: bool) -> Curve:
    """Return a curve without the values that cannot be drawn, with a short label."""
    label, steps, values = curve
    kept = [
        (step, value)
        for step, value in zip(steps, values, strict=True)
        if abs(value) <= _LARGEST and (value > 0 or not log_scale)
    ]
    return label[:60], [step for step, _ in kept], [value for _, value in kept]


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most `_POINTS` points of a curve, with the first and the last."""
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _POINTS)).round().astype(int))
    return [steps[i] for i in kept], [values[i] for i in kept]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Return a range that is not empty, with a margin on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        middle = max(abs(low), abs(high)) * 0.05 or 1.0
        return low - middle, high + middle
    return low - share * (high - low), high + share * (high - low)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers in a range."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def _number(value: float) -> str:
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.6g}".removeprefix("-0") if value == 0 else f"{value:,.6g}"
