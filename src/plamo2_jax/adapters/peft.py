"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors with the module names of the public layout.

A public matrix may consist of several of our parameters with an adapter each, such as q, k and v in qkv_proj. They become one adapter of
the public matrix: its A is their A stacked, its B is their B on a block diagonal, and its rank is the sum of their ranks. rank_pattern and
alpha_pattern hold rank and alpha of such modules, so no value of A or B changes.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors.numpy import save_file

from plamo2_jax import checkpoint
from plamo2_jax.adapters.adapter_config import CONFIG, AdapterConfig, AdapterError, read_adapter_config
from plamo2_jax.adapters.attach import Adapters, merge
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.targets import A, B, Split, find_splits
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.files import StoredTensor, inside, read_header
from plamo2_jax.convert.finite import find_nonfinite, is_finite
from plamo2_jax.convert.layout import Part, PublicTensor, public_tensors
from plamo2_jax.convert.load import LoadedModel, load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import new_folder, require_empty
from plamo2_jax.validation import shown

WEIGHTS, FOLDER = "adapter_model.safetensors", "adapter"
_PREFIX = "base_model.model."


def write_peft(
    folder: str | os.PathLike[str], config: ModelConfig, lora: LoraConfig, adapters: Any, base: str | None = None
) -> Path:
    """Write adapters, a tree like `Adapters.abstract`, into a folder in PEFT's layout. Return its absolute path.

    Earlier adapters in the folder are replaced. `base` is the name of the base model that the files mention.

    Raises:
        PlamoError: the folder holds other files.
    """
    folder = Path(folder).absolute()
    if not (folder / CONFIG).is_file():
        require_empty(folder)
    targets = Adapters(config, lora).targets
    leaves = {path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(adapters, sep="/").items()}
    tensors, ranks = {}, {}
    for tensor in public_tensors(config):
        if any(part.path in targets for part in tensor.parts):
            module = tensor.name.removesuffix(".weight")
            a, b = _to_public(tensor, targets, leaves)
            tensors[f"{_PREFIX}{module}.lora_A.weight"], tensors[f"{_PREFIX}{module}.lora_B.weight"] = a, b
            ranks[module] = len(a)
    other_ranks = {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != lora.rank}
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": other_ranks,
        "alpha_pattern": {module: lora.scale * rank for module, rank in other_ranks.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    with new_folder(folder, replace=True) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        checkpoint.write_json(partial / CONFIG, about)
    return folder


def read_peft(folder: str | os.PathLike[str], config: ModelConfig) -> tuple[dict[str, Split], Any, float]:
    """Read adapters in PEFT's layout, written by this package or by PEFT.

    Returns:
        Targets, tree of adapters (float32) and scale: the arguments of `attach.merge`.

    Raises:
        PlamoError: a file is missing or damaged, a tensor belongs to no matrix of this model, has another shape or is not finite, or the
            adapters are not plain LoRA for an unchanged base.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if optional_file(folder, name, error=AdapterError) is None:
            raise AdapterError(
                f"{folder} has no adapter: it must have tensors whose names end in lora_A.weight and "
                f"lora_B.weights: the file {name} is missing"
            )
    about = read_adapter_config(inside(folder, CONFIG))
    # Periods of one parameter may have adapters of different ranks, or none. They are padded with zeros.
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for tensor, a, b in _read_matrices(inside(folder, WEIGHTS), about, config):
        start = 0
        for part in tensor.parts:
            rows = part.size // tensor.shape[1]
            found.setdefault(part.path, {})[part.period or 0] = (a, b[start : start + rows])
            start += rows
    splits = find_splits(config)
    parts: dict[str, dict[int, Part]] = {}
    for tensor in public_tensors(config):
        for part in tensor.parts:
            parts.setdefault(part.path, {})[part.period or 0] = part
    targets, leaves = {}, {}
    for path, periods in found.items():
        if path not in splits:
            raise AdapterError(f"{folder / WEIGHTS}: {path} cannot have an adapter")
        split = splits[path]
        rank = max(len(a) for a, _ in periods.values())
        stacked = [_to_ours(parts[path][i], split, periods.get(i), rank) for i in range(len(parts[path]))]
        targets[path] = split
        leaves[f"{path}/{A}"], leaves[f"{path}/{B}"] = (np.stack(some) for some in zip(*stacked, strict=True))
    return targets, flax.traverse_util.unflatten_dict(leaves, sep="/"), 1.0


def _read_matrices(
    path: Path, about: AdapterConfig, config: ModelConfig
) -> Iterator[tuple[PublicTensor, np.ndarray, np.ndarray]]:
    """Yield every public matrix that has an adapter, with A and with B times its scale, float32."""
    stored = read_header(path)
    adapted: dict[str, tuple[PublicTensor, StoredTensor, StoredTensor]] = {}
    for tensor in public_tensors(config):
        module = tensor.name.removesuffix(".weight")
        names = [f"{_PREFIX}{module}.lora_{letter}.weight" for letter in "AB"]
        present = [name for name in names if name in stored]
        if len(present) == 1:
            raise AdapterError(
                f"{path} has only the tensor {present[0]} of an adapter: lora_A and lora_B are both needed"
            )
        if present:
            adapted[module] = tensor, *(stored.pop(name) for name in names)
    if stored:
        raise AdapterError(f"{path}: {shown(next(iter(stored)))} does not belong to a matrix of this model")
    if not adapted:
        raise AdapterError(f"{path} has no adapter")
    modules = list(adapted)
    for module, targeted in zip(modules, about.targets(modules), strict=True):
        if not targeted:
            raise AdapterError(
                f"{path} has an adapter of {module}, which target_modules in {about.path.name} does not "
                "include: the folder is inconsistent. Save the adapter again with PEFT"
            )
    ranks_and_scales = about.ranks_and_scales(modules)
    for module, (tensor, *both) in adapted.items():
        rank, scale = ranks_and_scales[module]
        if len(tensor.shape) != 2:
            raise AdapterError(f"{path} has an adapter of {module}, which is not a matrix of a product: remove it")
        wanted = (rank, tensor.shape[-1]), (tensor.shape[0], rank)
        if (both[0].shape, both[1].shape) != wanted:
            raise AdapterError(
                f"{path}: lora_A and lora_B of {module} have shapes {both[0].shape} and {both[1].shape}: they must be {wanted}, by "
                f"rank {rank} in {about.path.name} and the shape of the model"
            )
        a, b = (np.asarray(one.map(0, one.shape), np.float32) for one in both)
        with np.errstate(over="ignore", invalid="ignore"):
            b = b * np.float32(scale)
        if not (is_finite(a) and is_finite(b)):
            raise AdapterError(f"{path}: the adapter of {module} holds NaN or infinity: all values must be finite")
        yield tensor, a, b


def write_run_adapter(run: str | os.PathLike[str], step: int | None = None) -> Path:
    """Write the adapters of a run's checkpoint to the folder `adapter` of the run, and return that folder.

    Raises:
        PlamoError: the run trained no adapters, or has no such checkpoint.
    """
    config, lora, adapters = read_run(run, step)
    base = checkpoint.read_config(run).get("init_from")
    return write_peft(Path(run) / FOLDER, config, lora, adapters, base)


def read_run(
    run: str | os.PathLike[str], step: int | None = None, item: str = checkpoint.PARAMS
) -> tuple[ModelConfig, LoraConfig, Any]:
    """Return the config of the model, the settings of the adapters, and the adapters of a run's checkpoint.

    Args:
        run: run folder.
        step: checkpoint; None: the newest.
        item: PARAMS, or EMA for the moving average of the adapters.

    Raises:
        PlamoError: the run trained no adapters, or has no such checkpoint.
    """
    fields = checkpoint.lora_of(checkpoint.read_config(run))
    if not isinstance(fields, Mapping):
        raise AdapterError(f"{run} did not train adapters: its config.json has no `lora`")
    config = checkpoint.read_model_config(run)
    try:
        lora = LoraConfig(**{**fields, "targets": tuple(fields["targets"])})
        abstract = Adapters(config, lora).abstract
    except (KeyError, TypeError) as error:
        raise AdapterError(
            f"{Path(run) / checkpoint.CONFIG}: lora={shown(fields)} is not allowed: it must be an object as a "
            "training run writes it"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{Path(run) / checkpoint.CONFIG}: {error}") from error
    return config, lora, checkpoint.restore_params(run, abstract, step, item)


def read_adapters(
    model: str | os.PathLike[str], config: ModelConfig, adapter: str | os.PathLike[str], step: int | None = None
) -> tuple[Mapping[str, Split], Any, float]:
    """Read adapters for a model: targets, parameter tree and scale, as `attach.merge` takes them.

    Args:
        model: name of the model, for messages.
        config: shape of the model.
        adapter: run folder that trained adapters, one of its checkpoints, or a folder in PEFT's layout.
        step: checkpoint of a run with adapters; None: the one that `adapter` names, or else the newest.

    Raises:
        PlamoError: the folder is none of these, the adapters belong to a model of another shape, or a tensor holds NaN or infinity.
    """
    name = ModelName.parse(adapter, step=step)
    adapter = name.folder
    if optional_file(adapter, CONFIG, error=AdapterError) is not None:
        if name.step is not None or name.ema:
            raise AdapterError(f"{adapter} is in PEFT's layout, which has no steps: remove the step")
        targets, adapters, scale = read_peft(adapter, config)
        _note_other_base(adapter, read_adapter_config(inside(Path(adapter), CONFIG)).base, model)
        return targets, adapters, scale
    item = checkpoint.EMA if name.ema else checkpoint.PARAMS
    own, lora, adapters = read_run(adapter, name.step, item)
    if public_tensors(own) != public_tensors(config):
        raise AdapterError(
            f"{adapter} has adapters for a model with a different shape than {model}: use the model that the "
            "adapters were trained on"
        )
    _note_other_base(adapter, checkpoint.read_config(adapter).get("init_from"), model)
    if path := find_nonfinite(adapters):
        raise AdapterError(f"{adapter}: adapter {path} holds NaN or infinity: all values must be finite")
    return Adapters(own, lora).targets, adapters, lora.scale


def _note_other_base(adapter: Path, base: Any, model: str | os.PathLike[str]) -> None:
    """Print a note if adapters were trained on a base of another name. A copy of the base may have any name, so this is no error."""
    if isinstance(base, str) and base and ModelName.parse(base).folder.name != ModelName.parse(model).folder.name:
        print(f"{adapter} was trained on {shown(base)}; it is used with {model}", file=sys.stderr)


def merged_model(
    model: str | os.PathLike[str], adapter: str | os.PathLike[str], step: int | None = None, *, dtype: Any = None
) -> LoadedModel:
    """Open a model with adapters merged into its weights.

    Args:
        model: run folder, RUN@STEP or folder in Hugging Face format.
        adapter: run folder that trained adapters, one of its checkpoints, or a folder in PEFT's layout.
        step: checkpoint of a run with adapters; None: the one that `adapter` names, or else the newest.
        dtype: dtype of the parameters, before and after; None: float32. The sum is computed in float32.

    Raises:
        PlamoError: a folder is none of these, the adapters belong to a model of another shape, or a tensor holds NaN or infinity.
    """
    loaded = load_model(model, dtype=dtype, require_finite=True)
    targets, adapters, scale = read_adapters(model, loaded.config, adapter, step)
    params = merge(loaded.params, adapters, targets, scale, consume=True)
    if path := find_nonfinite(params):
        raise AdapterError(f"{model} and {adapter}: parameter {path} overflows when the adapter is merged")
    return LoadedModel(loaded.config, params, loaded.tokenizer)


def _orders(part: Part, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the permutations that put our input axes, and our output axes, into the order of the public tensor."""
    return tuple(np.argsort([part.order[i - split.stacked] for i in axes]) for axes in (split.inputs, split.outputs))


def _to_public(
    tensor: PublicTensor, targets: Mapping[str, Split], leaves: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return A [r, in] and B [out, r] of a public matrix, float32. r is the sum of the ranks of its parts."""
    all_a, all_b = [], []
    for part in tensor.parts:
        if part.path not in targets:
            all_b.append(np.zeros((part.size // tensor.shape[1], 0), np.float32))
            continue
        split = targets[part.path]
        a, b = (leaves[f"{part.path}/{name}"] for name in (A, B))
        if split.stacked:
            a, b = a[part.period], b[part.period]
        inputs, outputs = _orders(part, split)
        # The rank is the last axis of our A and the first of our B.
        all_a.append(a.transpose(*inputs, a.ndim - 1).reshape(-1, a.shape[-1]).T)
        all_b.append(b.transpose(*(1 + outputs), 0).reshape(-1, b.shape[0]))
    ranks = sum(b.shape[1] for b in all_b)
    joined, row, column = np.zeros((tensor.shape[0], ranks), np.float32), 0, 0
    for b in all_b:
        joined[row : row + b.shape[0], column : column + b.shape[1]] = b
        row, column = row + b.shape[0], column + b.shape[1]
    return np.ascontiguousarray(np.concatenate(all_a), np.float32), joined


def _to_ours(
    part: Part, split: Split, adapter: tuple[np.ndarray, np.ndarray] | None, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of one period of our parameter, padded with zeros to a rank."""
    inputs, outputs = _orders(part, split)
    in_shape = [part.shape[split.inputs[i] - split.stacked] for i in inputs]
    out_shape = [part.shape[split.outputs[i] - split.stacked] for i in outputs]
    if adapter is None:
        adapter = np.zeros((0, math.prod(in_shape)), np.float32), np.zeros((math.prod(out_shape), 0), np.float32)
    a, b = adapter
    a = np.pad(a, ((0, rank - len(a)), (0, 0))).T.reshape(*in_shape, rank)
    b = np.pad(b, ((0, 0), (0, rank - b.shape[1]))).reshape(*out_shape, rank)
    # The inverse of a permutation is its argsort.
    return a.transpose(*np.argsort(inputs), a.ndim - 1), b.transpose(b.ndim - 1, *np.argsort(outputs))
