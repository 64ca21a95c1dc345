"""Grain pipelines from folders of shards to batches: endless and shuffled for training, one pass in order for evaluation.

Training: pieces of documents (`Pieces`) of each folder, shuffled over the whole folder anew in every epoch, repeated for ever,
mixed by weight, packed, batched. What comes out depends on the configuration alone, and the iterator's state (a few numbers;
nothing is buffered in it) continues it exactly.

In a job of several processes each of them packs every batch whole and keeps its rows: the rows together are the batches of a job of
one, and the iterator's state is the same in all processes and for any number of them. That costs each host the reading and packing of
all rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grain
import grain.experimental
import numpy as np

from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.data.packing import Batch, Layout, Pieces, pack
from plamo2_jax.data.shards import Shards, open_shards
from plamo2_jax.data.upsampling import UpsampledPieces
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class MixtureItem:
    """A folder of shards and its share of the mixture."""

    path: Path
    """Folder that `plamo2 data prepare` wrote."""
    weight: float = 1.0
    """Share of the training tokens, relative to the other weights (kept to within 1 %). A small folder of large weight is repeated
    more often."""

    def __post_init__(self) -> None:
        if not (0 < self.weight < float("inf")):
            raise ValueError(f"MixtureItem.weight={self.weight!r} is not allowed: it must be positive and finite")


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and how it is mixed, shuffled and packed."""

    mixture: tuple[MixtureItem, ...]
    """Folders of shards and their weights."""
    sequence_length: int
    """Positions in a row, t."""
    batch_size: int
    """Rows in a batch, over all processes."""
    seed: int = 0
    """Of the shuffling."""
    packing_bins: int = 256
    """Rows that are filled side by side: more of them leave less padding, but take memory and time (16 bytes a position)."""
    long_document_tokens: int | None = None
    """Documents of at least so many tokens are read `long_document_repeats` times for each time that others are: for training at a new
    length, of which short documents teach nothing (arXiv:2402.10171). The weights of the mixture hold all the same."""
    long_document_repeats: int = 1
    """See long_document_tokens."""
    shuffle: bool = True
    """Off: documents come in the order of the shards, epoch after epoch."""
    prefetch_batches: int = field(default=4, metadata={"free": True})
    """Batches made ahead in a thread, so that the accelerator does not wait, on top of one filling of the bins; 0 makes each batch
    when it is asked for."""
    read_threads: int = field(default=2, metadata={"free": True})
    """Threads that read documents ahead; 0 reads in line."""
    worker_processes: int = 0
    """Processes that read and pack, for hosts where one is too slow; each packs its own share, so their number changes the order. A
    program that uses them must be started under `if __name__ == "__main__"`."""

    def __post_init__(self) -> None:
        self._require("mixture", len(self.mixture) >= 1, "at least one MixtureItem")
        self._require("sequence_length", self.sequence_length >= 2, "at least 2")
        repeats = "at least 1, and 1 without long_document_tokens"
        allowed = self.long_document_repeats >= 1 and (self.long_document_tokens or self.long_document_repeats == 1)
        self._require("long_document_repeats", bool(allowed), repeats)
        for name in ("batch_size", "packing_bins"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("prefetch_batches", "read_threads", "worker_processes"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"DataConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")


def train_iterator(
    config: DataConfig, tokenizer: Tokenizer, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Training batches without end.

    `get_state` and `set_state` (or `grain.checkpoint.CheckpointSave` and `CheckpointRestore` through Orbax) continue it exactly.

    Args:
        config: what to read.
        tokenizer: must be the one that the shards were made with.
        process_index, process_count: this process of how many; each gets its rows of every batch.

    Returns:
        An iterator of batches (see `plamo2_jax.data.packing`) with batch_size / process_count rows.

    Raises:
        ShardError: a folder cannot be read or was made with another tokenizer.
        ValueError: the batch cannot be divided among the processes.
    """
    parts = open_mixture(config, tokenizer)
    return mixed_batches(config, parts, process_index=process_index, process_count=process_count)


def open_mixture(config: DataConfig, tokenizer: Tokenizer) -> list[Elements]:
    """Open the shards of a mixture, as what `mixed_batches` takes.

    Raises:
        ShardError: a folder cannot be read or was made with another tokenizer.
    """
    parts = []
    for item in config.mixture:
        shards = open_shards(item.path, tokenizer)
        pieces = Pieces(shards, config.sequence_length, tokenizer.bos_id, tokenizer.eos_id)
        if config.long_document_tokens is not None:
            pieces = UpsampledPieces(pieces, config.long_document_tokens, config.long_document_repeats)
        parts.append(pieces)
    return parts


class Elements(Protocol):
    """What is mixed and packed: random access to elements, each a dict of arrays of one length."""

    targets: int
    """Positions in all elements."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...


def mixed_batches(
    config: DataConfig,
    parts: Sequence[Elements],
    layout: Layout | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Batches without end of elements of several sources; arguments and result otherwise as for `train_iterator`.

    Args:
        config: `mixture[i].weight` is the weight of `parts[i]`.
        parts: the sources.
        layout: how elements become a batch; None: that of text.
        process_index, process_count: see `train_iterator`.
    """
    layout = layout or Layout()
    rows = _rows_of_process(config, process_index, process_count)
    dataset = _mix(config, parts).to_iter_dataset(_read_options(config.read_threads))
    dataset = pack(
        dataset,
        config.sequence_length,
        config.packing_bins,
        config.seed,
        config.shuffle,
        layout.features,
        layout.max_pieces,
    )
    dataset = dataset.batch(config.batch_size, drop_remainder=True)
    dataset = dataset.map(functools.partial(_take_rows, rows=rows)).map(layout.to_batch)
    if config.worker_processes:
        _accept_default_flags()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.worker_processes))
    if config.prefetch_batches:
        # Rows come out a filling of the bins at a time: a buffer that holds one lets the packer work on the next meanwhile.
        buffer = config.prefetch_batches + -(-config.packing_bins // config.batch_size)
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=buffer)
    return iter(dataset)


class HeldoutBatches:
    """One pass over a folder of shards, in order, nothing left out; can be iterated again and again.

    The last batch is filled up with rows of padding, so that all have one shape.

    Attributes:
        shards: the documents.
        documents, tokens, bytes: how many there are; `bytes` is what bits per byte are divided by.
        targets: targets over all batches, an end-of-text for each document among them.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: Shards | TokenizedText,
        tokenizer: Tokenizer,
        process_index: int,
        process_count: int,
    ):
        self.shards = shards
        self.documents, self.tokens, self.bytes = shards.documents, shards.tokens, shards.bytes
        pieces = Pieces(shards, config.sequence_length, tokenizer.bos_id, tokenizer.eos_id)
        self.targets = pieces.targets
        self._dataset = one_pass(config, pieces, process_index=process_index, process_count=process_count)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._dataset)


def heldout_batches(
    config: DataConfig,
    folder: str | Path,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> HeldoutBatches:
    """Batches of held-out text for evaluation: every document once, in the rows that `config` describes.

    Args:
        config: sequence_length, batch_size, packing_bins and read_threads are used.
        folder: shards of held-out text.
        tokenizer: must be the one that the shards were made with.
        process_index, process_count: this process of how many; each gets its rows of every batch.

    Raises:
        ShardError: the folder cannot be read or was made with another tokenizer.
        ValueError: the batch cannot be divided among the processes.
    """
    return HeldoutBatches(config, open_shards(folder, tokenizer), tokenizer, process_index, process_count)


def one_pass(
    config: DataConfig,
    elements: Elements,
    layout: Layout | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Batch]:
    """Batches of every element once, in order, the last one filled up with rows of padding; arguments as for `mixed_batches`."""
    layout = layout or Layout()
    rows = _rows_of_process(config, process_index, process_count)
    dataset = grain.MapDataset.source(elements).to_iter_dataset(_read_options(config.read_threads))
    dataset = pack(
        dataset,
        config.sequence_length,
        config.packing_bins,
        seed=0,
        shuffle=False,
        features=layout.features,
        max_pieces=layout.max_pieces,
    )
    fill = functools.partial(grain.experimental.batch_and_pad, batch_size=config.batch_size)
    dataset = dataset.batch(config.batch_size, drop_remainder=False, batch_fn=fill)
    return dataset.map(functools.partial(_take_rows, rows=rows)).map(layout.to_batch)


def _mix(config: DataConfig, sources: Sequence[Elements]) -> grain.MapDataset:
    """Elements of all sources, endless."""
    parts, proportions = [], []
    for number, (item, pieces) in enumerate(zip(config.mixture, sources, strict=True)):
        part = grain.MapDataset.source(pieces)
        if config.shuffle:
            # Grain adds the epoch to the seed: hashed, so that no folder and no seed repeats another's orders.
            seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
            part = part.shuffle(seed=seed)
        parts.append(part.repeat())
        # Grain counts elements, and weights are of tokens.
        proportions.append(item.weight * len(pieces) / pieces.targets)
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, proportions)


def _take_rows(batch: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in batch.items()}


def _rows_of_process(config: DataConfig, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index}; it must lie between 0 and process_count - 1 = {process_count - 1}"
        )
    rows, rest = divmod(config.batch_size, process_count)
    if rest:
        raise ValueError(
            f"DataConfig.batch_size={config.batch_size} is not allowed: it must be a multiple of the number of processes, {process_count}"
        )
    return slice(process_index * rows, (process_index + 1) * rows)


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64 if threads else 0)


def _accept_default_flags() -> None:
    """Grain's worker processes read absl flags, which only `absl.app.run` would have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
