"""Loading a model from a run folder or from a folder in Hugging Face format."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.compressed_read import holds_compressed, read_compressed, require_float
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import CONFIG, INDEX, SINGLE, read_json
from plamo2_jax.convert.finite import find_nonfinite
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.quantized_read import read_quantized
from plamo2_jax.convert.read import read_params, read_public_config, with_dtype
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model.plamo2 import stacked_path
from plamo2_jax.model_files import optional_file
from plamo2_jax.tokenizer.tokenizer import FILE_NAME, Tokenizer
from plamo2_jax.validation import shown


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can be applied with `Plamo2(config).apply({"params": params}, tokens)`."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    """None if the folder has no tokenizer.jsonl."""

    @property
    def scan_layers(self) -> bool:
        """Whether the parameters are stacked for a scan over layers. Quantized layers of different formats cannot be stacked."""
        return "run_0" in self.params


def is_run_folder(folder: str | os.PathLike[str]) -> bool:
    """Return True for a run folder and False for a folder in Hugging Face format, judged by config.json and the files beside it.

    Raises:
        ConvertError: The folder is neither.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConvertError(
            f"{folder} is not a folder: a model is a run folder or a folder with config.json and safetensors"
        )
    config = read_json(folder, CONFIG)
    if isinstance(config.get("model"), dict):
        return True
    if config.get("model_type") == "plamo2" or (folder / SINGLE).exists() or (folder / INDEX).exists():
        return False
    raise ConvertError(
        f'{folder / CONFIG} does not describe a model: it must have the key "model" (run folder) or '
        '"model_type": "plamo2" (Hugging Face format)'
    )


def read_shape(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the config of a model, which may be named as RUN@STEP. No weight is read.

    Raises:
        PlamoError: The folder is not a model, or its config.json is damaged.
    """
    folder = ModelName.parse(path).folder
    return checkpoint.read_model_config(folder) if is_run_folder(folder) else read_public_config(folder)


def read_tokenizer(folder: str | os.PathLike[str], config: ModelConfig) -> Tokenizer | None:
    """Read the tokenizer in a model's folder; return None if there is none.

    Raises:
        PlamoError: A row is malformed, the file is a link out of the folder, or it has more rows than the model's embedding; or the run
            was trained with another tokenizer.
    """
    folder = Path(folder)
    path = optional_file(folder, FILE_NAME, error=ConvertError)
    if path is None:
        return None
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConvertError(
            f"{path} has {tokenizer.vocab_size} rows: at most the model's vocab_size={config.vocab_size} are allowed"
        )
    trained_with = read_json(folder, CONFIG).get("tokenizer_fingerprint") if (folder / CONFIG).is_file() else None
    if trained_with not in (None, tokenizer.fingerprint):
        raise ConvertError(
            f"{path} is not the tokenizer that the run was trained with (sha256 {shown(trained_with)}): put that one back into the folder"
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
    abstract: Callable[[ModelConfig], Any] | None = None,
    quantized: bool = False,
) -> LoadedModel:
    """Open a model from a run folder or a folder in Hugging Face format.

    A warning on stderr names the first parameter with NaN or infinity.

    Args:
        path: Folder of the model, or the name of a checkpoint, such as RUN@STEP (`names.ModelName`).
        step: Step of a run folder's checkpoint; None: the step in `path`, or else the newest.
        dtype: Dtype of the parameters; None: float32.
        shardings: A `jax.sharding.Sharding` for all parameters or a tree of them; None: the first local device. Each process reads
            only the slices of its own devices.
        ema: Load the moving average of a run's parameters instead of the parameters.
        require_finite: Raise an error instead of the warning, for operations that write a new model.
        abstract: Function from the model's config to a tree of `jax.ShapeDtypeStruct`, with or without a scan over layers. The tree
            replaces `dtype` and `shardings`. One tensor is read, cast and placed before the next.
        quantized: Accept a quantized model; its matrices are `QuantizedArray`. See `LoadedModel.scan_layers`.

    Raises:
        PlamoError: The folder is neither kind or holds a quantized model, or a file or tensor is missing, damaged or has another shape.
            The message names it.
    """
    name = ModelName.parse(path, step=step, ema=ema)
    folder, step = name.folder, name.step
    if abstract is None:
        dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)

        def abstract(config: ModelConfig) -> Any:
            return with_dtype(abstract_params(Plamo2(config)), dtype, shardings)

    if is_run_folder(folder):
        config = checkpoint.read_model_config(folder)
        if quantized and checkpoint.is_quantized(folder):
            if step is not None or name.ema:
                raise ConvertError(f"{folder} has a quantized model, which has no steps: remove the step")
            tokenizer = read_tokenizer(folder, config)
            params = read_quantized(folder, config, abstract(config))
            warn_of_nonfinite(path, params)
            return LoadedModel(config, params, tokenizer)
        checkpoint.require_model(folder)
        item = checkpoint.EMA if name.ema else checkpoint.PARAMS
        checkpoint.check_size(folder, config, step, item)
        tokenizer, wanted = read_tokenizer(folder, config), abstract(config)
        restore = checkpoint.restore_params if "run_0" in wanted else _restore_periods
        params = restore(folder, wanted, step, item)
    elif step is not None or name.ema:
        raise ConvertError(f"{folder} is in Hugging Face format, which has no steps. Omit the step")
    else:
        config = read_public_config(folder)
        tokenizer = read_tokenizer(folder, config)
        if not quantized:
            require_float(folder)
        read = read_compressed if holds_compressed(folder) else read_params
        params = read(folder, config, abstract=abstract(config))
    if require_finite and (parameter := find_nonfinite(params)):
        raise ConvertError(f"{path}: parameter {parameter} holds NaN or infinity: parameters must be finite")
    if not require_finite:
        warn_of_nonfinite(path, params)
    return LoadedModel(config, params, tokenizer)


def _restore_periods(folder: Path, abstract: Any, step: int | None, item: str) -> dict:
    """Restore the parameters of a model without a scan over layers. One stored array at a time is read and cut into its periods."""
    wanted = flax.traverse_util.flatten_dict(abstract, sep="/")
    places: dict[str, list[str]] = {}
    for path in wanted:
        places.setdefault(stacked_path(path)[0], []).append(path)

    def stored(path: str) -> jax.ShapeDtypeStruct:
        first, count = wanted[places[path][0]], len(places[path])
        if places[path] == [path]:
            return first
        sharding = first.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.ShapeDtypeStruct((count, *first.shape), first.dtype, sharding=sharding)

    tree = flax.traverse_util.unflatten_dict({path: stored(path) for path in places}, sep="/")
    params = {}
    for path, array in checkpoint.restore_each(folder, tree, step, item):
        for place in places[path]:
            period = stacked_path(place)[1]
            params[place] = array if period is None else array[period]
    return flax.traverse_util.unflatten_dict(params, sep="/")


def warn_of_nonfinite(path: str | os.PathLike[str], params: Any) -> None:
    """Print a warning on stderr that names the first parameter with NaN or infinity, if any."""
    parameter = find_nonfinite(params)
    if parameter and jax.process_index() == 0:
        problem = f"parameter {parameter} holds NaN or infinity, so the outputs of this model are not usable"
        print(f"warning: {path}: {problem}", file=sys.stderr)
