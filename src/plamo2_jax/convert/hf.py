"""Conversion of whole folders between the public layout and run folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import Progress
from plamo2_jax.convert.compressed_read import holds_compressed, read_compressed
from plamo2_jax.convert.compressed_tensors import Scheme
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.load import is_run_folder, load_model, read_tokenizer, warn_of_nonfinite
from plamo2_jax.convert.model_card import FILE_NAME as CARD
from plamo2_jax.convert.model_card import CardOptions, model_card
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.quantized import float_dtypes, save_quantized
from plamo2_jax.convert.read import common_dtype, float_dtype, read_params, read_public_config, with_dtype
from plamo2_jax.convert.small_files import write_small_files
from plamo2_jax.convert.write import write_params
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.storage import new_folder, require_empty
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.tokenizer.tokenizer import Tokenizer

COMPRESSED_TENSORS = "compressed-tensors"
"""Name of the method in a run folder whose quantized weights were read from the public layout."""


def from_public(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    on_read: Progress | None = None,
) -> ModelConfig:
    """Read a folder in Hugging Face format and write a run folder with the model at step 0.

    Args:
        source: Folder with config.json and safetensors. Its tokenizer.jsonl and chat template, if any, are copied. Weights in the
            compressed-tensors format give a quantized run folder.
        output: Run folder to create; it must not exist or must be empty.
        dtype: Dtype of the written parameters; None: the dtype of the files.
        shardings: Shardings of the parameters in memory, as for `read_params`.
        on_read: Called after each block read with its bytes and the bytes of the whole model.

    Returns:
        The config of the model.

    Raises:
        PlamoError: A file or tensor is missing, damaged or has another shape. The message names it. No file is left behind.
    """
    source, output, dtype = Path(source), Path(output), float_dtype(dtype)
    require_empty(output)
    if is_run_folder(source):
        raise ConvertError(f"{source} is already a run folder: from-hf needs a folder in Hugging Face format")
    config = read_public_config(source)
    tokenizer = read_tokenizer(source, config)
    files = chat_template_files(source)
    if holds_compressed(source):
        if dtype is not None or shardings is not None:
            raise ConvertError(f"{source} has quantized weights, which cannot be cast: remove --dtype")
        params = read_compressed(source, config)
        warn_of_nonfinite(source, params)
        save_quantized(output, config, params, tokenizer, method=COMPRESSED_TENSORS, files=files)
        return config
    params = read_params(source, config, dtype=dtype, shardings=shardings, on_read=on_read)
    warn_of_nonfinite(source, params)
    checkpoint.save_model(output, config, params, tokenizer, files=files)
    return config


def to_public(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    step: int | None = None,
    ema: bool = False,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    with_code: bool = False,
    card: CardOptions | None = None,
    on_write: Progress | None = None,
) -> ModelConfig:
    """Read a run folder and write a folder in Hugging Face format.

    Args:
        source: Run folder, RUN@STEP or RUN@ema. A quantized one is written in the compressed-tensors format.
        output: Folder to create; it must not exist or must be empty.
        step: Step of the checkpoint; None: the step in `source`, or else the newest.
        ema: Write the moving average of the parameters instead of the parameters.
        dtype: Dtype of the files, float32 or bfloat16; None: the dtype of the checkpoint.
        max_shard_bytes: Largest number of tensor bytes in one safetensors file.
        with_code: Also write Python files for `trust_remote_code=True` (`remote_code`).
        card: What README.md states about the model.
        on_write: Called after each block written with its bytes and the bytes of the whole model.

    Returns:
        The config of the model.

    Raises:
        PlamoError: A file or tensor is missing, damaged or has another shape. The message names it. No file is left behind.
    """
    name, dtype = ModelName.parse(source, step=step, ema=ema), float_dtype(dtype)
    require_empty(Path(output))
    if not is_run_folder(name.folder):
        raise ConvertError(
            f"{name.folder} is already a folder in Hugging Face format, which other programs can read: to-hf needs a run folder"
        )

    files = chat_template_files(name.folder)
    newest = name.step is None and not name.ema
    step = checkpoint.latest_step(name.folder) if name.step is None else name.step
    known = {"step": step, "newest": newest, "with_code": with_code, "chat": bool(files)}

    def readme(config: ModelConfig, schemes: Mapping[str, Scheme | None] | None) -> bytes:
        return model_card(name.folder, config, card or CardOptions(), schemes=schemes, **known)

    options = {"max_shard_bytes": max_shard_bytes, "with_code": with_code, "on_write": on_write}
    options |= {"files": files, "readme": readme}
    options["linear_type"] = checkpoint.read_config(name.folder).get("linear_type", "normal")
    if checkpoint.is_quantized(name.folder):
        if with_code:
            raise ConvertError(
                f"{name.folder} is quantized, and the Python files read float matrices only: remove --with-code, or export the float model"
            )
        if dtype is None:
            dtype = common_dtype(float_dtypes(name.folder))
        loaded = load_model(name.folder, step=name.step, ema=name.ema, quantized=True)
        write_public(output, loaded.config, loaded.params, loaded.tokenizer, dtype=dtype, **options)
        return loaded.config

    def abstract(config: ModelConfig) -> Any:
        stored = checkpoint.read_metadata(checkpoint.item_folder(name.folder, name.step))
        exact = common_dtype(np.dtype(leaf.dtype) for leaf in jax.tree.leaves(stored))
        return with_dtype(abstract_params(Plamo2(config)), exact if dtype is None else np.dtype(dtype), None)

    loaded = load_model(name.folder, step=name.step, ema=name.ema, abstract=abstract)
    options["dtype"] = jax.tree.leaves(loaded.params)[0].dtype
    write_public(output, loaded.config, loaded.params, loaded.tokenizer, **options)
    return loaded.config


def write_public(
    output: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer | None,
    *,
    dtype: Any = np.float32,
    max_shard_bytes: int = 5_000_000_000,
    with_code: bool = False,
    on_write: Progress | None = None,
    files: Mapping[str, bytes] | None = None,
    readme: Callable[[ModelConfig, Mapping[str, Scheme | None] | None], bytes] | None = None,
    linear_type: str = "normal",
) -> None:
    """Write parameters in memory to a folder in Hugging Face format. The folder appears complete or not at all.

    Args:
        output: Folder to create; it must not exist or must be empty.
        params: Parameter tree of NumPy arrays, of JAX arrays that are addressable by this process, and of `QuantizedArray`, which are
            written as compressed-tensors.
        dtype: Dtype of the files, float32 or bfloat16.
        max_shard_bytes: Largest number of tensor bytes in one safetensors file.
        with_code: Also write Python files for `trust_remote_code=True` (`remote_code`).
        on_write: Called after each block written with its bytes and the bytes of the whole model.
        files: Further small files by name. A chat template among them is also written into tokenizer_config.json.
        readme: Function that returns README.md for the config and the schemes of the linear layers (None if none is quantized).
        linear_type: `RunConfig.linear_type` of the training.

    Raises:
        PlamoError: `output` is not empty, or the parameters do not fit the config.
    """
    with new_folder(output) as partial:
        options = {"dtype": dtype, "max_shard_bytes": max_shard_bytes, "on_write": on_write}
        schemes = write_params(partial, config, params, **options)
        quantized = schemes if any(schemes.values()) else None
        if not all(scheme is None or scheme.in_vllm for scheme in schemes.values()):
            print(
                f"warning: {output}: vLLM will refuse this folder, because it has no scheme for quantized activations with matrices of "
                "4 bits, with groups or with zero points. For vLLM, use --bits 8 or float8 with activations, or --bits 4 without",
                file=sys.stderr,
            )
        small = {**(files or {}), **({} if readme is None else {CARD: readme(config, quantized)})}
        settings = {"with_code": with_code, "schemes": quantized, "linear_type": linear_type}
        write_small_files(partial, config, tokenizer, np.dtype(dtype), small, **settings)
