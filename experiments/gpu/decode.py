"""Decoding of the 8B in bfloat16 on one GPU: tokens per second, and bytes read per second against the memory's published bandwidth.

    python experiments/gpu/decode.py --output decode.json

Random weights are created on the device in the dtype they are used in, one period of layers at a time: no float32 copy of the model exists.
The engine decodes greedily in bursts of 32 tokens, with a cache of 2,048 tokens. The bytes of a step are the weights (the embedding once,
for the logits), the keys and values of the window, and the states of the Mamba layers, which are read and written.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from part import Record, command, jax_device, parse, spread

from plamo2_jax.config import ModelConfig, preset
from plamo2_jax.engine.engine import CAPACITY, Engine
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.step import empty_state
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import abstract_weights, cast_matrices
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.model.cache import MambaCache
from plamo2_jax.model.plamo2 import period_name

# Bytes per second: data sheets of H100, H200, A100 80GB and B200, SXM.
BANDWIDTH = {
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA B200": 8e12,
}
BATCHES, LENGTH, BURSTS = (1, 16), 2048, 12
# Seconds of bursts of a batch.
SECONDS = 15.0


def random_weights(model: Plamo2) -> dict:
    """Return random weights as `abstract_weights` describes them, created one period at a time.

    Args:
        model: The network, without a scan over layers. All its periods are equal.

    Raises:
        ValueError: The model has periods of several kinds.
    """
    config = model.config
    if len(config.layer_groups) != 1:
        raise ValueError("random_weights: the periods of the model must be equal")
    periods = config.layer_groups[0].count
    short = model.clone(config=dataclasses.replace(config, num_hidden_layers=config.period), mesh=None)

    # The compiler removes what a function does not return, and fuses the cast with the creation of a weight.
    @functools.partial(jax.jit, static_argnums=1)
    def make(key, of_period):
        params = cast_matrices(short, init_params(short, key))
        inside = params.pop(period_name("run_0", 0))
        return inside if of_period else params

    # The generator of the hardware compiles and runs faster than the default.
    keys = jax.random.split(jax.random.key(0, impl="rbg"), periods + 1)
    weights = make(keys[-1], False)
    for period in range(periods):
        weights[period_name("run_0", period)] = make(keys[period], True)
    wanted = abstract_weights(model.clone(mesh=None))
    same = jax.tree.map(lambda leaf, shape: (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), weights, wanted)
    if not all(jax.tree.leaves(same)):
        raise ValueError("random_weights: the weights do not have the shapes and dtypes of the model")
    return weights


def step_bytes(model: Plamo2, params: dict, rows: int, length: int) -> dict[str, int]:
    """Return the bytes that a decoding step must move, by part."""

    def size(tree) -> int:
        return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))

    weights = size(params)
    if not model.config.tie_word_embeddings:
        # Of the table of the input, only a row per token is read.
        weights -= size(params["embedding"])
    cache = jax.eval_shape(lambda: empty_state(model.clone(mesh=None), rows, length)).cache
    layers = jax.tree.leaves(cache.runs, is_leaf=lambda node: isinstance(node, MambaCache))
    states = sum(size(layer) for layer in layers if isinstance(layer, MambaCache))
    return {"weights": weights, "keys_and_values": size(cache.runs) - states, "states": 2 * states}


def burst_seconds(engine: Engine, rows: int, bursts: int) -> list[float]:
    """Return the seconds of bursts of CAPACITY tokens of every row."""
    tokens = (bursts + 2) * CAPACITY + 1
    for row in range(rows):
        request = Request(np.array([row + 5], np.int32), SamplingConfig(temperature=0.0), StopConfig(tokens), (), 0, 0)
        engine.insert(row, engine.prefill(request.prompt), request)
    seconds = []
    for number in range(bursts + 2):
        begun = time.perf_counter()
        burst = engine.step(CAPACITY)
        taken = time.perf_counter() - begun
        if not (burst.filled == CAPACITY).all() or not np.isfinite(burst.logprobs).all():
            raise SystemExit(
                f"a burst of {rows} rows generated {burst.filled} tokens, or log-probabilities are not finite"
            )
        if number >= 2:  # The first burst compiles.
            seconds.append(taken)
        if sum(seconds) > SECONDS:
            break
    return seconds


def measure(record: Record, config: ModelConfig, rows: int, length: int, bursts: int, generator: Generator) -> None:
    """Measure a batch size."""
    device = jax.devices()[0]
    begun = time.perf_counter()
    engine = Engine(generator.model, generator.params, slots=rows, max_length=length)
    seconds = burst_seconds(engine, rows, bursts)
    whole = time.perf_counter() - begun
    a_step = [each / CAPACITY for each in seconds]
    parts = step_bytes(generator.model, generator.params, rows, length)
    rate = sum(parts.values()) / spread(a_step)["median"]
    published = BANDWIDTH.get(device.device_kind)
    record.add(
        parameters=config.parameter_count(),
        rows=rows,
        cache_length=length,
        step_seconds={**spread(a_step), "bursts": len(seconds)},
        tokens_per_second=float(f"{rows / spread(a_step)['median']:.5g}"),
        bytes_per_step=parts,
        gigabytes_per_second=float(f"{rate / 1e9:.4g}"),
        published_gigabytes_per_second=None if published is None else published / 1e9,
        share_of_bandwidth=None if published is None else round(rate / published, 3),
        peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
        seconds_with_compilation=round(whole, 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parse(__doc__, argv)
    device = jax_device(options.dry_run)
    record = Record(options.output, command(__file__, options), options.dry_run, device.device_kind)
    config, batches, length, bursts = preset("plamo-2-8b"), BATCHES, LENGTH, BURSTS
    if options.dry_run:
        sizes = {"hidden_size": 32, "intermediate_size": 32, "mamba_num_heads": 2, "vocab_size": 320}
        config, batches, length, bursts = preset("tiny", **sizes), (2,), 256, 1
    model = Plamo2(config, dtype=jnp.dtype(jnp.bfloat16), scan_layers=False)
    with jax.default_device(device):
        generator = Generator(model, random_weights(model))
        # Without this, the first compiled functions would get uncommitted arrays.
        generator.params = jax.device_put(generator.params, device)
        for rows in batches:
            measure(record, config, rows, length, bursts, generator)
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
