"""The public checkpoint layout, tensor by tensor: the parameters of this project and the rows that store them.

Only this module knows public tensor names. Reading and writing both use it.
A public tensor is a stack of `Part`s along its first axis. A part is one period of one of our parameters with its axes in another order.
Any slice of a part can be read without the rest of the file.

Public layout (names and shapes: model cards and inference ports of pfnet/plamo-2-*):

- in_proj rows are, per head, the gate z and then x; qkv_proj rows are Q | K | V; bcdt_proj rows are B | C | dt; gate_up_proj rows are
  gate | up. Linear weights are [out, in].
- conv1d.weight is [h·p, 1, k]; MLX copies store it as [h·p, k, 1]. Both are read; the first is written.
- lm_head.weight belongs to untied models only. In a file of a tied model it is ignored, as in the public code.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig

LM_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a public tensor that hold one of our parameters, or one period of it."""

    path: str
    """Path of our parameter, keys joined by "/"."""
    period: int | None
    """Index on our parameter's leading axis `layers`; None for a parameter without that axis."""
    view: tuple[int, ...]
    """Shape of the rows with merged axes split, in public axis order."""
    order: tuple[int, ...]
    """Axis a of our parameter is axis order[a] of the view."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.view)

    @property
    def inverse(self) -> tuple[int, ...]:
        """Inverse of `order`: axis a of the view is axis inverse[a] of our parameter."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one period of our parameter."""
        return tuple(self.view[axis] for axis in self.order)


@dataclasses.dataclass(frozen=True)
class PublicTensor:
    """A tensor of the public layout."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    """Parts in row order."""
    other_shapes: tuple[tuple[int, ...], ...] = ()
    """Other accepted shapes of the same bytes."""
    dtype: np.dtype | None = None
    """Dtype in a file of quantized weights; None: the dtype of the file's other weights."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def public_tensors(config: ModelConfig) -> list[PublicTensor]:
    """Return all tensors of a public checkpoint of this model, in network order."""
    v, d = config.vocab_size, config.hidden_size

    def whole(name: str, path: str, *shape: int) -> PublicTensor:
        return PublicTensor(name, shape, (Part(path, None, shape, tuple(range(len(shape)))),))

    tensors = [whole("model.embed_tokens.weight", "embedding", v, d)]
    for r, run in enumerate(config.layer_groups):
        for i, (j, kind) in itertools.product(range(run.count), enumerate(run.kinds)):
            tensors += _layer(config, kind, run.layer_index(i, j), f"run_{r}/layer_{j}", i)
    tensors.append(whole("model.norm.weight", "final_norm/scale", d))
    if not config.tie_word_embeddings:
        tensors.append(whole(LM_HEAD, "lm_head", v, d))
    return tensors


def _layer(config: ModelConfig, kind: LayerKind, index: int, root: str, period: int) -> Iterator[PublicTensor]:
    d, f, p = config.hidden_size, config.intermediate_size, config.hidden_size_per_head
    prefix = f"model.layers.layers.{index}."

    def part(path: str, view: tuple[int, ...], order: tuple[int, ...] | None = None) -> Part:
        return Part(f"{root}/{path}", period, view, tuple(range(len(view))) if order is None else order)

    def tensor(name: str, shape: tuple[int, ...], *parts: Part, other_shapes=()) -> PublicTensor:
        return PublicTensor(prefix + name, shape, parts, other_shapes)

    yield tensor("pre_mixer_norm.weight", (d,), part("pre_mixer_norm/scale", (d,)))
    if kind is LayerKind.MAMBA:
        h, n, r, k = config.mamba_num_heads, config.mamba_d_state, config.dt_rank, config.mamba_d_conv
        inner = h * p
        yield tensor("mixer.in_proj.weight", (2 * inner, d), part("mixer/in_proj", (h, 2, p, d), (1, 3, 0, 2)))
        yield tensor("mixer.conv1d.weight", (inner, 1, k), part("mixer/conv", (h, p, k)), other_shapes=((inner, k, 1),))
        yield tensor(
            "mixer.bcdt_proj.weight",
            (2 * n + r, inner),
            part("mixer/b_proj", (n, h, p), (1, 2, 0)),
            part("mixer/c_proj", (n, h, p), (1, 2, 0)),
            part("mixer/dt_down", (r, h, p), (1, 2, 0)),
        )
        yield tensor("mixer.B_norm_weight", (n,), part("mixer/b_norm", (n,)))
        yield tensor("mixer.C_norm_weight", (n,), part("mixer/c_norm", (n,)))
        yield tensor("mixer.dt_norm_weight", (r,), part("mixer/dt_norm", (r,)))
        yield tensor("mixer.dt_proj.weight", (h, r), part("mixer/dt_up", (h, r), (1, 0)))
        yield tensor("mixer.dt_bias", (h,), part("mixer/dt_bias", (h,)))
        yield tensor("mixer.A_log", (h,), part("mixer/a_log", (h,)))
        yield tensor("mixer.D", (h,), part("mixer/skip", (h,)))
        yield tensor("mixer.out_proj.weight", (d, inner), part("mixer/out_proj", (d, h, p), (1, 2, 0)))
    else:
        h, g = config.num_attention_heads, config.num_key_value_heads
        yield tensor(
            "mixer.qkv_proj.weight",
            ((h + 2 * g) * p, d),
            part("mixer/q_proj", (h, p, d), (2, 0, 1)),
            part("mixer/k_proj", (g, p, d), (2, 0, 1)),
            part("mixer/v_proj", (g, p, d), (2, 0, 1)),
        )
        yield tensor("mixer.q_weight", (h, p), part("mixer/q_scale", (h, p)))
        yield tensor("mixer.k_weight", (g, p), part("mixer/k_scale", (g, p)))
        yield tensor("mixer.o_proj.weight", (d, h * p), part("mixer/o_proj", (d, h, p), (1, 2, 0)))
    yield tensor("post_mixer_norm.weight", (d,), part("post_mixer_norm/scale", (d,)))
    yield tensor("pre_mlp_norm.weight", (d,), part("pre_mlp_norm/scale", (d,)))
    gate_up = [part(f"mlp/{name}", (f, d), (1, 0)) for name in ("gate", "up")]
    yield tensor("mlp.gate_up_proj.weight", (2 * f, d), *gate_up)
    yield tensor("mlp.down_proj.weight", (d, f), part("mlp/down", (d, f), (1, 0)))
    yield tensor("post_mlp_norm.weight", (d,), part("post_mlp_norm/scale", (d,)))
