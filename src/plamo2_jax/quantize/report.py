"""What quantization did to each matrix, and a table of it by part of the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model.quantized import QuantizedArray


@dataclasses.dataclass(frozen=True)
class MatrixReport:
    """What became of one matrix."""

    path: str
    kind: str
    """dtype of its values."""
    bytes_before: int
    bytes_after: int
    error: float
    """Norm of the error of its products on the calibration data, relative to the products; without calibration, of its weights."""
    of_products: bool = False
    """Whether `error` is an error of products."""


def stored_bytes(leaf: Any) -> int:
    """Return the bytes of a parameter on disk. Two values of 4 bits share a byte."""
    if not isinstance(leaf, QuantizedArray):
        return leaf.size * np.dtype(leaf.dtype).itemsize
    values = leaf.values.size // 2 if leaf.values.dtype == jnp.int4 else leaf.values.size
    points = 0 if leaf.zero_points is None else leaf.zero_points.size
    return values + 4 * leaf.scales.size + points


def total_bytes(leaves: Mapping[str, Any]) -> int:
    """Return the bytes of all parameters on disk."""
    return sum(map(stored_bytes, leaves.values()))


def table(config: ModelConfig, reports: Sequence[MatrixReport], bytes_before: int, bytes_after: int) -> str:
    """Format the reports as a text table, one row for each part of the network, dtype and kind of error."""
    rows: dict[tuple[str, str, bool], list[MatrixReport]] = {}
    for report in reports:
        rows.setdefault((_part(config, report.path), report.kind, report.of_products), []).append(report)
    lines = [("part", "values", "matrices", "bytes before", "bytes after", "relative error")]
    for (part, kind, of_products), each in sorted(rows.items()):
        sizes = (sum(report.bytes_before for report in each), sum(report.bytes_after for report in each))
        error = math.sqrt(sum(report.error**2 for report in each) / len(each))
        subject = "products" if of_products else "weights"
        lines.append((part, kind, str(len(each)), *(f"{size:,}" for size in sizes), f"{error:.2e} of {subject}"))
    float_before = bytes_before - sum(report.bytes_before for report in reports)
    float_after = bytes_after - sum(report.bytes_after for report in reports)
    lines.append(("other parameters", "float", "", f"{float_before:,}", f"{float_after:,}", ""))
    lines.append(("model", "", str(len(reports)), f"{bytes_before:,}", f"{bytes_after:,}", ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])] for row in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in texts)


def _part(config: ModelConfig, path: str) -> str:
    run, _, rest = path.partition("/")
    if not rest:
        return run
    if "/mlp/" in path:
        return "MLPs"
    group, layer = int(run.split("_")[1]), int(rest.split("/")[0].rpartition("_")[2])
    return "Mamba mixers" if config.layer_groups[group].kinds[layer] is LayerKind.MAMBA else "attention mixers"
