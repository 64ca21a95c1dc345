"""Pruning a stored model: load it, prune it on calibration data, and write a folder in Hugging Face format."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.hf import write_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, train_iterator
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import require_empty
from plamo2_jax.surgery.prune.cut import check_target
from plamo2_jax.surgery.prune.importance import Method
from plamo2_jax.surgery.prune.prune import DepthMethod
from plamo2_jax.surgery.prune.search import prune_best
from plamo2_jax.surgery.shapes import read_shape
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.validation import require_at_least


def prune_model(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    shapes: Sequence[ModelConfig],
    *,
    calibration: str | os.PathLike[str],
    method: Method = "activation",
    depth: DepthMethod = "influence",
    rounds: int = 1,
    batches: int = 8,
    batch_size: int = 8,
    sequence_length: int = 512,
    seed: int = 0,
    step: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    on_pruned: Callable[[ModelConfig, float], None] | None = None,
) -> ModelConfig:
    """Prune a model to a smaller shape, and write it in Hugging Face format.

    Channels and layers are selected by importance on calibration data.

    Args:
        model: run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format.
        output: folder to create: it must not exist or must be empty.
        shapes: target shapes, made by `shapes.with_sizes`. The pruned model with the lowest loss is written.
        calibration: folder of shards that `plamo2 data prepare` wrote with the model's tokenizer.
        method: how channels are ranked.
        depth: how layers are ranked.
        rounds: number of rounds of measuring and cutting.
        batches: number of calibration batches.
        batch_size: rows per calibration batch.
        sequence_length: positions per row.
        seed: random seed, for the order of the data and for the method random.
        step: checkpoint of a run folder; None: the step in `model`, or else the newest.
        dtype: dtype of the files.
        on_pruned: called with each pruned shape and its loss in nats per token of the calibration data.

    Returns:
        The config of the pruned model.

    Raises:
        PlamoError: the model or the calibration data cannot be read, a shape is no smaller shape of the model, or the output is in the way.
    """
    require_at_least(1, rounds=rounds, batches=batches)
    for name, value, kinds in (("method", method, get_args(Method)), ("depth", depth, get_args(DepthMethod))):
        if value not in kinds:
            raise PlamoError(f"{name}={value!r} is not allowed: it must be one of {', '.join(kinds)}")
    old, output = read_shape(os.fspath(model)), Path(output)
    for shape in shapes:
        check_target(old, shape)
    require_empty(output)
    files = chat_template_files(ModelName.parse(model).folder)
    loaded = load_model(model, step=step, require_finite=True)
    if loaded.tokenizer is None:
        raise PlamoError(
            f"{model} has no tokenizer.jsonl: it is needed to check the calibration data. Copy it into the folder"
        )
    data = DataConfig((MixtureItem(Path(calibration)),), sequence_length, batch_size, seed=seed, prefetch_batches=0)
    examples = list(itertools.islice(train_iterator(data, loaded.tokenizer), batches))
    best = prune_best(
        loaded.params,
        old,
        shapes,
        examples,
        on_pruned=on_pruned,
        method=method,
        depth=depth,
        rounds=rounds,
        seed=seed,
    )
    write_public(output, best.config, best.params, loaded.tokenizer, dtype=dtype, files=files)
    return best.config
