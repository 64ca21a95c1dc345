"""The largest logits of a teacher, computed before training and stored on disk for each row of the training batches.

    FOLDER/manifest.json   fingerprints of teacher and tokenizer, temperature, k, row length t, number of rows
    FOLDER/keys.npy        [rows] uint64, digest of each row's tokens and segment ids, ascending
    FOLDER/order.npy       [rows] int64, index of each key's row in the arrays below
    FOLDER/ids.npy         [rows, t, k] int32
    FOLDER/logits.npy      [rows, t, k] float32, divided by the temperature
    FOLDER/log_z.npy       [rows, t] float32, log-normalizer over the whole vocabulary

A row is found by a digest of its content, not by its position. So resuming, another order or another batch size find the right rows, and a
row of other data is an error instead of a wrong target.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping
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
from plamo2_jax.data.pipeline import train_iterator
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model import Plamo2
from plamo2_jax.model_files import file_inside, optional_file
from plamo2_jax.public_config import is_integer, is_number
from plamo2_jax.storage import allocate, new_folder, require_empty
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig
from plamo2_jax.validation import shown

FORMAT = "plamo2-teacher-logits-1"
MANIFEST = "manifest.json"
TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z = "teacher_ids", "teacher_logits", "teacher_log_z"
"""Names of the precomputed arrays in a batch: ids [b, t, k] int32, logits divided by the temperature [b, t, k] float32, and
log-normalizer over the whole vocabulary [b, t] float32."""


class Top(NamedTuple):
    """The most likely tokens of a teacher: ids [..., k], logits divided by the temperature [..., k], log-normalizer [...]."""

    ids: jax.Array
    logits: jax.Array
    log_z: jax.Array


def top_logits(logits: jax.Array, temperature: float, top_k: int) -> Top:
    """Return the `top_k` most likely tokens of logits [..., v]. Arithmetic is float32."""
    logits = logits.astype(jnp.float32) / temperature
    values, ids = jax.lax.top_k(logits, top_k)
    return Top(ids, values, jax.nn.logsumexp(logits, axis=-1))


def logits_spec(top_k: int) -> BatchSpec:
    """Return the spec of the arrays that precomputed logits of k tokens add to a batch."""
    return {
        TEACHER_IDS: ((top_k,), jnp.int32),
        TEACHER_LOGITS: ((top_k,), jnp.float32),
        TEACHER_LOG_Z: ((), jnp.float32),
    }


def teacher_shape(folder: Path, top_k: int | None, student: ModelConfig) -> ModelConfig:
    """Read the config of a teacher.

    Args:
        folder: Run folder or folder in Hugging Face format.
        top_k: Number of tokens of each position that are compared one by one; None: all.
        student: Config of the student.

    Raises:
        PlamoError: The folder is missing, damaged or holds no model, or its logits cannot be compared with the student's logits.
    """
    shape = read_shape(folder)
    if shape.vocab_size != student.vocab_size:
        raise PlamoError(
            f"{folder} has vocab_size={shape.vocab_size}, but the student has {student.vocab_size}: teacher and student must have the same "
            "vocabulary"
        )
    if top_k is not None and not 1 <= top_k <= shape.vocab_size:
        raise PlamoError(f"top_k={top_k} is not allowed: it must lie between 1 and vocab_size={shape.vocab_size}")
    return shape


def row_keys(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the digest of each row of `tokens` and `segment_ids` [b, t]: [b] uint64."""
    rows = np.concatenate([batch["tokens"], batch["segment_ids"]], axis=1).astype("<i4")
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, "<u8")


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
    """Write the logits of a teacher for the rows of the first `steps` batches of a run, and return the number of written rows.

    Args:
        config: The run whose training data are read.
        teacher: Run folder or folder in Hugging Face format.
        temperature: Divisor of the logits.
        output: Folder to create; it must not exist or must be empty.
        tokenizer: Tokenizer of the run.
        steps: Number of batches. A row that occurs again in a later epoch is written once.
        top_k: Number of tokens of each position.

    Raises:
        PlamoError: `output` is not empty, or teacher, tokenizer and shards do not match. No file is left behind.
    """
    require_empty(Path(output))
    model = Plamo2(teacher_shape(teacher, top_k, config.model), dtype=jnp.dtype(config.dtype))
    params = load_model(teacher).params
    apply = jax.jit(lambda params, batch: _top(model, params, batch, temperature, top_k))
    data = dataclasses.replace(config.data, prefetch_batches=0)
    with new_folder(output) as partial:
        t = config.data.sequence_length
        shapes = {"ids": (t, top_k), "logits": (t, top_k), "log_z": (t,)}
        seen: dict[int, int] = {}
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((partial / f"{name}.raw").open("wb")) for name in shapes]
            for batch in itertools.islice(train_iterator(data, tokenizer), steps):
                top = jax.device_get(apply(params, {name: jnp.asarray(value) for name, value in batch.items()}))
                for i, key in enumerate(row_keys(batch).tolist()):
                    if key not in seen:
                        seen[key] = len(seen)
                        for file, array in zip(files, top, strict=True):
                            file.write(array[i].tobytes())
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
    """A folder that `write_teacher_logits` wrote, mapped into memory.

    Attributes:
        manifest: The parsed manifest.json.
        batch_spec: Spec of the arrays that `transform_batch` adds to a batch.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        rows, t, k = manifest["rows"], manifest["sequence_length"], manifest["top_k"]
        self._keys = np.array(map_npy(file_inside(folder, "keys.npy"), np.uint64, (rows,)))
        self._order = np.array(map_npy(file_inside(folder, "order.npy"), np.int64, (rows,)))
        if not np.array_equal(np.sort(self._order), np.arange(rows)):
            raise PlamoError(f"{folder / 'order.npy'} must hold every row index from 0 to {rows - 1} once")
        self._arrays = {
            "ids": map_npy(file_inside(folder, "ids.npy"), np.int32, (rows, t, k)),
            "logits": map_npy(file_inside(folder, "logits.npy"), np.float32, (rows, t, k)),
            "log_z": map_npy(file_inside(folder, "log_z.npy"), np.float32, (rows, t)),
        }
        self.batch_spec = logits_spec(k)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TeacherLogits:
        """Open a folder.

        Raises:
            PlamoError: The folder has no valid manifest.json, or an array is missing or has another shape.
        """
        folder = Path(folder)
        path = optional_file(folder, MANIFEST)
        if path is None:
            raise PlamoError(
                f"{folder} has no teacher logits: it has no {MANIFEST}. Write the logits with plamo2 distill"
            )
        manifest = read_json_object(path)

        def check(name: str, fits: Callable[[Any], bool], allowed: str) -> None:
            if not fits(value := manifest.get(name)):
                raise PlamoError(f"{path}: {name}={shown(value)} is not allowed: it must be {allowed}")

        check("format", lambda value: value == FORMAT, repr(FORMAT))
        for name in ("rows", "sequence_length", "top_k"):
            check(name, lambda value: is_integer(value) and 1 <= value < 1 << 40, "a positive integer")
        for name in ("teacher", "tokenizer"):
            check(name, lambda value: isinstance(value, str), "a fingerprint")
        check("temperature", is_number, "a number")
        return cls(folder, manifest)

    def check(self, teacher: Path, temperature: float, top_k: int | None, tokenizer: str, sequence_length: int) -> None:
        """Raise PlamoError unless the logits belong to this teacher, tokenizer, temperature, k and row length."""
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
                    f"{self.folder} was written for {name} {self.manifest[name]!r}, not for this run's {value!r}: both must be equal. "
                    "Write it again with plamo2 distill"
                )

    def transform_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch with the teacher's logits of its rows.

        Raises:
            PlamoError: A row has no logits, because the data differ or the run is longer than the written part.
        """
        keys = row_keys(batch)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if missing := np.count_nonzero(self._keys[places] != keys):
            raise PlamoError(
                f"{self.folder} has no logits for {missing} of {len(keys)} rows of a batch: data, seed, packing and steps must be the same "
                "as when it was written. Write it again with plamo2 distill"
            )
        rows = self._order[places]
        names = {"ids": TEACHER_IDS, "logits": TEACHER_LOGITS, "log_z": TEACHER_LOG_Z}
        return {**batch, **{name: self._arrays[file][rows] for file, name in names.items()}}


def _top(model: Plamo2, params: Any, batch: Mapping[str, jax.Array], temperature: float, top_k: int) -> Any:
    """Return the most likely tokens at all positions of a batch. Logits exist for one row at a time."""
    features, _ = model.apply(
        {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"], method="features"
    )
    return jax.lax.map(
        lambda row: top_logits(model.apply({"params": params}, row[None], method="logits")[0], temperature, top_k),
        features,
    )


def _to_npy(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Convert a file of raw values to .npy, in pieces."""
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
