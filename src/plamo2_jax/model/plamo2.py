"""The PLaMo 2 network: embedding, runs of layers, norm, logits.

The same call trains, prefills in pieces of any length, and decodes:

    model = Plamo2(preset("tiny"))
    params = init_params(model, jax.random.key(0))
    logits, _ = model.apply({"params": params}, tokens, segment_ids)                    # whole rows
    logits, cache = model.apply({"params": params}, piece, cache=model.init_cache(b, 4096))
"""

from __future__ import annotations

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from plamo2_jax.config import LayerGroup, ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.model.block import Period, Remat, recomputed
from plamo2_jax.model.cache import Cache, init_cache
from plamo2_jax.model.context import advance, make_context
from plamo2_jax.model.layers import (
    OBSERVED,
    RMSNorm,
)
from plamo2_jax.model.linear import lookup, multiply
from plamo2_jax.model.parameters import DeclaredParameter, parameter
from plamo2_kernels.attention import Implementation as AttentionImplementation
from plamo2_kernels.ssd import Implementation


class Plamo2(nn.Module):
    """PLaMo 2.

    Attributes:
        config: shape of the network.
        dtype: of the activations; None: bfloat16 on accelerators, float32 on CPU. Parameters are float32, and so are norms' statistics,
            softmax, the scan's state and the logits.
        implementation: of the selective scan.
        remat: what the backward pass recomputes.
        mesh: devices that a batch is divided over, rows over data × fsdp, tokens over sequence, heads over tensor (see `model.parallel`);
            None: whatever XLA makes of the arguments' shardings. Calls with a cache divide rows and heads, not tokens.
        attention_implementation: of attention.
        scan_layers: apply the periods of a run by `nn.scan` over stacked parameters. False: one after the other, each with parameters
            of its own (`engine.weights.unstack`). Decoding is faster so, since a scan copies every period's weights and state out of
            the stack for each token; the program grows with the number of periods, and `remat` has no effect.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None
    implementation: Implementation = "auto"
    remat: Remat = "none"
    mesh: jax.sharding.Mesh | None = None
    attention_implementation: AttentionImplementation = "auto"
    scan_layers: bool = True

    def setup(self) -> None:
        """Declare the parameters."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        table = {axes.VOCAB: c.vocab_size, axes.EMBED: c.hidden_size}
        self.embedding = parameter(self, "embedding", init, table)
        if not c.tie_word_embeddings:
            self.lm_head = parameter(self, "lm_head", init, table)
        period = recomputed(Period, self.remat)

        def stack(run: LayerGroup, name: str) -> nn.Module:
            scanned = nn.scan(
                period,
                variable_axes={"params": 0, OBSERVED: 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=run.count,
                metadata_params={nn.PARTITION_NAME: axes.LAYERS},
            )
            return scanned(c, run.kinds, *settings, name=name)

        def separate(run: LayerGroup, name: str) -> list[nn.Module]:
            return [Period(c, run.kinds, *settings, name=period_name(name, i)) for i in range(run.count)]

        settings = self.implementation, self.attention_implementation, self.mesh
        # Scanning a run of one period too keeps one layout of parameters: every layer parameter has the axis `layers`.
        make = stack if self.scan_layers else separate
        self.runs = [make(run, f"run_{i}") for i, run in enumerate(c.layer_groups)]
        # The rows of the table that logits are read with are channels of the stream as well, so this norm's scale stands for the reader.
        self.final_norm = RMSNorm(1.0, c.rms_norm_eps, contracts=True)

    @property
    def activation_dtype(self) -> jnp.dtype:
        """The dtype of the activations on this platform."""
        if self.dtype is not None:
            return jnp.dtype(self.dtype)
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b t v"], Cache | None]:
        """Logits of the next token at every position.

        Args:
            tokens: token ids.
            segment_ids: 0 padding, otherwise the document; nothing crosses a boundary. None: one document a row. Padding may lead or
                trail a row or stand between documents.
            positions: of each token in its document (or row: RoPE is relative), rising by one. None: counted from the row's start.
            cache: state after the tokens before these, from `init_cache`; a piece that starts with another segment starts afresh.

        Returns:
            Logits in float32 (without meaning at padding), and the cache after these tokens (None if none was given).
        """
        x, cache = self.features(tokens, segment_ids, positions, cache)
        return self.logits(x), cache

    def features(
        self,
        tokens: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        cache: Cache | None = None,
        embedding_noise: Float[Array, "b t d"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Cache | None]:
        """The normed residual stream that `logits` reads; arguments as in `__call__`, and noise to add to the embedded tokens."""
        context = make_context(tokens, segment_ids, positions, cache)
        x = self._lookup(tokens)
        x = self._constrain(x if embedding_noise is None else x + embedding_noise.astype(x.dtype))
        caches = []
        for i, run in enumerate(self.runs):
            old = None if cache is None else cache.runs[i]
            if self.scan_layers:
                x, new = run(x, old, context)
            else:
                new = []
                for j, period in enumerate(run):
                    x, state = period(x, None if old is None else old[j], context)
                    new.append(state)
            x = self._constrain(x)
            caches.append(tuple(new) if isinstance(new, list) else new)
        return self.final_norm(x), None if cache is None else advance(cache, tuple(caches), context)

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Logits in float32 from features."""
        weight = self.embedding if self.config.tie_word_embeddings else self.lm_head
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        logits = multiply("btd,vd->btv", x, weight, preferred_element_type=dtype)
        return self._constrain(logits, (axes.TENSOR,))

    def _lookup(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Rows of the embedding."""
        x = lookup(self.embedding, tokens, self.activation_dtype)
        # Each device looks all its group's tokens up in the columns it holds, and columns are exchanged for tokens after that:
        # otherwise XLA gathers the table on every device, and sums a gradient of its size.
        return self._place(x, (axes.DATA,), (), (axes.FSDP, axes.SEQUENCE))

    def gather_channels(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Bring each token's channels together on a device; without a mesh, do nothing."""
        return self._constrain(x)

    def _constrain(self, x: Float[Array, "b t c"], channels: tuple[str, ...] = ()) -> Float[Array, "b t c"]:
        """Keep rows and tokens where the batch has them, channels over a mesh axis or whole. XLA would rather follow the weights."""
        return self._place(x, axes.ROWS, (axes.SEQUENCE,), channels)

    def _place(self, x: Float[Array, "b t c"], *cut: tuple[str, ...]) -> Float[Array, "b t c"]:
        """Cut each axis over the mesh axes given for it; one that they do not divide (a short row, a small batch) stays whole."""
        if self.mesh is None:
            return x
        devices = [math.prod(self.mesh.shape[name] for name in over) for over in cut]
        spec = PartitionSpec(
            *(over or None if size % n == 0 else None for over, size, n in zip(cut, x.shape, devices, strict=True))
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """An empty cache in this model's activation dtype, laid out as `scan_layers` says; see `cache.init_cache`."""
        return init_cache(self.config, batch_size, max_length, self.activation_dtype, stacked=self.scan_layers)


def period_name(run: str, index: int) -> str:
    """Name of one period's parameters in a model without a scan over layers."""
    return f"{run}_period_{index}"


def stacked_path(path: str) -> tuple[str, int | None]:
    """Where a parameter is in the model with a scan over layers: its path, and its index on the axis `layers` unless that is all of it."""
    run, period, rest = re.fullmatch(r"(run_\d+)(?:_period_(\d+))?(.*)|.*", path).groups()
    return (path, None) if period is None else (run + rest, int(period))


def _init_boxed(model: Plamo2, rng: Array):
    # One token, which no mesh divides: shapes and values do not depend on one.
    model = model.clone(mesh=None)
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def init_params(model: Plamo2, rng: Array) -> dict:
    """Parameters of a new model: a tree of float32 arrays. Jit or `jax.eval_shape` it to shard or to plan before allocating."""
    return nn.meta.unbox(_init_boxed(model, rng))


def abstract_params(model: Plamo2) -> dict:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def declarations(model: Plamo2) -> dict:
    """The tree of the parameters with an `axes.Declaration` for each."""
    boxed = jax.eval_shape(lambda: _init_boxed(model, jax.random.key(0)))
    return jax.tree.map(lambda box: box.declaration, boxed, is_leaf=lambda leaf: isinstance(leaf, DeclaredParameter))


def logical_axes(model: Plamo2) -> dict:
    """The tree of the parameters with the names of each one's axes as leaves."""
    return jax.tree.map(lambda declared: declared.names, declarations(model))
