"""Tiny models: one for tests that are about something else, two that look trained for surgery, and the tokens to compare them on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import ModelConfig, preset
from plamo2_jax.model import Plamo2, init_params


def tiny(**fields) -> ModelConfig:
    """Return the model of tests that are about something else than the network: a layer of Mamba and one of attention.

    With `num_hidden_layers=1` it is the layer of attention alone, which compiles in a third of the time.

    Args:
        fields: fields of the configuration to change. The default vocabulary is that of `support.tokenizers.byte_tokenizer`.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "mamba_num_heads": 2}
    return preset("tiny", **(sizes | {"vocab_size": 320} | fields))


TIED = preset(
    "tiny",
    hidden_size=24,
    num_hidden_layers=4,
    intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=8,
    mamba_num_heads=4,
    mamba_d_state=6,
    mamba_chunk_size=8,
    attention_window_size=6,
    vocab_size=61,
    initializer_range=0.2,
)
# The last period is shorter; full attention with a RoPE base of its own; one group of queries; wide enough that dt_rank follows.
UNTIED = dataclasses.replace(
    TIED,
    hidden_size=1088,
    num_hidden_layers=3,
    num_key_value_heads=1,
    full_attention_idx=(1,),
    rope_local_theta=1e3,
    tie_word_embeddings=False,
    rms_norm_eps=1e-3,
    initializer_range=0.1,
)
CONFIGS = {"tied": TIED, "untied": UNTIED}


def make_params(config, seed=0):
    """Return parameters that all differ from their initial values, as after training."""
    params = jax.jit(functools.partial(init_params, Plamo2(config)))(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params
    )


@functools.cache
def applied(config):
    """The compiled network of a shape, (params, tokens, segment_ids) -> logits."""
    model = Plamo2(config)
    return jax.jit(lambda params, tokens, segment_ids: model.apply({"params": params}, tokens, segment_ids)[0])


def make_tokens(config):
    tokens = np.random.default_rng(7).integers(0, config.vocab_size, (2, 14)).astype(np.int32)
    segment_ids = np.array([[1] * 9 + [2] * 5, [1] * 12 + [0] * 2], np.int32)
    return tokens, segment_ids


def logits(config, params):
    """Logits at the positions that are no padding."""
    tokens, segment_ids = make_tokens(config)
    return np.asarray(applied(config)(params, jnp.asarray(tokens), jnp.asarray(segment_ids)))[segment_ids != 0]


def difference(a, b):
    """Relative L2."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def make_batch(config):
    """The tokens as a batch to learn from."""
    tokens, segment_ids = make_tokens(config)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": segment_ids,
        "positions": np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
        "loss_weights": (segment_ids != 0).astype(np.float32),
    }
