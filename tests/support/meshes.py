"""A two-layer model whose axes every mesh of eight devices divides, a batch, and how they are laid on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import preset
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.rules import batch_sharding, param_shardings, replicated, with_shardings
from plamo2_jax.train.pretraining import next_token

ROWS, LENGTH, VOCAB = 8, 32, 64
# Two key/value heads: with tensor=4 and 8 they are whole on each device.
CONFIG = preset(
    "tiny",
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    hidden_size_per_head=8,
    mamba_num_heads=8,
    mamba_d_state=8,
    attention_window_size=8,
    vocab_size=VOCAB,
)
BYTE_LENGTHS = jnp.ones(VOCAB, jnp.int32)


def make_model(mesh=None, config=CONFIG, **fields):
    """The model on a mesh, in float32."""
    return Plamo2(config, dtype=jnp.float32, mesh=mesh, **fields)


def make_batch(rows=ROWS, length=LENGTH, vocab=VOCAB):
    """Two documents and some padding in each row; rows differ in where they end."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, vocab, (rows, length + 1)).astype(np.int32)
    at = np.arange(length, dtype=np.int32)
    first, end = 5 + np.arange(rows)[:, None], length - np.arange(rows)[:, None]
    segment_ids = np.where(at < first, 1, 2) * (at < end)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segment_ids.astype(np.int32),
        "positions": np.where(at < first, at, at - first).astype(np.int32),
        "loss_weights": (segment_ids > 0).astype(np.float32),
    }


def loss_and_gradients(model, chunk=None, byte_lengths=BYTE_LENGTHS):
    """A function `(params, batch) -> loss, gradients` to be jitted."""
    objective = next_token(model, byte_lengths, z_loss=1e-3, chunk=chunk)
    return jax.value_and_grad(lambda params, batch: objective(params, batch, None)[0])


@functools.cache
def described(config=CONFIG):
    """Names of the axes and shapes of a configuration's parameters."""
    return logical_axes(Plamo2(config)), abstract_params(Plamo2(config))


def shardings_on(mesh, strategy="fsdp_tensor", config=CONFIG):
    """Where the parameters lie."""
    return param_shardings(*described(config), mesh, strategy)


def compile_on(mesh, function, strategy="fsdp_tensor"):
    """`loss_and_gradients` compiled for a mesh: parameters, batch and gradients divided over it."""
    places, batch = shardings_on(mesh, strategy), make_batch()
    rows = batch_sharding(mesh, (ROWS, LENGTH))
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows) for name, array in batch.items()}
    jitted = jax.jit(function, out_shardings=(replicated(mesh), places))
    return jitted.lower(with_shardings(described()[1], places), shapes).compile()


def relative(ours, theirs):
    """The largest error of any leaf, relative to the leaf's norm."""

    def error(a, b):
        return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)

    return max(jax.tree.leaves(jax.tree.map(error, ours, jax.device_get(theirs))))


def by_name(tree):
    """Leaves by the path that names them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
