"""Quantization of a model: embedding and head first, then the layers in order, each on the outputs of the quantized layers before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import axes
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, stored_order
from plamo2_jax.quantize.config import MatrixFormat, QuantizeConfig, matrices
from plamo2_jax.quantize.equalize import awq_scales_by_moment, smoothquant_scales
from plamo2_jax.quantize.gptq import gptq
from plamo2_jax.quantize.layers import Layer, LayerStream, Moments, layers
from plamo2_jax.quantize.progress import Progress
from plamo2_jax.quantize.report import MatrixReport, stored_bytes
from plamo2_jax.quantize.rounding import (
    DTYPES,
    absmax_scales,
    output_error,
    round_to_nearest,
    searched_scales,
    spread,
)

_BLOCK_BYTES = 1 << 26
"""Largest block of a matrix, in float32, that is rounded at once without moments."""


def quantize_leaves(
    config: ModelConfig,
    leaves: dict[str, Any],
    formats: Mapping[str, MatrixFormat],
    options: QuantizeConfig,
    batches: Sequence[Batch] = (),
    *,
    progress: Progress | None = None,
    on_layer: Callable[[Layer], None] | None = None,
) -> list[MatrixReport]:
    """Quantize the parameters of a model in place: each float matrix is released when it is replaced.

    Args:
        config: Config of the model.
        leaves: Parameters by path, of the model without a scan over layers.
        formats: Format of each matrix to quantize (`config.matrix_formats`).
        options: Method and its settings.
        batches: Calibration batches; needed by every method except rtn.
        progress: Finished layers of an earlier, interrupted call.
        on_layer: Called after each layer.

    Raises:
        PlamoError: The method needs calibration batches, or a Hessian cannot be factorized.
    """
    reports: list[MatrixReport] = []
    declared = {path: each for path, (each, _) in matrices(config).items()}
    inside = tuple(f"{layer.path}/" for layer in layers(config))
    for path, form in formats.items():
        if not path.startswith(inside):
            leaves[path], report = round_matrix(path, declared[path], leaves[path], form, options, None)
            reports.append(report)
    if not options.calibrated:
        for layer in layers(config):
            for path in [path for path in formats if path.startswith(f"{layer.path}/")]:
                leaves[path], report = round_matrix(path, declared[path], leaves[path], formats[path], options, None)
                reports.append(report)
            if on_layer:
                on_layer(layer)
        return reports
    if not batches:
        raise PlamoError(f"method={options.method} needs calibration data: give --calibration")
    stream = LayerStream(config, batches)
    stream.start(leaves["embedding"])
    for layer in layers(config):
        own = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{layer.path}/")}
        found = progress.load(layer.index) if progress else None
        if found is None:
            done = _quantize_layer(stream, layer, own, formats, options)
            if progress:
                progress.store(layer.index, own, done)
        else:
            own, done = found
        reports += done
        leaves |= own
        if layer.index + 1 < config.num_hidden_layers:
            stream.advance(layer, own)
        if on_layer:
            on_layer(layer)
    return reports


def _quantize_layer(
    stream: LayerStream,
    layer: Layer,
    leaves: dict[str, Any],
    formats: Mapping[str, MatrixFormat],
    options: QuantizeConfig,
) -> list[MatrixReport]:
    """Quantize the matrices of a layer in place, in the order of the data flow."""
    reports = []
    for stage in stream.stages(layer, leaves):
        chosen = [path for path in stage if path in formats]
        if not chosen:
            continue
        # dt_up is not multiplied by `project`, so its inputs are not recorded.
        recorded = axes.DT_RANK not in stream.declared[stage[0]].contracts
        moments = stream.moments(layer, leaves, stage[0]) if recorded else None
        if moments is not None:
            moments = _equalize(stream, layer, leaves, stage, moments, formats, options)
        for path in chosen:
            leaves[path], report = round_matrix(
                path, stream.declared[path], leaves[path], formats[path], options, moments
            )
            reports.append(report)
    return reports


def _equalize(
    stream: LayerStream,
    layer: Layer,
    leaves: dict[str, Any],
    stage: Sequence[str],
    moments: Moments,
    formats: Mapping[str, MatrixFormat],
    options: QuantizeConfig,
) -> Moments:
    """Scale the inputs of a stage's matrices, fold the scales into the parameter before it, and return the new moments."""
    producer = scalable_producer(layer, stream.declared, stage)
    chosen = [path for path in stage if path in formats]
    if producer is None:
        return moments
    weights = tuple(as_matrix(stream.declared[path], leaves[path]) for path in chosen)
    if options.method.startswith("awq") and any(formats[path].kind == "int4" for path in chosen):
        kinds, groups = tuple(formats[path].kind for path in chosen), tuple(formats[path].groups for path in chosen)
        scales = awq_scales_by_moment(weights, moments.magnitude, moments.hessian, kinds, groups)
    elif options.method == "smoothquant" and axes.EMBED in stream.declared[stage[0]].contracts:
        scales = smoothquant_scales(weights, moments.largest, options.alpha)
    else:
        return moments
    fold(stream.declared, leaves, producer, stage, scales)
    hessian = moments.hessian / (scales[:, None] * scales[None, :])
    return Moments(hessian, moments.magnitude / scales, moments.largest / scales)


def scalable_producer(layer: Layer, declared: Mapping[str, axes.Declaration], stage: Sequence[str]) -> str | None:
    """Return the parameter whose outputs are the inputs of a stage up to a factor per channel, or None.

    The norm before a mixer or an MLP scales its channels. The MLP's product with `up` is multiplied by the gate and read by `down`, so a
    factor of a column of `up` is a factor of an input of `down`. Every other input depends on its producer nonlinearly.
    """
    contracts = declared[stage[0]].contracts
    part = "mlp" if "/mlp/" in stage[0] else "mixer"
    if contracts == (axes.EMBED,):
        return f"{layer.path}/pre_{part}_norm/scale"
    return f"{layer.path}/mlp/up" if contracts == (axes.MLP,) else None


def fold(
    declared: Mapping[str, axes.Declaration],
    leaves: dict[str, Any],
    producer: str,
    readers: Sequence[str],
    scales: Float[Array, " c"],
) -> None:
    """Divide the channels that a parameter produces by scales, and multiply the inputs of their readers by them, in place.

    Args:
        declared: Declaration of each parameter.
        leaves: Parameters of a layer, by path.
        producer: Scale of a norm, which multiplies by its offset + scale, or a matrix [inputs, channels], which may be quantized.
        readers: All matrices that read the channels. They are not quantized yet.
        scales: Scale of each channel.
    """
    made = leaves[producer]
    offset = declared[producer].norm_offset
    if offset is not None:
        leaves[producer] = (offset + made) / scales - offset
    elif isinstance(made, QuantizedArray):
        leaves[producer] = made.replace(scales=made.scales / scales[:, None])
    else:
        leaves[producer] = made / scales
    for path in readers:
        weight, contracted = leaves[path], contraction_axes(declared[path])
        shape = [size if i - weight.ndim in contracted else 1 for i, size in enumerate(weight.shape)]
        leaves[path] = weight * scales.reshape(shape)


def as_matrix(declared: axes.Declaration, weight: Any) -> Float[Array, "z c"]:
    """Return a parameter as a matrix [outputs, inputs], as `QuantizedArray` stores it."""
    contracted = contraction_axes(declared)
    stored = jnp.asarray(weight, jnp.float32).transpose(stored_order(weight.ndim, contracted))
    return stored.reshape(-1, math.prod(stored.shape[stored.ndim - len(contracted) :]))


def round_matrix(
    path: str,
    declared: axes.Declaration,
    weight: Any,
    form: MatrixFormat,
    options: QuantizeConfig,
    moments: Moments | None,
) -> tuple[QuantizedArray, MatrixReport]:
    """Choose scales and values of one matrix."""
    matrix, kind = as_matrix(declared, weight), form.kind
    # Without moments, rows are independent. The embedding is large, and blocks need less memory for intermediate arrays.
    size = max(1, _BLOCK_BYTES // (4 * matrix.shape[1])) if moments is None else len(matrix)
    values, scales, lost, all_of_it = [], [], 0.0, 0.0
    for start in range(0, len(matrix), size):
        block = matrix[start : start + size]
        rounded, of_groups = _round_block(path, block, form, options, moments)
        errors = _errors(block, rounded * spread(of_groups, block.shape[1]), moments)
        lost, all_of_it = lost + float(errors[0]), all_of_it + float(errors[1])
        values.append(rounded.astype(DTYPES[kind]))
        scales.append(of_groups)
    contracted = contraction_axes(declared)
    order = stored_order(weight.ndim, contracted)
    shape = tuple(weight.shape[i] for i in order)
    leaf = QuantizedArray(
        jnp.concatenate(values).reshape(shape),
        jnp.concatenate(scales).reshape(*shape[: len(shape) - len(contracted)], form.groups),
        None,
        contracted,
        form.activations,
    )
    error = math.sqrt(max(lost, 0) / max(all_of_it, 1e-30))
    sizes = (weight.size * weight.dtype.itemsize, stored_bytes(leaf))
    return leaf, MatrixReport(path, kind, *sizes, error, of_products=moments is not None)


def _round_block(
    path: str,
    matrix: Float[Array, "z c"],
    form: MatrixFormat,
    options: QuantizeConfig,
    moments: Moments | None,
) -> tuple[Float[Array, "z c"], Float[Array, "z groups"]]:
    """Return the values of some rows, as float32, and their scales."""
    scales = absmax_scales(matrix, form.groups, form.kind)
    if options.searches_clip:
        importance = jnp.ones(matrix.shape[1]) if moments is None else jnp.diagonal(moments.hessian)
        scales = searched_scales(matrix, form.groups, form.kind, importance)
    if moments is not None and options.method.endswith("gptq"):
        return _gptq(path, matrix, moments.hessian, scales, form, options), scales
    return round_to_nearest(matrix, scales, form.kind), scales


def _errors(
    matrix: Float[Array, "z c"], rounded: Float[Array, "z c"], moments: Moments | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the squared error of some rows, or of their products with the inputs if the moments are known, and the square of all."""
    if moments is None:
        return jnp.sum(jnp.square(rounded - matrix)), jnp.sum(jnp.square(matrix))
    return output_error(matrix, rounded, moments.hessian)


def _gptq(
    path: str,
    matrix: Float[Array, "z c"],
    hessian: Float[Array, "c c"],
    scales: Float[Array, "z groups"],
    form: MatrixFormat,
    options: QuantizeConfig,
) -> Float[Array, "z c"]:
    """Return GPTQ's values. If the factorization fails in float32, repeat it with ten times the damping."""
    damping = options.damping
    while damping < 10:
        values = gptq(matrix, hessian, scales, kind=form.kind, damping=damping)
        if bool(jnp.isfinite(values).all()):
            return values
        damping *= 10
    raise PlamoError(
        f"the inputs of {path} on the calibration data are not finite: GPTQ cannot use them. Check the model"
    )
