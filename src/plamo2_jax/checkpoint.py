"""The folder a model lives in: what is written where, and how parameters come back.

A run folder holds::

    config.json           the resolved configuration; its key "model" is the ModelConfig in public field names
    tokenizer.jsonl       the vocabulary the model was trained with (absent for a model of numbers only)
    checkpoints/STEP/     one Orbax checkpoint a step; every item apart, so that inference reads `params` alone
    manifest.json         checksums of the files that `save_model` wrote beside the checkpoint, which has a manifest of its own

Training adds further items beside `params` (optimizer state, data iterator); nothing here knows them. Orbax writes
a step under a temporary name and renames it when it is whole, so a killed job leaves no step that looks finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from plamo2_jax import manifest
from plamo2_jax.config import ModelConfig
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import check_tree_inside, optional_file
from plamo2_jax.old_config import modernize
from plamo2_jax.storage import absolute, address, is_remote, located, new_folder, require_empty, write_whole

CONFIG = "config.json"
TOKENIZER = "tokenizer.jsonl"
CHECKPOINTS = "checkpoints"
PARAMS = "params"
EMA = "ema"
"""Item with the moving average of the parameters, of runs that keep one."""

# Stored arrays are cut into chunks of this size. With Orbax's default, one chunk an array, the owner of a slice would read all of it.
_CHUNK_BYTES = 64 << 20


class CheckpointError(ValueError):
    """A run folder or a checkpoint is missing, incomplete or of another shape; the message names the file or tensor."""


class SavesItself(Protocol):
    """What `save_model` needs of a tokenizer."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.jsonl."""


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(located(path), (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the resolved configuration of a run folder, in today's form whatever version wrote it.

    The small files beside it are compared with their checksums, where they have any.

    Raises:
        CheckpointError: there is no config.json in it, it is a link out of the folder, it is not a JSON object, or a file is not what
            was written.
    """
    path = optional_file(folder, CONFIG, error=CheckpointError)
    if path is None:
        raise CheckpointError(f"{folder} is not a run folder: it has no {CONFIG}")
    verify_files(located(folder))
    return modernize(read_json_object(path, error=CheckpointError))


def lora_of(config: Mapping[str, Any]) -> Any:
    """Return the adapters that a run trained, from its config.json: their fields, or None for a run of a whole model."""
    task = config.get("task")
    return task.get("lora") if isinstance(task, dict) else None


def read_model_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The shape of the model in a run folder.

    Raises:
        CheckpointError: config.json is missing, unreadable or has no key "model", or a field of the model is not allowed.
    """
    config = read_config(folder)
    if not isinstance(config.get("model"), dict):
        raise CheckpointError(f'{located(folder) / CONFIG} has no object under the key "model"')
    try:
        return ModelConfig.from_hf(config["model"])
    except ValueError as error:
        raise CheckpointError(f"{located(folder) / CONFIG}: {error}") from error


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of the finished checkpoints in a run folder, ascending."""
    root = absolute(folder) / CHECKPOINTS
    return sorted(reading(root, lambda: ocp.utils.checkpoint_steps(root))) if root.is_dir() else []


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """Step of the newest finished checkpoint, or None where there is none."""
    return max(steps(folder), default=None)


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    tokenizer: SavesItself | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a run folder that holds a model and nothing else: parameters only, at step 0.

    Everything is written beside `folder` under a temporary name that replaces it at the end. In a job of several
    processes all of them call this, with the same arguments; each writes the shards it holds.

    Args:
        folder: where the model goes; it must not exist or be empty.
        config: shape of the model.
        params: tree of arrays, of any sharding and dtype.
        tokenizer: written to tokenizer.jsonl when given.
        files: further small files by name, such as the chat template.

    Raises:
        ValueError: `folder` exists and is not an empty folder, is not of this machine, or is being written by another process.
        OSError: the disk is full; the message names `folder`.
    """
    if is_remote(folder):
        raise CheckpointError(
            f"{address(folder)}: a model is written to a folder of this machine; copy it to the bucket from there"
        )
    folder = Path(folder).absolute()
    require_empty(folder)
    with contextlib.ExitStack() as stack:
        name = ""
        if jax.process_index() == 0:
            partial = stack.enter_context(new_folder(folder))
            name = partial.name
            write_json(partial / CONFIG, {"model": model_json(config)})
            if tokenizer is not None:
                tokenizer.save(partial / TOKENIZER)
            for file, content in ({} if files is None else files).items():
                write_whole(partial / file, content)
        partial = folder.with_name(_from_first_process(name))
        _save_params(partial / CHECKPOINTS, params)
        barrier("save_model: parameters written")
        if jax.process_index() == 0:
            _write_manifests(partial)
    barrier("save_model: done")


def _save_params(folder: Path, params: Any) -> None:
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    chunked = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
    handlers = {PARAMS: _frugal_handler(params)}
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        manager.save(0, args=ocp.args.Composite(**{PARAMS: ocp.args.StandardSave(params, save_args=chunked)}))


def _from_first_process(name: str) -> str:
    """The temporary folder's name, which the first process chose, in every process."""
    if jax.process_count() == 1:
        return name
    buffer = np.zeros(256, np.uint8)
    encoded = name.encode()
    buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes().rstrip(b"\0").decode()


def _write_manifests(folder: Path) -> None:
    """Write the checksums of everything in the folder of a model: of its small files, and of its checkpoint beside the checkpoint."""
    manifest.write_manifest(folder / CHECKPOINTS / "0", [PARAMS])
    manifest.write_manifest(folder, sorted(path.name for path in folder.iterdir() if path.is_file()))


def restore_params(
    folder: str | os.PathLike[str],
    abstract_params: Any,
    step: int | None = None,
    item: str = PARAMS,
    *,
    verify: bool = True,
) -> Any:
    """Read the parameters of one checkpoint, and nothing else of it.

    Args:
        folder: a run folder.
        abstract_params: tree of `jax.ShapeDtypeStruct`. A leaf with a sharding is read straight into it, each process
            taking the slices it owns; one without goes to the first device. A dtype other than the stored one casts.
        step: which checkpoint; the newest when None.
        item: PARAMS, or EMA for their moving average.
        verify: compare the files with their checksums first, where they have any. False for one who has just done so.

    Returns:
        A tree like `abstract_params`, of arrays.

    Raises:
        CheckpointError: no such checkpoint, or one that is incomplete or damaged, or whose tensors are not those asked for: a
            missing, an extra or a misshapen tensor is named.
    """
    path = item_folder(folder, step, item)
    abstract_params = jax.tree.map(_with_sharding, abstract_params)
    # Shapes first: they are compared at once, checksums take as long as reading the files.
    metadata = check_params(folder, abstract_params, step, item)
    if verify:
        _verify_together(path.parent, item)
    with ocp.Checkpointer(_frugal_handler(metadata, abstract_params)) as checkpointer:
        return reading(path, lambda: checkpointer.restore(path, args=ocp.args.StandardRestore(abstract_params)))


def check_params(
    folder: str | os.PathLike[str], abstract_params: Any, step: int | None = None, item: str = PARAMS
) -> dict[str, Any]:
    """Check names and shapes of one checkpoint's tensors without reading them; arguments and errors as for `restore_params`.

    Returns:
        A tree of the shapes and dtypes that are stored.
    """
    path = item_folder(folder, step, item)
    stored = read_metadata(path)
    _compare(path, stored, abstract_params)
    return stored


def item_folder(folder: str | os.PathLike[str], step: int | None = None, item: str = PARAMS) -> Path:
    """Folder of the parameters of one checkpoint, or of their moving average.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no such item.
    """
    path = step_folder(folder, step) / item
    if item == EMA and not path.is_dir():
        raise CheckpointError(f"{path.parent} has no {EMA}; only runs with ema_decay keep a moving average")
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """The tree of shapes and dtypes of the arrays in an item of a checkpoint, each with `shape` and `dtype`.

    Raises:
        CheckpointError: the item is missing or damaged.
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
    """Refuse a run whose parameters are adapters.

    Raises:
        CheckpointError: it is one.
    """
    if lora_of(read_config(folder)):
        raise CheckpointError(f"{folder} holds adapters, not a model: plamo2 lora MODEL {folder} OUT adds them to one")


def check_size(
    folder: str | os.PathLike[str], config: ModelConfig, step: int | None = None, item: str = PARAMS
) -> None:
    """Compare the number of parameters of a model with that of a checkpoint, before anything of the model's size is built.

    Raises:
        CheckpointError: they differ.
    """
    path = item_folder(folder, step, item)
    # Before the metadata are read: a file that has grown could fill the memory.
    with contextlib.suppress(FileNotFoundError):
        _refuse_damage(path.parent, manifest.find_damage(path.parent, item, sizes_only=True))
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(read_metadata(path)))
    if found != (wanted := config.parameter_count()):
        raise CheckpointError(
            f"{located(folder) / CONFIG} describes a model of {wanted:,} parameters; {path} holds {found:,}: one of them is of another "
            "model"
        )


def verify_files(folder: Path, item: str | None = None) -> None:
    """Compare the files of a folder with the checksums in its manifest.json; without one, do nothing.

    Args:
        folder: a run folder or the folder of one checkpoint.
        item: a file or folder in it, to which the check is limited.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_damage(folder, manifest.find_damage(folder, item))


def _verify_together(folder: Path, item: str) -> None:
    """`verify_files` in all processes of a job at once; the first one reads the files."""
    damage = None
    if jax.process_index() == 0:
        with contextlib.suppress(FileNotFoundError):
            damage = manifest.find_damage(folder, item)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(damage is not None)):
        damage = damage or "a file is not what was written"
    _refuse_damage(folder, damage)


def _refuse_damage(folder: Path, damage: str | None) -> None:
    if damage is not None:
        raise CheckpointError(
            f"{folder} is damaged: {damage}. Restore it from a copy; where a file was changed on purpose, delete {manifest.MANIFEST}"
        )


def step_folder(folder: str | os.PathLike[str], step: int | None = None) -> Path:
    """Folder of one checkpoint (the newest when `step` is None).

    Raises:
        CheckpointError: there is no finished checkpoint, or not that one (the message lists those there are), or it has links out of
            the run folder.
    """
    found = steps(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no finished checkpoint (looked in {located(folder) / CHECKPOINTS})")
    if step is not None and step not in found:
        raise CheckpointError(
            f"{folder} has no finished checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    path = absolute(folder) / CHECKPOINTS / str(found[-1] if step is None else step)
    check_tree_inside(folder, path, error=CheckpointError)
    return path


def model_json(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as `read_model_config` reads it back: public field names, JSON types."""
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def fingerprint(config: ModelConfig, params: Any, samples: int = 512) -> str:
    """Return the BLAKE2b of a model's shape and of values spread over every parameter. It tells models apart; it does not certify them."""
    digest = hashlib.blake2b(json.dumps(model_json(config), sort_keys=True).encode(), digest_size=16)
    for path, leaf in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        places = np.unique(np.linspace(0, leaf.size - 1, samples).astype(np.int64))
        values = leaf[np.unravel_index(places, leaf.shape)]
        digest.update(path.encode() + np.asarray(jax.device_get(values), np.float32).tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """What went wrong, without TensorStore's description of the array and of its own source."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = re.split(r" \[(?:tensorstore_spec|source locations)=", line)[0][:600]
    # What these say, such as a key alone, means nothing without their names.
    nameless = isinstance(error, ValueError | OSError) or type(error) is Exception
    return line if line and nameless else f"{type(error).__name__} {line}".strip()


def _frugal_handler(*trees: Any) -> ocp.StandardCheckpointHandler:
    """A handler that works on about one array at a time; by default Orbax's buffers beside the arrays come to the model's size again."""
    sizes = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for tree in trees for leaf in jax.tree.leaves(tree)]
    # It refuses an array that is not smaller than the limit; reading counts whole chunks.
    gigabytes = (1.1 * max(sizes, default=0) + 2 * _CHUNK_BYTES) / 1e9
    return ocp.StandardCheckpointHandler(save_concurrent_gb=gigabytes, restore_concurrent_gb=gigabytes)


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    # Without one Orbax would ask for the devices that wrote the checkpoint, which need not exist here.
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(path: Path, stored: Any, wanted: Any) -> None:
    """Raise, naming the first tensors that differ, unless both trees have the same names and shapes."""
    stored, wanted = _shapes(stored), _shapes(wanted)
    if missing := sorted(wanted.keys() - stored.keys()):
        raise CheckpointError(f"{path} lacks {len(missing)} tensor(s) of this model: {_some(missing)}")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise CheckpointError(f"{path} has {len(extra)} tensor(s) that this model lacks: {_some(extra)}")
    for name, shape in wanted.items():
        if stored[name] != shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {stored[name]}, the model wants {shape}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def reading(path: Path, read: Callable[[], Any]) -> Any:
    """Call `read`, turning what Orbax and TensorStore raise on damaged files into a CheckpointError.

    On metadata of another shape they raise whatever the first operation on it raises: KeyError, TypeError, AttributeError, ...
    """
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is incomplete or damaged: {first_line(error)[:200]}") from error


def barrier(name: str) -> None:
    """Wait until every process is here; nothing in a job of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
