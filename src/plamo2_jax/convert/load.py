"""One way to open a model, whoever wrote it: a run folder of ours or a folder of the public layout."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import CONFIG, INDEX, SINGLE, read_json
from plamo2_jax.convert.finite import find_nonfinite
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import read_params, read_public_config
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model_files import optional_file
from plamo2_jax.tokenizer.tokenizer import FILE_NAME, Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to apply: `Plamo2(config).apply({"params": params}, tokens)`."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    """None where the folder has no tokenizer.jsonl."""


def is_run_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of ours (True) or of the public layout (False), judged by its config.json and what lies beside it.

    Raises:
        ConvertError: it is neither.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConvertError(
            f"{folder} is not a folder; a model is a run folder or a folder with config.json and safetensors"
        )
    config = read_json(folder, CONFIG)
    if isinstance(config.get("model"), dict):
        return True
    if config.get("model_type") == "plamo2" or (folder / SINGLE).exists() or (folder / INDEX).exists():
        return False
    raise ConvertError(
        f'{folder / CONFIG} describes no model: a run folder has the key "model" there, the public layout "model_type": "plamo2"'
    )


def read_shape(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the shape of a model, which may be named as RUN@STEP; no weight is read.

    Raises:
        ValueError: the folder is no model, or its config.json is damaged.
    """
    folder = ModelName.parse(path).folder
    return checkpoint.read_model_config(folder) if is_run_folder(folder) else read_public_config(folder)


def read_tokenizer(folder: str | os.PathLike[str], config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside a model, or None.

    Raises:
        ValueError: a malformed row, a link out of the folder, or more rows than the model's embedding has.
    """
    folder = Path(folder)
    path = optional_file(folder, FILE_NAME, error=ConvertError)
    if path is None:
        return None
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConvertError(
            f"{path} has {tokenizer.vocab_size} rows, more than the model's vocab_size={config.vocab_size}"
        )
    return tokenizer


def load_model(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: Any = None,
    shardings: Any = None,
    ema: bool = False,
    require_finite: bool = False,
) -> LoadedModel:
    """Open a model from a run folder or a folder of the public layout.

    A parameter that holds NaN or infinity is named on stderr.

    Args:
        path: the folder, or the name of a checkpoint, such as RUN@STEP (see `names.ModelName`).
        step: checkpoint of a run folder; None: the one that `path` names, or else the newest.
        dtype: of the parameters; None: float32.
        shardings: a `jax.sharding.Sharding` for all parameters or a tree of them; None: the first local device. Each process reads
            only the slices that its devices hold.
        ema: the moving average of a run's parameters instead of the parameters.
        require_finite: refuse NaN and infinity, which no operation on weights gets rid of.

    Raises:
        ValueError: the folder is neither kind, or what it holds is missing, damaged or of another shape; the message names it.
    """
    name = ModelName.parse(path, step=step, ema=ema)
    loaded = _load_model(name, jnp.dtype(jnp.float32 if dtype is None else dtype), shardings)
    if require_finite and (parameter := find_nonfinite(loaded.params)):
        raise ConvertError(f"{path}: parameter {parameter} holds NaN or infinity: this model cannot be used")
    if not require_finite:
        warn_of_nonfinite(path, loaded.params)
    return loaded


def _load_model(name: ModelName, dtype: jnp.dtype, shardings: Any) -> LoadedModel:
    folder, step = name.folder, name.step
    if is_run_folder(folder):
        config = checkpoint.read_model_config(folder)
        checkpoint.require_model(folder)
        item = checkpoint.EMA if name.ema else checkpoint.PARAMS
        checkpoint.check_size(folder, config, step, item)
        abstract = _with(abstract_params(Plamo2(config)), dtype, shardings)
        params = checkpoint.restore_params(folder, abstract, step, item)
        return LoadedModel(config, params, read_tokenizer(folder, config))
    if step is not None or name.ema:
        raise ConvertError(f"{folder} is of the public layout and has no steps; leave the step out")
    config = read_public_config(folder)
    tokenizer = read_tokenizer(folder, config)
    return LoadedModel(config, read_params(folder, config, dtype=dtype, shardings=shardings), tokenizer)


def warn_of_nonfinite(path: str | os.PathLike[str], params: Any) -> None:
    """Name the first parameter that holds NaN or infinity on stderr."""
    parameter = find_nonfinite(params)
    if parameter and jax.process_index() == 0:
        print(
            f"{path}: parameter {parameter} holds NaN or infinity: what this model computes has no meaning",
            file=sys.stderr,
        )


def load_params(path: str | os.PathLike[str], config: ModelConfig, abstract: Any) -> Any:
    """Read the parameters of a model whose shape is known.

    Args:
        path: a run folder, a folder of the public layout, or the name of a checkpoint, such as RUN@STEP.
        config: shape of the model.
        abstract: tree of `jax.ShapeDtypeStruct` with shardings, which the parameters are read straight into.

    Raises:
        ValueError: the folder is neither kind, or a tensor is missing, damaged or of another shape than the model's; the message names it.
    """
    name = ModelName.parse(path)
    if is_run_folder(name.folder):
        item = checkpoint.EMA if name.ema else checkpoint.PARAMS
        return checkpoint.restore_params(name.folder, abstract, name.step, item)
    if name.step is not None or name.ema:
        raise ConvertError(f"{name.folder} is of the public layout and has no steps; leave the step out")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return read_params(name.folder, config, dtype=jnp.float32, shardings=shardings)


def _with(abstract: Any, dtype: jnp.dtype, shardings: Any) -> Any:
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings), abstract)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s), abstract, shardings)
