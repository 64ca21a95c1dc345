"""The files of an export beside its weights: config.json, generation_config.json, the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert import remote_code
from plamo2_jax.convert.compressed_tensors import QUANTIZATION, Scheme, quantization_config
from plamo2_jax.convert.files import CONFIG
from plamo2_jax.convert.tokenizer_files import tokenizer_config, tokenizer_json
from plamo2_jax.storage import write_whole
from plamo2_jax.tokenizer.template_files import FILE_NAME
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, OP, Tokenizer

TOKENIZER_JSON = "tokenizer.json"


def write_small_files(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    dtype: np.dtype,
    files: Mapping[str, bytes],
    *,
    with_code: bool = False,
    schemes: Mapping[str, Scheme | None] | None = None,
    linear_type: str = "normal",
) -> None:
    """Write the files of a public folder beside the weights.

    Args:
        folder: Existing folder.
        config: Shape of the model.
        tokenizer: Written as tokenizer.jsonl (exact), and as tokenizer.json and tokenizer_config.json for the Hugging Face libraries.
        dtype: Dtype of the weights.
        files: Further files by name. A chat template among them is also written into tokenizer_config.json.
        with_code: Also write Python files for `trust_remote_code=True`, and name them in `auto_map`.
        schemes: How each linear layer is quantized (`write_params`); None: the model is not quantized.
        linear_type: Products of the training, `RunConfig.linear_type`. config.json has this key unless it is "normal".
    """
    code = remote_code.config_map() if with_code else {}
    quantization = {} if schemes is None else {QUANTIZATION: quantization_config(schemes)}
    trained = {} if linear_type == "normal" else {"linear_type": linear_type}
    values = {**config.to_hf(), **trained, "torch_dtype": dtype.name, **quantization, **code}
    checkpoint.write_json(folder / CONFIG, values)
    checkpoint.write_json(folder / "generation_config.json", generation_config(config, tokenizer))
    if tokenizer is not None:
        tokenizer.save(folder)
        if (fast := tokenizer_json(tokenizer)) is not None:
            checkpoint.write_json(folder / TOKENIZER_JSON, fast)
        about = tokenizer_config(config, tokenizer) | (remote_code.tokenizer_map() if with_code else {})
        if FILE_NAME in files:
            about["chat_template"] = files[FILE_NAME].decode()  # For older readers that do not know the file.
        checkpoint.write_json(folder / "tokenizer_config.json", about)
    for name, content in (*files.items(), *(remote_code.files() if with_code else {}).items()):
        write_whole(folder / name, content)


def generation_config(config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the JSON object of a generation_config.json.

    Its list `eos_token_id` has the ids at which `plamo2 generate` stops: eos, bos (it separates documents in the published models) and op
    (the translation models end their answers with it). Other programs stop at each of them.
    """
    ends = [*config.eos_token_ids, config.bos_token_id]
    if tokenizer is not None:
        ends += [tokenizer.id_of(token) for token in (EOS, BOS, OP) if token in tokenizer.tokens]
    values = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(dict.fromkeys(id for id in ends if id is not None)),
        "pad_token_id": config.pad_token_id,
    }
    return {name: value for name, value in values.items() if value not in (None, [])}
