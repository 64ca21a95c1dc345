"""Documents into rows of fixed length: pieces, packing, and the batch every model and objective reads.

A document of ids i1..in becomes the inputs [bos, i1, .., in] and the targets [i1, .., in, eos]. What is longer than a row is cut
into pieces of the row's length; each piece is a segment of its own, so state does not cross from one to the next, but every
target keeps the input before it. Rows are filled with whole pieces by Grain's best-fit packer.

A batch is a dict of arrays [b, t]:
    tokens, targets: int32, 0 at padding.
    segment_ids: int32, 1.. for the segments of a row in order, 0 for padding.
    positions: int32, from 0 within each segment.
    loss_weights: float32, 1 at targets, 0 at padding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping

import grain
import grain.experimental
import numpy as np

from plamo2_jax.data.shards import Shards

Batch = dict[str, np.ndarray]


class Pieces:
    """Random access to the pieces of all documents: `len(pieces)`, `pieces[i]`. A source for `grain.MapDataset.source`.

    Args:
        shards: the documents.
        sequence_length: targets in the longest piece, t.
        bos_id, eos_id: put before and behind each document.
    """

    def __init__(self, shards: Shards, sequence_length: int, bos_id: int, eos_id: int):
        self._shards = shards
        self._length = sequence_length
        self._bos, self._eos = np.int32(bos_id), np.int32(eos_id)
        # n ids have n + 1 targets. int64: the sum over a corpus passes 2^32.
        per_document = -(-(shards.lengths.astype(np.int64) + 1) // sequence_length)
        self._first = np.concatenate([[0], np.cumsum(per_document)])

    @property
    def targets(self) -> int:
        """Targets in all pieces: every token of every document, and an end for each."""
        return self._shards.tokens + self._shards.documents

    def documents(self) -> np.ndarray:
        """[pieces] int64, the document that each piece is of."""
        return np.repeat(np.arange(len(self._first) - 1), np.diff(self._first))

    def document_lengths(self) -> np.ndarray:
        """[documents] tokens of each document."""
        return self._shards.lengths

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Batch:
        """`{"tokens", "targets"}`, [n] int32 with 1 <= n <= t."""
        document = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._cut(self._shards[document].ids, (index - int(self._first[document])) * self._length)

    def _cut(self, ids: np.ndarray, start: int) -> Batch:
        end = start + self._length
        # Inputs are the targets one place later, so the piece reads ids[start - 1 : end].
        tokens = ids[max(start - 1, 0) : end - 1]
        targets = ids[start:end]
        if start == 0:
            tokens = np.concatenate([[self._bos], tokens])
        if end > len(ids):
            targets = np.concatenate([targets, [self._eos]])
        return {"tokens": tokens, "targets": targets}

    def __repr__(self) -> str:
        return f"Pieces({self._shards!r}, sequence_length={self._length})"


def pack(
    pieces: grain.IterDataset,
    sequence_length: int,
    bins: int,
    seed: int,
    shuffle: bool,
    features: tuple[str, ...] = ("tokens", "targets"),
    max_pieces: int | None = None,
) -> grain.IterDataset:
    """Rows of `sequence_length`, each filled with whole pieces.

    Args:
        pieces: elements of `Pieces`.
        sequence_length: t.
        bins: rows that are filled side by side; more of them waste less and need more memory.
        seed: of the order in which filled rows come out.
        shuffle: whether they come out in random order.
        features: arrays of an element, all of one length.
        max_pieces: in a row; None: as many as fit.
    """
    return grain.experimental.BestFitPackIterDataset(
        pieces,
        length_struct=dict.fromkeys(features, sequence_length),
        num_packing_bins=bins,
        seed=seed,
        shuffle_bins=shuffle,
        max_sequences_per_bin=max_pieces,
    )


def to_batch(packed: Mapping[str, np.ndarray]) -> Batch:
    """The batch of the module's description from the packer's rows, stacked."""
    segment_ids = packed["tokens_segment_ids"]
    return {
        "tokens": packed["tokens"],
        "targets": packed["targets"],
        "segment_ids": segment_ids,
        "positions": packed["tokens_positions"],
        "loss_weights": (segment_ids != 0).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Layout:
    """How elements become a batch. The default is that of text."""

    features: tuple[str, ...] = ("tokens", "targets")
    """Arrays of an element, all of one length."""
    to_batch: Callable[[Mapping[str, np.ndarray]], Batch] = to_batch
    """The batch of the packer's rows, stacked: of each feature also `FEATURE_segment_ids` and `FEATURE_positions`."""
    max_pieces: int | None = None
    """Elements in a row; None: as many as fit."""


def packing_efficiency(batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Share of the positions that hold a target."""
    used = total = 0
    for batch in batches:
        used += int(np.count_nonzero(batch["segment_ids"]))
        total += batch["segment_ids"].size
    if not total:
        raise ValueError("there is no batch to measure")
    return used / total


def measure_packing(shards: Shards, sequence_length: int, bins: int) -> float:
    """Share of the positions that hold a target when rows are packed from these documents in random order.

    Packs an epoch, or 20 million positions of a larger corpus.
    """
    # The ids of beginning and end do not matter here.
    pieces = Pieces(shards, sequence_length, 0, 0)
    dataset = grain.MapDataset.source(pieces).shuffle(seed=0).repeat().to_iter_dataset()
    rows = pack(dataset, sequence_length, bins, seed=0, shuffle=False).batch(1).map(to_batch)
    # Whole sets of bins: the first rows of a set are fuller than its last.
    sets = max(1, round(min(pieces.targets, 20_000_000) / (bins * sequence_length)))
    return packing_efficiency(itertools.islice(iter(rows), sets * bins))
