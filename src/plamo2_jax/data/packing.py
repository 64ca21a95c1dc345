"""Packing documents into rows of fixed length.

A document of ids i1..in becomes the inputs [bos, i1, .., in] and the targets [i1, .., in, eos]. A document longer than a row is split into
pieces of the row's length. Each piece is a separate segment, so no state passes from one piece to the next, but every target keeps the
input before it. Grain's best-fit packer fills rows with whole pieces.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import grain
import grain.experimental
import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.shards import Shards
from plamo2_jax.data.shares import Share, even_range


class Pieces:
    """Random access to the pieces of all documents: `len(pieces)`, `pieces[i]`. A source for `grain.MapDataset.source`.

    Args:
        shards: The documents.
        sequence_length: Number of targets in the longest piece, t.
        bos_id, eos_id: Ids added before and after each document.
    """

    def __init__(self, shards: Shards, sequence_length: int, bos_id: int, eos_id: int):
        self._shards = shards
        self._length = sequence_length
        self._bos, self._eos = np.int32(bos_id), np.int32(eos_id)
        # n ids have n + 1 targets. int64, because the sum over a corpus exceeds 2^32.
        per_document = -(-(shards.lengths.astype(np.int64) + 1) // sequence_length)
        self._first = np.concatenate([[0], np.cumsum(per_document)])

    @property
    def targets(self) -> int:
        """Number of targets in all pieces: every token of every document, and one end token per document."""
        return self._shards.tokens + self._shards.documents

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shards."""
        return self._shards.fingerprint

    def documents(self) -> np.ndarray:
        """[pieces] int64, the document of each piece."""
        return np.repeat(np.arange(len(self._first) - 1), np.diff(self._first))

    def document_lengths(self) -> np.ndarray:
        """[documents] int, number of tokens of each document."""
        return self._shards.lengths

    def share(self, index: int, count: int) -> Share:
        """Return the pieces of share `index` of `count`: consecutive whole documents, with about equally many targets in each share."""
        sizes = self._shards.lengths.astype(np.int64) + 1
        start, stop = even_range(sizes, index, count)
        return Share(self, int(self._first[start]), int(self._first[stop]), int(sizes[start:stop].sum()))

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Batch:
        """Return `{"tokens", "targets"}`, each [n] int32 with 1 <= n <= t."""
        document = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._cut(self._shards[document].ids, (index - int(self._first[document])) * self._length)

    def _cut(self, ids: np.ndarray, start: int) -> Batch:
        end = start + self._length
        # Inputs are the targets shifted by one, so the piece reads ids[start - 1 : end].
        tokens = ids[max(start - 1, 0) : end - 1]
        targets = ids[start:end]
        if start == 0:
            tokens = np.concatenate([[self._bos], tokens])
        if end > len(ids):
            targets = np.concatenate([targets, [self._eos]])
        return {"tokens": tokens, "targets": targets}

    def __repr__(self) -> str:
        return f"Pieces({self._shards!r}, sequence_length={self._length})"


def to_batch(packed: Mapping[str, np.ndarray]) -> Batch:
    """Return the batch of stacked rows of the packer.

    Args:
        packed: `tokens` and `targets`; also `weights`, if not every target has weight 1, and `positions`, if an element holds several
            segments. `FEATURE_segment_ids` and `FEATURE_positions` of each come from the packer.
    """
    segment_ids = packed["tokens_segment_ids"]
    return {
        "tokens": packed["tokens"],
        "targets": packed["targets"],
        "segment_ids": segment_ids,
        "positions": packed["positions"] if "positions" in packed else packed["tokens_positions"],
        "loss_weights": packed["weights"] if "weights" in packed else (segment_ids != 0).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Collator:
    """Data collator: how packed elements become a batch. The defaults are for text."""

    features: tuple[str, ...] = ("tokens", "targets")
    """Names of the arrays of an element, which have equal lengths."""
    to_batch: Callable[[Mapping[str, np.ndarray]], Batch] = to_batch
    """Function from stacked rows to a batch. Rows hold each feature, and `FEATURE_segment_ids` and `FEATURE_positions` of each."""
    max_pieces: int | None = None
    """Largest number of elements per row. None means no limit."""


TEXT_COLLATOR = Collator()


def pack(
    pieces: grain.IterDataset,
    sequence_length: int,
    bins: int,
    seed: int = 0,
    shuffle: bool = False,
    collator: Collator = TEXT_COLLATOR,
) -> grain.IterDataset:
    """Return a dataset of rows of `sequence_length` positions, each filled with whole pieces.

    Args:
        pieces: Elements with the arrays `collator.features`.
        sequence_length: Row length t.
        bins: Number of rows that are filled at the same time. More bins waste less space and need more memory.
        seed: Random seed of the order of filled rows.
        shuffle: Whether filled rows come in random order.
        collator: Data collator of the elements.
    """
    return grain.experimental.BestFitPackIterDataset(
        pieces,
        length_struct=dict.fromkeys(collator.features, sequence_length),
        num_packing_bins=bins,
        seed=seed,
        shuffle_bins=shuffle,
        max_sequences_per_bin=collator.max_pieces,
    )


def measure_packing(shards: Shards, sequence_length: int, bins: int) -> float:
    """Return the share of positions that hold a target if rows are packed from these documents in random order.

    The function packs one epoch, or 20 million positions of a larger corpus.
    """
    # The begin and end ids do not matter here.
    pieces = Pieces(shards, sequence_length, 0, 0)
    dataset = grain.MapDataset.source(pieces).shuffle(seed=0).repeat().to_iter_dataset()
    # Measure whole fillings of the bins, because the first rows of a filling are fuller than the last.
    rows = bins * max(1, round(min(pieces.targets, 20_000_000) / (bins * sequence_length)))
    packed = itertools.islice(pack(dataset, sequence_length, bins), rows)
    used = sum(np.count_nonzero(row["tokens_segment_ids"]) for row in packed)
    return int(used) / (rows * sequence_length)
