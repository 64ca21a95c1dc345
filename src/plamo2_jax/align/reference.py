"""Log-probabilities of the reference on disk. With them the reference need not run beside the policy.

    FOLDER/manifest.json    fingerprints of reference and tokenizer; fingerprint and number of positions of each set of pairs
    FOLDER/log_probs.npy    [positions of all sets] float32, the log-probability of each target of an answer, 0 elsewhere

They are stored by pair and position and not by row, so packing, order and batch size may change. Other pairs have another fingerprint,
which raises an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plamo2_jax.align.examples import Examples
from plamo2_jax.align.logprobs import token_log_probs
from plamo2_jax.array_input import map_npy
from plamo2_jax.checkpoint import fingerprint, write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.model_files import file_inside, optional_file
from plamo2_jax.storage import allocate, new_folder, require_empty
from plamo2_jax.validation import shown

FORMAT = "plamo2-reference-log-probs-1"
MANIFEST, LOG_PROBS = "manifest.json", "log_probs.npy"


class ReferenceLogProbsError(PlamoError):
    """A folder of log-probabilities is missing, damaged, or belongs to another model, tokenizer or data."""


class ReferenceLogProbs:
    """A folder of log-probabilities, mapped into memory."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]):
        self.folder, self.manifest = folder, manifest
        positions = sum(part["positions"] for part in manifest["parts"])
        path = file_inside(folder, LOG_PROBS, error=ReferenceLogProbsError)
        self._values = map_npy(path, np.float32, (positions,), error=ReferenceLogProbsError)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ReferenceLogProbs:
        """Open a folder that `write_reference` wrote.

        Raises:
            ReferenceLogProbsError: the folder is missing or damaged.
        """
        folder = Path(folder)
        path = optional_file(folder, MANIFEST, error=ReferenceLogProbsError)
        if path is None:
            raise ReferenceLogProbsError(f"{folder} is not a folder of log-probabilities: it has no {MANIFEST}")
        manifest = read_json_object(path, error=ReferenceLogProbsError)
        _check(path, manifest)
        return cls(folder, manifest)

    def check(self, reference: str, tokenizer: str) -> None:
        """Raise ReferenceLogProbsError unless the folder belongs to the reference and the tokenizer with these fingerprints."""
        for name, value in (("reference", reference), ("tokenizer", tokenizer)):
            if self.manifest[name] != value:
                raise ReferenceLogProbsError(
                    f"{self.folder} was written for the {name} {self.manifest[name][:60]}, but this run "
                    f"uses {value}. Delete the folder, or choose another one"
                )

    def of(self, examples: str) -> np.ndarray:
        """Return the log-probabilities of the pairs with this fingerprint, [positions] float32.

        Raises:
            ReferenceLogProbsError: the folder has no such pairs.
        """
        start = 0
        for part in self.manifest["parts"]:
            if part["fingerprint"] == examples:
                return self._values[start : start + part["positions"]]
            start += part["positions"]
        raise ReferenceLogProbsError(
            f"{self.folder} has no log-probabilities for these pairs, because the data, the chat template or "
            "the truncation has changed. Delete the folder, or choose another one"
        )


def _check(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ReferenceLogProbsError unless a manifest has the fields that `write_reference` writes."""
    for name, allowed, fits in (
        ("format", repr(FORMAT), manifest.get("format") == FORMAT),
        ("reference", "a fingerprint", isinstance(manifest.get("reference"), str)),
        ("tokenizer", "a fingerprint", isinstance(manifest.get("tokenizer"), str)),
        ("parts", "a list", isinstance(manifest.get("parts"), list)),
    ):
        if not fits:
            raise ReferenceLogProbsError(f"{path}: {name} is {shown(manifest.get(name))}; it must be {allowed}")
    for i, part in enumerate(manifest["parts"]):
        positions = part.get("positions") if isinstance(part, dict) else None
        if type(positions) is not int or not 0 <= positions < 1 << 48 or not isinstance(part.get("fingerprint"), str):
            raise ReferenceLogProbsError(f"{path}: parts[{i}] must have a fingerprint and a number of positions")


def write_reference(
    folder: str | os.PathLike[str],
    model: Plamo2,
    params: Any,
    tokenizer: str,
    parts: Sequence[Examples],
    shape: tuple[int, int],
    rows: jax.sharding.Sharding | None = None,
    chunk: int | None = None,
) -> None:
    """Compute and write the log-probabilities of pairs under a reference, one pair per row.

    Args:
        folder: the folder to create; it must not exist or must be empty.
        model, params: the reference.
        tokenizer: fingerprint of the tokenizer of the pairs.
        parts: sets of elements of `pairs.encode_pair`.
        shape: rows of a batch, and positions of a row; no element is longer.
        rows: sharding of a batch, over the devices that hold `params`; None: the first device.
        chunk: positions of each row whose logits exist at a time; None: all.

    Raises:
        PlamoError: the folder is not empty.
    """
    folder = Path(folder).absolute()
    require_empty(folder)
    apply = jax.jit(lambda params, batch: token_log_probs(model, params, batch, chunk))
    with new_folder(folder) as partial:
        total = sum(part.targets for part in parts)
        values = np.lib.format.open_memmap(partial / LOG_PROBS, "w+", np.float32, (total,))
        allocate(partial / LOG_PROBS)
        place = 0
        for part in parts:
            for first in range(0, len(part), shape[0]):
                elements = [part[i] for i in range(first, min(first + shape[0], len(part)))]
                log_probs = jax.device_get(apply(params, jax.device_put(_rows(elements, shape), rows)))
                for row, element in zip(log_probs, elements, strict=False):
                    n = len(element["tokens"])
                    values[place : place + n] = row[:n]
                    place += n
        values.flush()
        manifest = {
            "format": FORMAT,
            "reference": fingerprint(model.config, params),
            "tokenizer": tokenizer,
            "parts": [{"fingerprint": part.fingerprint, "positions": part.targets} for part in parts],
        }
        write_json(partial / MANIFEST, manifest)


def _rows(elements: Sequence[Mapping[str, np.ndarray]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return a batch with one element per row, padded to the shape [b, t]."""
    names = {"tokens": "tokens", "targets": "targets", "positions": "positions", "loss_weights": "weights"}
    batch = {name: np.zeros(shape, elements[0][source].dtype) for name, source in names.items()}
    batch["segment_ids"] = np.zeros(shape, np.int32)
    for i, element in enumerate(elements):
        n = len(element["tokens"])
        for name, source in names.items():
            batch[name][i, :n] = element[source]
        batch["segment_ids"][i, :n] = 1 + element["role"]
    return batch
