"""A teacher's likeliest logits on disk, row by row of the training batches.

    FOLDER/manifest.json   what made them: fingerprints of teacher and tokenizer, temperature, k, positions a row, rows
    FOLDER/keys.npy        [rows] uint64, digest of each row's tokens and segments, ascending
    FOLDER/order.npy       [rows] int64, where the row of each key stands in the following
    FOLDER/ids.npy         [rows, t, k] int32
    FOLDER/logits.npy      [rows, t, k] float32, over the temperature
    FOLDER/log_z.npy       [rows, t] float32, log-normaliser over the whole vocabulary

A row is found by what it holds, not by a count: resuming, rolling back, another order or another batch size need no care, and a row
of other data has no entry, which is an error and not a wrong target.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.array_input import map_npy
from plamo2_jax.checkpoint import fingerprint, write_json
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import load_model, read_shape
from plamo2_jax.data.batch import BatchSpec
from plamo2_jax.data.pipeline import DataConfig, train_iterator
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model import Plamo2
from plamo2_jax.model_files import file_inside, optional_file
from plamo2_jax.storage import allocate, new_folder, require_empty
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig

FORMAT = "plamo2-teacher-logits-1"
MANIFEST = "manifest.json"


TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z = "teacher_ids", "teacher_logits", "teacher_log_z"
"""What a batch holds of precomputed logits: [b, t, k] int32, [b, t, k] float32 divided by the temperature, [b, t] float32, the log
of their softmax's normaliser over the whole vocabulary."""


class Top(NamedTuple):
    """A teacher's likeliest tokens: ids [..., k], logits over the temperature [..., k], log-normaliser [...]."""

    ids: jax.Array
    logits: jax.Array
    log_z: jax.Array


def top_logits(logits: jax.Array, temperature: float, top_k: int) -> Top:
    """The `top_k` likeliest of softened logits [..., v], float32."""
    logits = logits.astype(jnp.float32) / temperature
    values, ids = jax.lax.top_k(logits, top_k)
    return Top(ids, values, jax.nn.logsumexp(logits, axis=-1))


def logits_spec(top_k: int) -> BatchSpec:
    """Return what precomputed logits of k tokens add to a batch."""
    return {
        TEACHER_IDS: ((top_k,), jnp.int32),
        TEACHER_LOGITS: ((top_k,), jnp.float32),
        TEACHER_LOG_Z: ((), jnp.float32),
    }


def teacher_shape(folder: Path, top_k: int | None, student: ModelConfig) -> ModelConfig:
    """Read the shape of a teacher.

    Args:
        folder: run folder or folder of the public layout.
        top_k: tokens of each position that are compared one by one; None: all.
        student: shape of the student.

    Raises:
        ValueError: the folder is missing, damaged or holds no model, or its logits cannot be compared with the student's.
    """
    shape = read_shape(folder)
    if shape.vocab_size != student.vocab_size:
        raise PlamoError(
            f"{folder} has vocab_size={shape.vocab_size} and the student {student.vocab_size}; distillation compares logits of the same "
            "tokens"
        )
    if top_k is not None and not 1 <= top_k <= shape.vocab_size:
        raise PlamoError(f"top_k={top_k} is not allowed: it must lie between 1 and vocab_size={shape.vocab_size}")
    return shape


def row_keys(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """[b] uint64: digests of the rows of `tokens` and `segment_ids` [b, t]."""
    rows = zip(batch["tokens"], batch["segment_ids"], strict=True)
    digests = (
        hashlib.blake2b(tokens.astype("<i4").tobytes() + ids.astype("<i4").tobytes(), digest_size=8)
        for tokens, ids in rows
    )
    return np.array([int.from_bytes(digest.digest(), "little") for digest in digests], np.uint64)


def write_teacher_logits(
    config: RunConfig,
    teacher: Path,
    temperature: float,
    output: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    steps: int,
    top_k: int,
) -> int:
    """Write the logits of a teacher for the rows of the first `steps` batches of a run.

    Args:
        config: the run, whose data are read.
        teacher: run folder or folder of the public layout.
        temperature: that the logits are divided by.
        output: folder to make; it must not exist or be empty.
        tokenizer: the run's.
        steps: batches; rows that come again in later epochs are kept once.
        top_k: tokens of each position.

    Returns:
        The number of rows written.

    Raises:
        ValueError: the folder is occupied, or teacher, tokenizer and shards do not go together. Nothing is left behind.
    """
    output = Path(output).absolute()
    require_empty(output)
    model = Plamo2(teacher_shape(teacher, top_k, config.model), dtype=jnp.dtype(config.dtype))
    params = load_model(teacher).params
    apply = jax.jit(lambda params, batch: _top(model, params, batch, temperature, top_k))
    with new_folder(output) as partial:
        t = config.data.sequence_length
        shapes = {"ids": (t, top_k), "logits": (t, top_k), "log_z": (t,)}
        files = {name: (partial / f"{name}.raw").open("wb") for name in shapes}
        seen: dict[int, int] = {}
        for batch in itertools.islice(train_iterator(_quiet(config.data), tokenizer), steps):
            keys = row_keys(batch)
            top = jax.device_get(apply(params, {name: jnp.asarray(value) for name, value in batch.items()}))
            for i, key in enumerate(map(int, keys)):
                if key not in seen:
                    seen[key] = len(seen)
                    for file, array in zip(files.values(), top, strict=True):
                        file.write(np.ascontiguousarray(array[i]).tobytes())
        for file in files.values():
            file.close()
        for name, shape in shapes.items():
            _to_npy(partial, name, np.int32 if name == "ids" else np.float32, (len(seen), *shape))
        keys = np.fromiter(seen.keys(), np.uint64, len(seen))
        order = np.argsort(keys)
        np.save(partial / "keys.npy", keys[order])
        np.save(partial / "order.npy", np.fromiter(seen.values(), np.int64, len(seen))[order])
        manifest = {
            "format": FORMAT,
            "teacher": fingerprint(model.config, params),
            "tokenizer": tokenizer.fingerprint,
            "temperature": temperature,
            "top_k": top_k,
            "sequence_length": t,
            "rows": len(seen),
        }
        write_json(partial / MANIFEST, manifest)
    return len(seen)


class TeacherLogits:
    """A folder of logits, mapped from disk.

    Attributes:
        manifest: the parsed manifest.json.
        batch_spec: what `transform_batch` adds to a batch: name → (shape after [b, t], dtype).
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        rows, t, k = manifest["rows"], manifest["sequence_length"], manifest["top_k"]
        self._keys = np.array(map_npy(file_inside(folder, "keys.npy"), np.uint64, (rows,)))
        self._order = np.array(map_npy(file_inside(folder, "order.npy"), np.int64, (rows,)))
        if not np.array_equal(np.sort(self._order), np.arange(rows)):
            raise PlamoError(f"{folder / 'order.npy'} must hold every row's number once, from 0 to {rows - 1}")
        self._arrays = {
            "ids": map_npy(file_inside(folder, "ids.npy"), np.int32, (rows, t, k)),
            "logits": map_npy(file_inside(folder, "logits.npy"), np.float32, (rows, t, k)),
            "log_z": map_npy(file_inside(folder, "log_z.npy"), np.float32, (rows, t)),
        }
        self.batch_spec = logits_spec(k)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TeacherLogits:
        """Open what `write_teacher_logits` wrote.

        Raises:
            ValueError: it is missing, or not such a folder.
        """
        folder = Path(folder)
        path = optional_file(folder, MANIFEST)
        if path is None:
            raise PlamoError(f"{folder} holds no teacher's logits: it has no {MANIFEST}; `plamo2 distill` writes one")
        manifest = read_json_object(path)
        if manifest.get("format") != FORMAT:
            raise PlamoError(f"{path}: format is {str(manifest.get('format'))[:60]!r}; it must be {FORMAT!r}")
        for name in ("rows", "sequence_length", "top_k"):
            if type(manifest.get(name)) is not int or not 1 <= manifest[name] < 1 << 40:
                raise PlamoError(
                    f"{path}: {name} must be a positive whole number, not {str(manifest.get(name))[:60]!r}"
                )
        for name in ("teacher", "tokenizer"):
            if not isinstance(manifest.get(name), str):
                raise PlamoError(f"{path}: {name} must be a fingerprint, not {str(manifest.get(name))[:60]!r}")
        if type(manifest.get("temperature")) not in (int, float):
            raise PlamoError(f"{path}: temperature must be a number, not {str(manifest.get('temperature'))[:60]!r}")
        return cls(folder, manifest)

    def check(self, teacher: Path, temperature: float, top_k: int | None, tokenizer: str, sequence_length: int) -> None:
        """Raise ValueError unless the logits are of this teacher, tokenizer, temperature, k and length of row."""
        loaded = load_model(teacher)
        wanted = {
            "teacher": fingerprint(loaded.config, loaded.params),
            "tokenizer": tokenizer,
            "temperature": temperature,
            "top_k": top_k or self.manifest["top_k"],
            "sequence_length": sequence_length,
        }
        for name, value in wanted.items():
            if self.manifest[name] != value:
                raise PlamoError(
                    f"{self.folder} was written for {name} {self.manifest[name]!r}, not for this run's {value!r}; write it again with "
                    "plamo2 distill"
                )

    def transform_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the teacher's logits of its rows.

        Raises:
            ValueError: a row has none: the data are others, or the run is longer than what was written for it.
        """
        keys = row_keys(batch)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if not np.array_equal(self._keys[places], keys):
            missing = int(np.count_nonzero(self._keys[places] != keys))
            raise PlamoError(
                f"{self.folder} has no logits for {missing} of {len(keys)} rows of a batch: the data, their seed or their packing are "
                "others, or it was written for fewer steps"
            )
        rows = self._order[places]
        names = {"ids": TEACHER_IDS, "logits": TEACHER_LOGITS, "log_z": TEACHER_LOG_Z}
        return {**batch, **{name: self._arrays[file][rows] for file, name in names.items()}}


def _top(model: Plamo2, params: Any, batch: Mapping[str, jax.Array], temperature: float, top_k: int) -> Any:
    """ids, logits [b, t, k] and log-normaliser [b, t]; logits of one row at a time."""
    features, _ = model.apply(
        {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"], method="features"
    )
    return jax.lax.map(
        lambda row: top_logits(model.apply({"params": params}, row[None], method="logits")[0], temperature, top_k),
        features,
    )


def _quiet(data: DataConfig) -> DataConfig:
    """The same batches, made as they are asked for."""
    return dataclasses.replace(data, prefetch_batches=0)


def _to_npy(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """A file of raw values as .npy, copied in pieces."""
    raw = folder / f"{name}.raw"
    target = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    allocate(folder / f"{name}.npy")
    with raw.open("rb") as file:
        flat = target.reshape(-1)
        for start in range(0, flat.size, 1 << 22):
            part = flat[start : start + (1 << 22)]
            part[...] = np.frombuffer(file.read(part.nbytes), dtype)
    target.flush()
    raw.unlink()
