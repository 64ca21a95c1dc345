"""The PLaMo 2 network: embedding, layer groups, final norm, logits.

The same call trains, prefills in pieces of any length, and decodes:

    model = Plamo2(preset("tiny"))
    params = init_params(model, jax.random.key(0))
    logits, _ = model.apply({"params": params}, tokens, segment_ids)                    # whole rows
    logits, cache = model.apply({"params": params}, piece, cache=model.init_cache(b, 4096))
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from plamo2_jax.config import LayerGroup, ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.block import Period, Remat, recomputed
from plamo2_jax.model.cache import Cache, Context, KeyDtype, advance, init_cache, make_context
from plamo2_jax.model.layers import OBSERVED, RMSNorm
from plamo2_jax.model.linear import lookup, multiplies_few_rows, multiply
from plamo2_jax.model.parameters import DeclaredParameter, parameter
from plamo2_kernels.attention import Implementation as AttentionImplementation
from plamo2_kernels.quant import Implementation as ProductImplementation
from plamo2_kernels.ssd import Implementation

# The einsum of the logits.
_LOGITS = "btd,vd->btv"


class Plamo2(nn.Module):
    """The PLaMo 2 network.

    Attributes:
        config: Shape of the network.
        dtype: dtype of the activations; None: bfloat16 on accelerators, float32 on CPU. Parameters, norm statistics, softmax, the state of
            the scan and the logits are float32.
        implementation: Implementation of the selective scan.
        remat: Which activations the backward pass recomputes.
        mesh: Devices over which a batch is divided: rows over data × fsdp, tokens over sequence, heads over tensor (see `model.parallel`).
            With a cache, tokens are not divided. None: XLA decides from the shardings of the arguments.
        attention_implementation: Implementation of attention.
        scan_layers: Run the periods of a layer group by `nn.scan` over stacked parameters. False: run them one after another, each with its
            own parameters (see `engine.weights.unstack`). This decodes faster, because a scan copies the weights and state of every
            period out of the stack for each token. But the program grows with the number of periods, and `remat` has no effect.
        product_implementation: Implementation of products with weights (see `linear.multiply`), and of attention of one token to a
            cache. The engine decodes with "auto". With a mesh, it must be "xla" or "reference": XLA cannot divide the C++ kernels over
            devices.
        key_dtype: dtype of keys and values in a cache. int8 has a scale for each head of each token; None: the dtype of the activations.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None
    implementation: Implementation = "auto"
    remat: Remat = "none"
    mesh: jax.sharding.Mesh | None = None
    attention_implementation: AttentionImplementation = "auto"
    scan_layers: bool = True
    product_implementation: ProductImplementation = "xla"
    key_dtype: KeyDtype = None

    def setup(self) -> None:
        """Create the submodules."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        table = {axes.VOCAB: c.vocab_size, axes.EMBED: c.hidden_size}
        self.embedding = parameter(self, "embedding", init, table)
        if not c.tie_word_embeddings:
            self.lm_head = parameter(self, "lm_head", init, table)
        period = recomputed(Period, self.remat)

        def stacked(group: LayerGroup, name: str) -> nn.Module:
            scanned = nn.scan(
                period,
                variable_axes={"params": 0, OBSERVED: 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=group.count,
                metadata_params={nn.PARTITION_NAME: axes.LAYERS},
            )
            return scanned(c, group.kinds, *settings, name=name)

        def separate(group: LayerGroup, name: str) -> list[nn.Module]:
            return [Period(c, group.kinds, *settings, name=period_name(name, i)) for i in range(group.count)]

        mesh = parallel.divided(self.mesh)
        settings = self.implementation, self.attention_implementation, mesh, self.product_implementation
        # A group of one period is scanned too, so that every layer parameter has the axis `layers`.
        make = stacked if self.scan_layers else separate
        self.runs = [make(group, f"run_{i}") for i, group in enumerate(c.layer_groups)]
        # The table that computes the logits declares no contraction axis, so the scale of this norm is declared as the reader instead.
        self.final_norm = RMSNorm(
            1.0, c.rms_norm_eps, contracts=True, product_implementation=self.product_implementation
        )

    @property
    def activation_dtype(self) -> jnp.dtype:
        """dtype of the activations on this platform."""
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
        """Compute the logits of the next token at every position.

        Args:
            tokens: Token ids.
            segment_ids: 0 for padding, otherwise the number of the document; None: each row is one document. Nothing crosses a boundary
                between documents. Padding may be anywhere in a row.
            positions: Position of each token, increasing by one, in its document or its row (RoPE is relative); None: counted from the
                start of the row.
            cache: State after the tokens before these, from `init_cache`. A new segment starts from an empty state.

        Returns:
            Logits in float32 (meaningless at padding), and the cache after these tokens (None if none was given).
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
        """Compute the input of `logits`: the normalized residual stream, in the activation dtype.

        The arguments are the same as for `__call__`. `embedding_noise` is added to the embedded tokens.
        """
        context = make_context(tokens, segment_ids, positions, cache)
        x, caches = self._layers(tokens, context, cache, embedding_noise)
        return x, None if cache is None else advance(cache, caches, context)

    def features_deferred(
        self, tokens: Int[Array, "b t"], segment_ids: Int[Array, "b t"], cache: Cache
    ) -> tuple[Float[Array, "b t d"], Callable[[Int[Array, "b t"]], Cache]]:
        """Compute features of tokens, and decide afterwards which of them to keep. This requires `scan_layers=False`.

        Returns:
            The features, and a function that returns the cache after the tokens whose segment, its argument, is not 0. These must be the
            first tokens of each row. The function belongs to the trace of this call.
        """
        context = make_context(tokens, segment_ids, None, cache).replace(deferred=True)
        x, caches = self._layers(tokens, context, cache, None)

        def commit(segment_ids: Int[Array, "b t"]) -> Cache:
            kept = context.replace(segment_ids=segment_ids)
            return advance(cache, jax.tree.map(lambda of_layer: of_layer(kept), caches), kept)

        return x, commit

    def _layers(
        self,
        tokens: Int[Array, "b t"],
        context: Context,
        cache: Cache | None,
        embedding_noise: Float[Array, "b t d"] | None,
    ) -> tuple[Float[Array, "b t d"], tuple]:
        """Return the features, and the new cache of every layer in the structure of `Cache.runs` (see `Context.deferred`)."""
        x = lookup(self.embedding, tokens, self.activation_dtype)
        # Each device looks up all tokens of its data group in the columns that it holds. Columns are exchanged for tokens afterwards.
        # Otherwise, XLA would gather the table on every device, and sum a gradient of its size.
        x = self._place(x, (axes.DATA,), (), (axes.FSDP, axes.SEQUENCE))
        x = self.gather_channels(x if embedding_noise is None else x + embedding_noise.astype(x.dtype))
        caches = []
        for i, group in enumerate(self.runs):
            old = None if cache is None else cache.runs[i]
            if self.scan_layers:
                x, new = group(x, old, context)
            else:
                new = []
                for j, period in enumerate(group):
                    x, state = period(x, None if old is None else old[j], context)
                    new.append(state)
            x = self.gather_channels(x)
            caches.append(tuple(new) if isinstance(new, list) else new)
        return self.final_norm(x), tuple(caches)

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Compute logits in float32 from features."""
        weight = self.embedding if self.config.tie_word_embeddings else self.lm_head
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        logits = multiply(_LOGITS, x, weight, dtype, implementation=self.product_implementation)
        return self._place(logits, axes.ROWS, (axes.SEQUENCE,), (axes.TENSOR,))

    def decoding_logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Compute logits of few tokens. The results are the same as from `logits`, up to rounding."""
        weight = self.embedding if self.config.tie_word_embeddings else self.lm_head
        b, t, d = x.shape
        native = multiplies_few_rows(_LOGITS, x, weight, self.product_implementation)
        if native or b * t == 1 or not isinstance(weight, jax.Array) or self.mesh is not None:
            return self.logits(x)

        def table_first(x, weight):
            # With the table as the first operand, XLA on CPU needs half the time. The barriers keep it from swapping the operands.
            few = jax.lax.optimization_barrier(x.reshape(b * t, d).T)
            logits = jax.lax.optimization_barrier(
                multiply("db,vd->vb", few, weight, preferred_element_type=jnp.float32)
            )
            return logits.T.reshape(b, t, -1)

        return jax.lax.platform_dependent(x, weight, cpu=table_first, default=lambda x, _: self.logits(x))

    def gather_channels(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Divide rows and tokens over the mesh, with all channels of a token on one device. Without a mesh, return x.

        Without this constraint, XLA would divide the activations like the weights.
        """
        return self._place(x, axes.ROWS, (axes.SEQUENCE,), ())

    def spread_rows(self, x: Float[Array, "b c"]) -> Float[Array, "b c"]:
        """Divide rows over all devices, with all channels of a row on one device. Without a mesh, return x."""
        every = (axes.DATA, axes.FSDP, axes.SEQUENCE, axes.TENSOR)
        divisible = self.mesh is not None and x.shape[0] % self.mesh.size == 0
        return self._place(x, every if divisible else axes.ROWS, ())

    def _place(self, x: Array, *mesh_axes: tuple[str, ...]) -> Array:
        """Divide each axis over its mesh axes. An axis that is not a multiple of them (a short row, a small batch) is not divided."""
        if parallel.divided(self.mesh) is None:
            return x
        parts = [math.prod(self.mesh.shape[name] for name in over) for over in mesh_axes]
        spec = [
            (over or None) if size % n == 0 else None for over, size, n in zip(mesh_axes, x.shape, parts, strict=True)
        ]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def init_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache in the activation dtype, stacked if `scan_layers`. For the arguments, see `cache.init_cache`."""
        c = self.config
        key_heads = parallel.cached_heads(self.mesh, c.num_attention_heads, c.num_key_value_heads)
        return init_cache(
            c,
            batch_size,
            max_length,
            self.activation_dtype,
            stacked=self.scan_layers,
            key_heads=key_heads,
            key_dtype=self.key_dtype,
        )


def period_name(run: str, index: int) -> str:
    """Return the name of the parameters of one period in a model with scan_layers=False."""
    return f"{run}_period_{index}"


def stacked_path(path: str) -> tuple[str, int | None]:
    """Return the path of a parameter in the stacked model, and its index on the axis `layers` (None if the path is not of one period)."""
    run, period, rest = re.fullmatch(r"(run_\d+)(?:_period_(\d+))?(.*)|.*", path).groups()
    return (path, None) if period is None else (run + rest, int(period))


def period_paths(config: ModelConfig, path: str) -> tuple[list[str], bool]:
    """Return the paths, in a model with scan_layers=False, of the parameters that a path means, and whether they are stacked in it."""
    run, _, rest = path.partition("/")
    counts = {f"run_{i}": group.count for i, group in enumerate(config.layer_groups)}
    if run not in counts:
        return [path], False
    return [f"{period_name(run, j)}/{rest}" for j in range(counts[run])], True


def period_leaf(leaves: Mapping[str, Any], path: str) -> Any:
    """Return the parameter at a path of a model with scan_layers=False from the flat tree of a model with or without a scan over layers.

    Args:
        leaves: Arrays and other weights, by path.
        path: Path of a parameter, of one period if it belongs to a layer.

    Returns:
        The leaf, one period of it, or None if there is none.
    """
    if path in leaves:
        return leaves[path]
    stacked, period = stacked_path(path)
    return leaves[stacked][period] if period is not None and stacked in leaves else None


def _init_boxed(model: Plamo2, rng: Array):
    # The parameters do not depend on the input, so it is a single token. No mesh can divide it, and not every kernel accepts it.
    model = model.clone(mesh=None, implementation="auto", attention_implementation="auto")
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def init_params(model: Plamo2, rng: Array) -> dict:
    """Return random parameters, a tree of float32 arrays. Use it in `jax.jit` to shard them at once, or in `jax.eval_shape`."""
    return nn.meta.unbox(_init_boxed(model, rng))


@functools.lru_cache(maxsize=64)
def _abstract_boxed(config: ModelConfig, scan_layers: bool) -> dict:
    """Return the parameters as boxes of `jax.ShapeDtypeStruct`. They depend on no other field of `Plamo2`, and tracing takes 0.3 s."""
    return jax.eval_shape(lambda: _init_boxed(Plamo2(config, scan_layers=scan_layers), jax.random.key(0)))


def _map_boxed(function: Callable[[DeclaredParameter], Any], model: Plamo2) -> dict:
    boxed = _abstract_boxed(model.config, model.scan_layers)
    return jax.tree.map(function, boxed, is_leaf=lambda leaf: isinstance(leaf, DeclaredParameter))


def abstract_params(model: Plamo2) -> dict:
    """Return the shapes and dtypes of the parameters."""
    return _map_boxed(lambda box: box.value, model)


def declarations(model: Plamo2) -> dict:
    """Return the `axes.Declaration` of each parameter, as a tree."""
    return _map_boxed(lambda box: box.declaration, model)


def logical_axes(model: Plamo2) -> dict:
    """Return the axis names of each parameter, as a tree."""
    return jax.tree.map(lambda declared: declared.names, declarations(model))
