"""Train step of the 1B on one GPU: time, MFU and memory.

    python experiments/gpu/train_step.py --output train_step.json [--implementation pallas_gpu]

Shape, task and AdamW are those of configs/pretrain_1b.py: bfloat16 activations, float32 parameters and optimizer state. Batch and
rematerialization are those of ROWS and REMAT, chosen for 80 GB. Tokens are random; the speed does not depend on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from part import Record, command, jax_device, parse, spread

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.flops import model_flops_utilization

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain_1b.py"
ROWS, REMAT, LOSS_CHUNK = 8, "dots", 1024
STEPS, SECONDS = 20, 25.0
TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "mamba_num_heads": 2,
    "vocab_size": 320,
}


def one_gpu(config: RunConfig, rows: int, remat: str, dry_run: bool) -> RunConfig:
    """Return the config of a run for one device."""
    data = dataclasses.replace(config.data, batch_size=rows)
    config = dataclasses.replace(config, data=data, accumulation=1, remat=remat, mesh=MeshConfig(), steps=10_000)
    config = dataclasses.replace(config, loss_chunk=LOSS_CHUNK, sharding="fsdp_tensor")
    if dry_run:
        data = dataclasses.replace(data, sequence_length=32)
        config = dataclasses.replace(config, data=data, model=preset("tiny", **TINY), loss_chunk=16)
    return config


def random_batch(config: RunConfig) -> dict[str, np.ndarray]:
    """Return a full batch of three documents a row."""
    shape = (config.data.batch_size, config.data.sequence_length)
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(1, shape[1], size=(shape[0], 2)), axis=1)
    places = np.arange(shape[1])
    segment_ids = 1 + (places >= ends[:, :1]) + (places >= ends[:, 1:])
    starts = np.concatenate([np.zeros((shape[0], 1), ends.dtype), ends], axis=1)
    tokens = rng.integers(0, config.model.vocab_size, size=shape)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segment_ids": segment_ids,
        "positions": places - np.take_along_axis(starts, segment_ids - 1, axis=1),
    }
    return {**{k: v.astype(np.int32) for k, v in batch.items()}, "loss_weights": np.ones(shape, np.float32)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parse(
        __doc__,
        argv,
        implementation={"default": "xla", "help": "implementation of the scan: xla or pallas_gpu"},
        rows={"type": int, "default": ROWS, "help": "rows of 4,096 tokens"},
        remat={"default": REMAT, "help": "rematerialization, as in RunConfig"},
    )
    device = jax_device(options.dry_run)
    record = Record(options.output, command(__file__, options), options.dry_run, device.device_kind)
    rows = 2 if options.dry_run else options.rows
    config = one_gpu(load_config(CONFIG), rows, options.remat, options.dry_run)
    program = build_train_program(config, [device], implementations={"implementation": options.implementation})
    begun = time.perf_counter()
    step = program.jit().lower(*program.arguments).compile()
    compiling = time.perf_counter() - begun
    memory = step.memory_analysis()
    state, batch = program.create_state(), program.put(random_batch(config))
    seconds, losses = [], []
    # The first steps fill the allocator and the caches.
    for number in range(3 if options.dry_run else 3 + STEPS):
        begun = time.perf_counter()
        state, metrics = step(state, batch, program.task.frozen)
        losses.append(float(jax.block_until_ready(metrics)["loss"]))
        if number >= 2:
            seconds.append(time.perf_counter() - begun)
        if sum(seconds) > SECONDS:
            break
    taken = spread(seconds)
    tokens, length = batch["tokens"].size, config.data.sequence_length
    rate = tokens / taken["median"]
    statistics = device.memory_stats() or {}
    record.add(
        preset="tiny" if options.dry_run else "plamo-2-1b",
        parameters=config.model.parameter_count(),
        implementation=options.implementation,
        rows=rows,
        length=length,
        remat=config.remat,
        loss_chunk=config.loss_chunk,
        seconds={**taken, "steps": len(seconds)},
        tokens_per_second=round(rate),
        mfu=model_flops_utilization(config.model, length, rate, device.device_kind, 1),
        compile_seconds=round(compiling, 1),
        # The state is donated: its arguments are its results.
        compiler_bytes=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        peak_bytes=statistics.get("peak_bytes_in_use"),
        memory_bytes=statistics.get("bytes_limit"),
        losses=[losses[0], losses[-1]],
    )
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
