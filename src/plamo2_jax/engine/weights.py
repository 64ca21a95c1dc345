"""Parameters for decoding: matrices in the activation dtype, layers unstacked, sharded over a mesh."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.adapters.open import open_model
from plamo2_jax.adapters.targets import A, B, Split
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import LoadedModel
from plamo2_jax.model import Plamo2, abstract_params, declarations, logical_axes
from plamo2_jax.model.axes import CONV, EMBED, HEAD_DIM, LAYERS, VOCAB, Axes, Declaration, is_matrix, map_with_axes
from plamo2_jax.model.low_rank import LowRank
from plamo2_jax.model.outputs_first import store_outputs_first
from plamo2_jax.model.plamo2 import period_name
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, has_quantized
from plamo2_jax.sharding.rules import param_shardings, with_shardings


def _dtype(model: Plamo2, names: tuple, dtype: Any) -> Any:
    is_matrix = sum(name != LAYERS for name in names) >= 2 and CONV not in names
    return model.activation_dtype if is_matrix else dtype


def cast_matrices(model: Plamo2, params: dict) -> dict:
    """Cast every matrix to the model's activation dtype.

    The network casts matrices before it uses them, so this cast does not change a bit of its results. Decoding is bound by reading
    weights, and bfloat16 halves the bytes to read. Vectors (norms, decay rates, step sizes) and the convolution are used in float32
    and keep their dtype.
    """

    def cast(names: Axes, leaf: Any) -> Any:
        return leaf if isinstance(leaf, QuantizedArray) else leaf.astype(_dtype(model, names, leaf.dtype))

    return map_with_axes(cast, logical_axes(model), params)


def abstract_weights(model: Plamo2) -> dict:
    """Return the tree of `jax.ShapeDtypeStruct` of a model's parameters for inference.

    Matrices have the activation dtype; vectors have float32. With a mesh, the parameters are sharded by the strategy "tensor". Without a
    mesh, all parameters are on the first device.
    """
    names, shapes = logical_axes(model), abstract_params(model)
    cast = map_with_axes(
        lambda axes, leaf: jax.ShapeDtypeStruct(leaf.shape, _dtype(model, axes, leaf.dtype)), names, shapes
    )
    if model.mesh is None:
        return cast
    placed = with_shardings(cast, param_shardings(names, cast, model.mesh, "tensor"))
    return map_with_axes(_ordered, names, placed) if _on_tpu(model) else placed


def _on_tpu(model: Plamo2) -> bool:
    device = jax.local_devices()[0] if model.mesh is None else model.mesh.devices.flat[0]
    return device.platform == "tpu"


def _order(names: Axes) -> tuple[int, ...]:
    """Return the order of a parameter's axes in TPU memory. The last axis changes fastest.

    A TPU multiplies by tiles of the last two axes. A projection to heads [embed, heads, head_dim] contracts embed, which must be one of
    them. Otherwise, each call of a program would change the order.
    """
    order = list(range(len(names)))
    if names[-1] == HEAD_DIM and EMBED in names[:-2]:
        order.insert(len(order) - 2, order.pop(names.index(EMBED)))
    return tuple(order)


def _ordered(names: Axes, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    layout = Format(Layout(_order(names)), leaf.sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _reorder(model: Plamo2, params: dict) -> dict:
    """Return parameters in the order of `_order` on TPU, one by one."""
    if not _on_tpu(model):
        return params

    def one(names: Axes, leaf: Any) -> Any:
        order = _order(names)
        if not isinstance(leaf, jax.Array) or order == tuple(range(leaf.ndim)):
            return leaf
        return jax.device_put(leaf, Format(Layout(order), leaf.sharding), donate=True)

    return map_with_axes(one, logical_axes(model), params)


def order_for_cpu(model: Plamo2, params: dict) -> dict:
    """Return parameters with every float32 projection stored as [outputs, inputs] (`OutputsFirst`), if they are on a CPU.

    On other platforms, on a mesh, and for other dtypes, the parameters are returned as they are. Projections are copied one by one.

    Args:
        model: the network, without a scan over layers.
        params: its parameters.
    """
    devices = {device for leaf in jax.tree.leaves(params) for device in leaf.devices()}
    on_cpu = {device.platform for device in devices} == {"cpu"} and not _on_tpu(model)
    if not on_cpu or model.mesh is not None or model.scan_layers:
        return params

    def one(declared: Declaration, leaf: Any) -> Any:
        # The tables of the vocabulary have this order, and are looked up.
        is_projection = is_matrix(declared.names) and VOCAB not in declared.names
        if not is_projection or not isinstance(leaf, jax.Array) or leaf.dtype != jnp.float32:
            return leaf
        return store_outputs_first(leaf, contraction_axes(declared))

    declared = declarations(model)
    return jax.tree.map(one, declared, params, is_leaf=lambda leaf: isinstance(leaf, Declaration))


def load_weights(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    ema: bool = False,
    dtype: Any = None,
    mesh: Mesh | None = None,
    scan_layers: bool = False,
) -> tuple[Plamo2, LoadedModel]:
    """Load a model for inference. Tensors are read, cast and placed one by one, so the peak memory is little above the result.

    Args:
        path: run folder, RUN@STEP, RUN@ema, folder in Hugging Face format, or folder of adapters (merged into their base model).
        step: step of a run folder's checkpoint; None: the step in `path`, or else the newest.
        ema: load the moving average of a run's parameters.
        dtype: dtype of activations and matrices; None: float32 on CPU and bfloat16 elsewhere.
        mesh: mesh over which heads, MLP columns and vocabulary are sharded; None: use the first device.
        scan_layers: scan over the layers. This is slower to decode and faster to compile. Quantized layers of different formats are not
            scanned.

    Returns:
        The network, and the contents of the folder with the parameters for this network.

    Raises:
        PlamoError: the folder is not a model, or a file in it is not valid (see `adapters.open.open_model`).
    """

    def network(config: ModelConfig) -> Plamo2:
        return Plamo2(config, dtype=None if dtype is None else jnp.dtype(dtype), mesh=mesh, scan_layers=scan_layers)

    loaded = open_model(path, step=step, ema=ema, abstract=lambda config: abstract_weights(network(config)))
    params, scan_layers = loaded.params, scan_layers and loaded.scan_layers
    model = network(loaded.config)
    # The parameters are stacked for scan_layers, or for a model with merged adapters, which is also in float32 and not sharded.
    if loaded.scan_layers:
        stacked = model.clone(scan_layers=True)
        params = cast_matrices(stacked, params)
        params = params if scan_layers else unstack(stacked, params)
        if mesh is not None and not has_quantized(params):
            params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, abstract_weights(model)))
    return model, dataclasses.replace(loaded, params=order_for_cpu(model, _reorder(model, params)))


def decoding_params(model: Plamo2, params: dict, device: jax.Device) -> dict:
    """Return a copy of the parameters of a training run for decoding: cast, one subtree per period, and placed as the model needs them.

    Args:
        model: the network for decoding, without a scan over layers.
        params: stacked parameters, in any layout on the devices of the model's mesh.
        device: the device to use if the model has no mesh.
    """
    params = unstack(model, cast_matrices(model.clone(scan_layers=True), params))
    if model.mesh is None:
        return jax.device_put(params, device)
    return _reorder(model, jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, abstract_weights(model))))


def unstack(model: Plamo2, params: dict) -> dict:
    """Return the parameters for a model without a scan over layers: one subtree per period, copied from the stacked arrays."""
    outside = dict(params)
    for i, run in enumerate(model.config.layer_groups):
        stacked = outside.pop(f"run_{i}")
        for j in range(run.count):
            outside[period_name(f"run_{i}", j)] = jax.tree.map(lambda leaf, j=j: leaf[j], stacked)
    return outside


def attach_adapters(model: Plamo2, params: dict, targets: Mapping[str, Split], adapters: Any, scale: float) -> dict:
    """Return the parameters with each target matrix replaced by a `LowRank`: the same matrix, not copied, and its adapter.

    Args:
        model: the network, without a scan over layers.
        params: its parameters.
        targets: the parameters that have adapters, by path in the stacked tree, and how each is split.
        adapters: stacked tree with `lora_a` and `lora_b` at the paths of the targets.
        scale: factor of the product A B.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    factors = flax.traverse_util.flatten_dict(adapters, sep="/")
    groups = {f"run_{i}": (i, run.count) for i, run in enumerate(model.config.layer_groups)}
    for path, split in targets.items():
        run, _, rest = path.partition("/")
        # B includes the scale, so adapters with the same rank share one compiled program.
        a = jnp.asarray(factors[f"{path}/{A}"], jnp.float32)
        b = jnp.asarray(factors[f"{path}/{B}"], jnp.float32) * scale
        if model.mesh is not None:
            a, b = (jax.device_put(each, NamedSharding(model.mesh, PartitionSpec())) for each in (a, b))
        stacked = split.stacked and run in groups
        for j in range(groups[run][1] if stacked else 1):
            place = f"{period_name(run, j)}/{rest}" if stacked else path
            factor_a, factor_b = (a[j], b[j]) if stacked else (a, b)
            leaves[place] = LowRank(leaves[place], factor_a, factor_b, None, split.contracted, 1.0)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")
