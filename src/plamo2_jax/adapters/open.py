"""Opening of models with or without adapters. Adapters are merged into their base in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from plamo2_jax import checkpoint
from plamo2_jax.adapters.attach import Adapters, merge
from plamo2_jax.adapters.peft import CONFIG as PEFT_CONFIG
from plamo2_jax.adapters.peft import FOLDER, AdapterError, merged_model, read_run
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import LoadedModel, is_run_folder, load_model, read_tokenizer
from plamo2_jax.convert.names import ModelName
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model import Plamo2, abstract_params


def open_model(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    ema: bool = False,
    abstract: Callable[[ModelConfig], Any] | None = None,
) -> LoadedModel:
    """Open a run folder, which may be quantized, a folder in Hugging Face format, or a folder of adapters in PEFT's layout.

    Adapters are merged into their base: the `init_from` of their run, or the `base_model_name_or_path` of adapter_config.json, which must
    be a folder on this machine.

    Args:
        path: the folder, or the name of a checkpoint, such as RUN@STEP.
        step: checkpoint of a run folder; None: the one that `path` names, or else the newest.
        ema: the moving average instead of the parameters.
        abstract: see `convert.load.load_model`. A model with adapters ignores it: its parameters are stacked and float32.

    Raises:
        PlamoError: the folder is none of these, it or the base is damaged, or the adapters were trained on another base.
    """
    name = ModelName.parse(path, step=step, ema=ema)
    folder, step, ema = name.folder, name.step, name.ema
    if _is_peft(folder):
        if step is not None or ema:
            raise AdapterError(f"{folder} is in PEFT's layout, which has no steps: remove the step")
        base = _base_of(folder)
        if not isinstance(base, str) or not ModelName.parse(base).folder.is_dir():
            raise AdapterError(
                f"{folder} has adapters whose base, {str(base)[:100]!r}, is not a folder on this machine. To "
                f"merge them into another base, use plamo2 lora MODEL {folder} OUT"
            )
        return merged_model(base, folder)
    if not is_run_folder(folder) or not checkpoint.lora_of(checkpoint.read_config(folder)):
        return load_model(folder, step=step, ema=ema, abstract=abstract, quantized=True)
    return _with_base(folder, step, ema)


def model_folders(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders that describe a model: its own, and with adapters also the run that trained them and their base.

    A file of the model that one of them lacks, such as the chat template, is in the next.

    Args:
        path: as in `open_model`. The folder need not exist.

    Raises:
        PlamoError: the description of the adapters is damaged.
    """
    folder = ModelName.parse(path).folder
    found, base = [folder], None
    if _is_peft(folder):
        base = _base_of(folder)
        if folder.name == FOLDER:
            found.append(folder.parent)
    elif (folder / checkpoint.CONFIG).is_file() and is_run_folder(folder):
        described = checkpoint.read_config(folder)
        base = described.get("init_from") if checkpoint.lora_of(described) else None
    if isinstance(base, str):
        found.append(ModelName.parse(base).folder)
    return [each for each in found if each == folder or each.is_dir()]


def _is_peft(folder: Path) -> bool:
    return (folder / PEFT_CONFIG).is_file() and not (folder / checkpoint.CONFIG).exists()


def _base_of(folder: Path) -> Any:
    return read_json_object(folder / PEFT_CONFIG, error=AdapterError).get("base_model_name_or_path")


def _with_base(folder: Path, step: int | None, ema: bool) -> LoadedModel:
    """Return the model of a run that trained adapters."""
    described = checkpoint.read_config(folder)
    base = described.get("init_from")
    if not isinstance(base, str):
        raise AdapterError(
            f"{folder / checkpoint.CONFIG}: init_from is {str(base)[:100]!r}: it must be the base model of the adapters"
        )
    config, lora, adapters = read_run(folder, step, checkpoint.EMA if ema else checkpoint.PARAMS)
    try:
        params = load_model(base).params
    except ValueError as error:
        raise AdapterError(
            f"{folder} has adapters for {base}, which cannot be opened: {error}. To merge them into another "
            f"base, use plamo2 lora MODEL {folder} OUT"
        ) from error
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, abstract_params(Plamo2(config)))]
    if shapes[0] != shapes[1]:
        raise AdapterError(
            f"{folder} has adapters for a model with a different shape than {base}: use the model that the "
            "adapters were trained on"
        )
    expected = described.get(checkpoint.BASE_FINGERPRINT)
    if expected is not None and checkpoint.fingerprint(config, params) != expected:
        raise AdapterError(
            f"{folder} has adapters for an earlier version of {base}, whose weights have changed. To merge "
            f"them anyway, use plamo2 lora MODEL {folder} OUT"
        )
    merged = merge(params, adapters, Adapters(config, lora).targets, lora.scale, consume=True)
    return LoadedModel(config, merged, read_tokenizer(folder, config))
