"""Run folders: their layout, and writing and reading of parameters.

A run folder holds::

    config.json           the resolved configuration; its key "model" is the ModelConfig in public field names
    tokenizer.jsonl       the vocabulary the model was trained with (absent for a model without text)
    checkpoints/STEP/     one Orbax checkpoint per step, in separate items: inference reads only `params`
    manifest.json         checksums of the files that `save_model` wrote; each checkpoint has its own manifest

Training adds further items (optimizer state, data iterator), which this module does not read. Orbax writes a step under a temporary name
and renames it when it is complete, so a killed job leaves no incomplete step under a final name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from plamo2_jax import manifest
from plamo2_jax.config import ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model.outputs_first import OutputsFirst
from plamo2_jax.model.plamo2 import stacked_path
from plamo2_jax.model_files import check_tree_inside, optional_file
from plamo2_jax.old_config import modernize
from plamo2_jax.storage import absolute, located, new_folder, require_empty, write_whole
from plamo2_jax.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
TOKENIZER = "tokenizer.jsonl"
CHECKPOINTS = "checkpoints"
PARAMS = "params"
EMA = "ema"
"""Checkpoint item with the moving average of the parameters, in runs with ema_decay."""

# Chunk size of stored arrays. With Orbax's default of one chunk per array, a process that needs a slice would read the whole array.
_CHUNK_BYTES = 64 << 20


class CheckpointError(PlamoError):
    """A run folder or checkpoint is missing, incomplete or has another shape; the message names the file or tensor."""


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON object to a file atomically."""
    write_whole(located(path), (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the resolved configuration of a run folder, converted to the current form if an older version wrote it.

    Raises:
        CheckpointError: config.json is missing, a link out of the folder or not a JSON object, or a file beside it does not match its
            checksum.
    """
    path = optional_file(folder, CONFIG, error=CheckpointError)
    if path is None:
        if not located(folder).exists():
            raise CheckpointError(
                f"{folder} does not exist: it must be a run folder. Correct the path, or train this run first"
            )
        raise CheckpointError(f"{folder} is not a run folder: it has no {CONFIG}")
    verify_files(located(folder))
    return modernize(read_json_object(path, error=CheckpointError))


def lora_of(config: Mapping[str, Any]) -> Any:
    """Return the fields of LoraConfig in a run's config.json, or None if the run trained a whole model."""
    task = config.get("task")
    return task.get("lora") if isinstance(task, dict) else None


def is_quantized(folder: str | os.PathLike[str]) -> bool:
    """Return whether a run folder holds a quantized model, as `plamo2 quantize` writes it."""
    return "quantization" in read_config(folder)


def read_model_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read the ModelConfig of a run folder.

    Raises:
        CheckpointError: config.json is missing, unreadable or has no key "model", or a field of the model has an invalid value.
    """
    config = read_config(folder)
    if not isinstance(config.get("model"), dict):
        raise CheckpointError(f'{located(folder) / CONFIG} has no object under the key "model"')
    try:
        return ModelConfig.from_hf(config["model"])
    except ValueError as error:
        raise CheckpointError(f"{located(folder) / CONFIG}: {error}") from error


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """Return the steps of the finished checkpoints in a run folder, ascending."""
    root = absolute(folder) / CHECKPOINTS
    return sorted(reading(root, lambda: ocp.utils.checkpoint_steps(root))) if root.is_dir() else []


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """Return the step of the newest finished checkpoint, or None."""
    return max(steps(folder), default=None)


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a run folder with parameters only, at step 0. The folder appears complete or not at all.

    In a job of several processes, all of them call this function with the same arguments. Each process writes its own shards.

    Args:
        folder: Folder to create; it must not exist or must be empty.
        params: Tree of arrays of any sharding and dtype.
        files: Further small files by name, such as the chat template.

    Raises:
        PlamoError: `folder` is not empty, not on this machine, or being written by another process.
        OSError: The disk is full. The message names `folder`.
    """
    require_empty(Path(folder))
    folder = Path(folder).absolute()
    with contextlib.ExitStack() as stack:
        name = ""
        if jax.process_index() == 0:
            partial = stack.enter_context(new_folder(folder))
            name = partial.name
            write_json(partial / CONFIG, {"model": config.to_json()})
            if tokenizer is not None:
                tokenizer.save(partial / TOKENIZER)
            for file, content in (files or {}).items():
                write_whole(partial / file, content)
        partial = folder.with_name(_from_first_process(name))
        _save_params(partial / CHECKPOINTS, params)
        barrier("save_model: parameters written")
        if jax.process_index() == 0:
            manifest.write_manifest(partial / CHECKPOINTS / "0", [PARAMS])
            manifest.write_manifest(partial, sorted(path.name for path in partial.iterdir() if path.is_file()))
    barrier("save_model: done")


def frugal_handler(*trees: Any, kind: type = ocp.StandardCheckpointHandler) -> Any:
    """Return a handler that writes about one shard, and reads about one array, at a time.

    By default Orbax reads into buffers of the model's size. When it writes, it holds compressed data until the disk has taken it.
    """
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]

    def gigabytes(shapes: Iterable[tuple[int, ...]]) -> float:
        sizes = (math.prod(shape) * np.dtype(leaf.dtype).itemsize for shape, leaf in zip(shapes, leaves, strict=True))
        # Orbax refuses arrays that are not smaller than the limit, and counts whole chunks when reading.
        return (1.1 * max(sizes, default=0) + 2 * _CHUNK_BYTES) / 1e9

    return kind(
        save_concurrent_gb=gigabytes(_shard_shape(leaf) for leaf in leaves),
        restore_concurrent_gb=gigabytes(leaf.shape for leaf in leaves),
    )


def _shard_shape(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return sharding.shard_shape(leaf.shape) if isinstance(sharding, jax.sharding.Sharding) else leaf.shape


def _save_params(folder: Path, params: Any) -> None:
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    chunked = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
    handlers = {PARAMS: frugal_handler(params)}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        manager.save(0, args=ocp.args.Composite(**{PARAMS: ocp.args.StandardSave(params, save_args=chunked)}))


def _from_first_process(name: str) -> str:
    """Return, in every process, the name of the temporary folder that the first process chose."""
    if jax.process_count() == 1:
        return name
    buffer = np.zeros(256, np.uint8)
    encoded = name.encode()
    buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes().rstrip(b"\0").decode()


def restore_params(
    folder: str | os.PathLike[str],
    abstract_params: Any,
    step: int | None = None,
    item: str = PARAMS,
    *,
    verify: bool = True,
) -> Any:
    """Read the parameters of one checkpoint, and no other item.

    Args:
        folder: Run folder.
        abstract_params: Tree of `jax.ShapeDtypeStruct`. A leaf with a sharding is read directly into it, and each process reads its
            own slices; a leaf without sharding is read to the first device. Values are cast if the stored dtype is another one.
        step: Step of the checkpoint; None: the newest.
        item: PARAMS, or EMA for the moving average of the parameters.
        verify: Whether to compare the files with their checksums first, if any. False if the caller has just done this.

    Returns:
        Tree of arrays like `abstract_params`.

    Raises:
        CheckpointError: The checkpoint does not exist, or is incomplete or damaged, or a tensor is missing, unknown or has another shape.
    """
    path = item_folder(folder, step, item)
    abstract_params = jax.tree.map(_with_sharding, abstract_params)
    # Shapes first: this check takes no time, while checksums take as long as reading the files.
    metadata = check_params(folder, abstract_params, step, item)
    if verify:
        _verify_together(path.parent, item)
    with ocp.Checkpointer(frugal_handler(metadata, abstract_params)) as checkpointer:
        return reading(path, lambda: checkpointer.restore(path, args=ocp.args.StandardRestore(abstract_params)))


def restore_each(
    folder: str | os.PathLike[str], abstract_params: Any, step: int | None = None, item: str = PARAMS
) -> Iterator[tuple[str, jax.Array]]:
    """Yield the path, joined by slashes, and the array of each parameter of a checkpoint, the largest first.

    The caller drops each array before the next one is read. Arguments and errors are the same as for `restore_params`.
    """
    path = item_folder(folder, step, item)
    wanted = flax.traverse_util.flatten_dict(jax.tree.map(_with_sharding, abstract_params), sep="/")
    metadata = flax.traverse_util.flatten_dict(check_params(folder, abstract_params, step, item), sep="/")
    _verify_together(path.parent, item)
    for name in sorted(wanted, key=lambda name: -math.prod(wanted[name].shape)):
        handler = frugal_handler(metadata[name], wanted[name], kind=ocp.PyTreeCheckpointHandler)
        tree = flax.traverse_util.unflatten_dict({name: wanted[name]}, sep="/")
        arguments = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with ocp.Checkpointer(handler) as checkpointer:
            found = reading(path, functools.partial(checkpointer.restore, path, args=arguments))
        yield name, flax.traverse_util.flatten_dict(found, sep="/")[name]


def check_params(
    folder: str | os.PathLike[str], abstract_params: Any, step: int | None = None, item: str = PARAMS
) -> dict[str, Any]:
    """Check the names and shapes of a checkpoint's tensors without reading them. Return the tree of the stored shapes and dtypes.

    Arguments and errors are the same as for `restore_params`.
    """
    path = item_folder(folder, step, item)
    metadata = read_metadata(path)
    stored, wanted = _shapes(metadata), _shapes(abstract_params)
    if missing := sorted(wanted.keys() - stored.keys()):
        raise CheckpointError(f"{path} does not have {len(missing)} tensor(s) of this model, such as {_some(missing)}")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise CheckpointError(f"{path} has {len(extra)} tensor(s) that this model does not have: {_some(extra)}")
    for name, shape in wanted.items():
        if stored[name] != shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {stored[name]}: this model requires {shape}")
    return metadata


def item_folder(folder: str | os.PathLike[str], step: int | None = None, item: str = PARAMS) -> Path:
    """Return the folder of an item of a checkpoint: the parameters or their moving average.

    Raises:
        CheckpointError: There is no such checkpoint, or it has no such item.
    """
    path = step_folder(folder, step) / item
    if item == EMA and not path.is_dir():
        raise CheckpointError(
            f"{path.parent} has no {EMA}: only runs with ema_decay store a moving average. Use the checkpoint "
            "without @ema"
        )
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of the arrays in an item of a checkpoint: a tree of objects with `shape` and `dtype`.

    Raises:
        CheckpointError: The item is missing or damaged.
    """
    tree = reading(path, lambda: ocp.StandardCheckpointHandler().metadata(path).tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for name, leaf in leaves:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or leaf.shape is None or leaf.dtype is None:
            name = jax.tree_util.keystr(name, simple=True, separator="/")
            raise CheckpointError(f"{path} is incomplete or damaged: {name[:200]} is not an array")
    if not leaves or not isinstance(tree, dict):
        raise CheckpointError(f"{path} is incomplete or damaged: it has no arrays")
    return tree


def require_model(folder: str | os.PathLike[str]) -> None:
    """Raise CheckpointError if a run folder holds adapters or a quantized model instead of a model."""
    if is_quantized(folder):
        raise CheckpointError(
            f"{folder} holds a quantized model: this command needs a float32 or bfloat16 model. Use the model "
            "before quantization"
        )
    if lora_of(read_config(folder)):
        raise CheckpointError(
            f"{folder} holds adapters, not a model. Merge them into a model: plamo2 lora MODEL {folder} OUT"
        )


def check_size(
    folder: str | os.PathLike[str], config: ModelConfig, step: int | None = None, item: str = PARAMS
) -> None:
    """Raise CheckpointError if the numbers of parameters in a config and in a checkpoint differ. No memory for the model is allocated."""
    path = item_folder(folder, step, item)
    # Check the files before the metadata is read: a file that has grown could fill the memory.
    with contextlib.suppress(FileNotFoundError):
        _refuse_damage(path.parent, manifest.find_damage(path.parent, item, sizes_only=True))
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(read_metadata(path)))
    if found != (wanted := config.parameter_count()):
        raise CheckpointError(
            f"{located(folder) / CONFIG} describes a model with {wanted:,} parameters, but {path} has "
            f"{found:,}: both must belong to the same model"
        )


def verify_files(folder: Path, item: str | None = None) -> None:
    """Raise CheckpointError if a file is missing or does not match its checksum in manifest.json. Do nothing if there is no manifest.

    Args:
        folder: Run folder, or folder of one checkpoint.
        item: Name of a file or subfolder to check; None: all.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_damage(folder, manifest.find_damage(folder, item))


def _verify_together(folder: Path, item: str) -> None:
    """Run `verify_files` in all processes of a job at once. Only the first process reads the files."""
    damage = None
    if jax.process_index() == 0:
        with contextlib.suppress(FileNotFoundError):
            damage = manifest.find_damage(folder, item)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(damage is not None)):
        damage = damage or "a file does not match its checksum"
    _refuse_damage(folder, damage)


def _refuse_damage(folder: Path, damage: str | None) -> None:
    if damage is not None:
        raise CheckpointError(
            f"{folder} is damaged: {damage}. Restore it from a backup, or delete {manifest.MANIFEST} if you "
            "changed a file on purpose"
        )


def step_folder(folder: str | os.PathLike[str], step: int | None = None) -> Path:
    """Return the folder of a checkpoint, the newest if `step` is None.

    Raises:
        CheckpointError: There is no finished checkpoint of this step (the message lists the existing steps), or it has links out of the
            run folder.
    """
    found = steps(folder)
    if not found:
        raise CheckpointError(
            f"{folder} has no finished checkpoint in {located(folder) / CHECKPOINTS}: train the run until its "
            "first checkpoint, or choose another run"
        )
    if step is not None and step not in found:
        raise CheckpointError(
            f"{folder} has no finished checkpoint of step {step}: it has {', '.join(map(str, found))}"
        )
    path = absolute(folder) / CHECKPOINTS / str(found[-1] if step is None else step)
    check_tree_inside(folder, path, error=CheckpointError)
    return path


BASE_FINGERPRINT = "base_fingerprint"
"""Key of config.json: the fingerprint of the base model of a run's adapters."""
REFERENCE_FINGERPRINT = "reference_fingerprint"
"""Key of config.json: the fingerprint of the reference model of DPO."""
TEACHER_FINGERPRINT = "teacher_fingerprint"
"""Key of config.json: the fingerprint of the teacher of distillation."""


def describe_frozen(key: str, config: ModelConfig, params: Any) -> dict[str, str]:
    """Return a key of config.json with the fingerprint of a model that a run uses but does not change.

    Empty if `params` are shapes, and in a job of several processes, where no process has the whole arrays.
    """
    readable = jax.process_count() == 1 and isinstance(jax.tree.leaves(params)[0], jax.Array)
    return {key: fingerprint(config, params)} if readable else {}


def fingerprint(config: ModelConfig, params: Any, samples: int = 512) -> str:
    """Return a BLAKE2b digest of a model's config and of `samples` values of each parameter, to tell models apart.

    Equal fingerprints do not prove that all values are equal.

    Args:
        params: Parameters in any dtype and order, with or without a scan over layers.
    """
    digest = hashlib.blake2b(json.dumps(config.to_json(), sort_keys=True).encode(), digest_size=16)
    leaves: dict[str, dict[int, Any]] = {}
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, OutputsFirst))
    for keys, leaf in found:
        stacked, period = stacked_path(jax.tree_util.keystr(keys, simple=True, separator="/"))
        leaves.setdefault(stacked, {})[period or 0] = leaf
    for path, periods in sorted(leaves.items()):
        # Quantized periods of different formats have different numbers of scales.
        size = max(leaf.size for leaf in periods.values())
        places = np.unique(np.linspace(0, size * len(periods) - 1, samples).astype(np.int64))
        digest.update(path.encode())
        for number, period in enumerate(sorted(periods)):
            leaf = periods[period]
            inside = places[places // size == number] - number * size
            indices = np.unravel_index(inside[inside < leaf.size], leaf.shape)
            values = leaf.pick(indices) if isinstance(leaf, OutputsFirst) else leaf[indices]
            digest.update(np.asarray(jax.device_get(values), np.float32).tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without TensorStore's description of the array and of its source code."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = re.split(r" \[(?:tensorstore_spec|source locations)=", line)[0][:600]
    # The text of these errors, such as a single key, is meaningless without the error's name.
    nameless = isinstance(error, ValueError | OSError) or type(error) is Exception
    return line if line and nameless else f"{type(error).__name__} {line}".strip()


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    # Without a sharding, Orbax would require the devices that wrote the checkpoint, which may not exist here.
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def reading(path: Path, read: Callable[[], Any]) -> Any:
    """Call `read`, and replace errors of Orbax and TensorStore on damaged files by a CheckpointError.

    For damaged metadata they raise many kinds of errors, such as KeyError, TypeError and AttributeError.
    """
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is incomplete or damaged: {first_line(error)[:200]}") from error


def barrier(name: str) -> None:
    """Wait until every process of the job has called this function. Do nothing in a job of one process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
