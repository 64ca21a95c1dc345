"""Grain pipelines from folders of shards to batches: endless and shuffled for training, one pass in order for evaluation.

Training: the pieces of documents (`Pieces`) of each folder are shuffled over the whole folder in every epoch, repeated without end,
mixed by weight, packed and batched. The batches depend only on the configuration. The iterator's state is a few numbers without
buffered data, and restoring it continues the batches exactly.

In a job of several processes, each process gets its own rows of every batch. Together the rows are the batches of a job with one process,
and a job of any number of processes can continue from the saved position. `DataConfig.packing` selects who packs:

* global: Each process reads and packs whole batches and keeps its own rows. The iterator's state is the same in all processes.
* per_process: The documents are divided among `packing_shards` shards, and each process reads and packs only its own shards
  (`data.packing_shards`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import grain
import grain.experimental
import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.data.packing import TEXT_COLLATOR, Collator, Pieces, pack
from plamo2_jax.data.packing_shards import ShardedBatches
from plamo2_jax.data.shard_cache import ShardCache
from plamo2_jax.data.shards import Shards, open_shards
from plamo2_jax.data.shares import Share
from plamo2_jax.data.upsampling import UpsampledPieces
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import address, is_remote
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import require


@dataclass(frozen=True)
class MixtureItem:
    """A folder of shards and its share of the mixture."""

    path: Path
    """Folder that `plamo2 data prepare` wrote, on this machine or in a bucket (gs://BUCKET/FOLDER, which needs `data.cache`)."""
    weight: float = 1.0
    """Weight of this folder: its share of the training tokens, relative to the other weights (accurate to 1 %). A small folder with a large
    weight is repeated."""
    synthetic: bool = False
    """Mark the text as synthetic (written by a model or a program), for `DataConfig.max_synthetic_share`."""

    def __post_init__(self) -> None:
        require(self, "weight", 0 < self.weight < float("inf"), "positive and finite")


@dataclass(frozen=True)
class DataConfig:
    """Training data: mixture, shuffling and packing."""

    mixture: tuple[MixtureItem, ...]
    """Folders of shards and their weights."""
    sequence_length: int
    """Sequence length: number of positions in a row, t."""
    batch_size: int
    """Global batch size: number of rows in a batch, over all processes."""
    seed: int = 0
    """Random seed of the shuffling."""
    packing_bins: int = 256
    """Number of rows that packing fills at the same time (by each packing shard, if there are several). More bins leave less padding, but
    take time and memory (24 bytes per position)."""
    packing: Literal["global", "per_process"] = "global"
    """Distribution of packing over processes. global: every process reads and packs whole batches, shuffled over all documents.
    per_process: every process reads and packs only its own rows, from its own share of the documents, so more processes mean less work for
    each."""
    packing_shards: int = 0
    """Number of shares into which per_process divides the documents; 0 with global. It must divide `batch_size` and be a multiple of
    the number of processes, also if you change the number of processes later. Batches depend on packing_shards, not on the number of
    processes."""
    long_document_tokens: int | None = None
    """Upsampling of long documents for context extension (arXiv:2402.10171): documents with at least this many tokens are read
    `long_document_repeats` times as often as others. The weights of the mixture stay the same."""
    long_document_repeats: int = 1
    """Factor by which documents of at least `long_document_tokens` tokens are read more often."""
    shuffle: bool = True
    """Shuffle the documents in every epoch. If false, they are read in the order of the shards."""
    prefetch_batches: int = field(default=4, metadata={"free": True})
    """Number of batches that a background thread prepares in advance. 0: prepare each batch on demand."""
    read_threads: int = field(default=2, metadata={"free": True})
    """Number of background threads that read documents in advance; 0: read in the main thread."""
    max_synthetic_share: float = 1.0
    """Largest share of the training tokens that may come from folders marked `synthetic`."""
    worker_processes: int = field(default=0, metadata={"free": lambda config: config.packing == "per_process"})
    """Number of worker processes per host that read and pack, for hosts where one process is too slow; 0: none. With per_process, each
    worker serves some of the packing shards, and the batches do not change. With global, each worker packs its own share of every folder,
    so their number changes the order of the data. A Python program that uses workers must guard its entry point with
    `if __name__ == "__main__"`."""
    cache: Path | None = field(default=None, metadata={"free": True})
    """Local cache folder for shards that are in a bucket. The processes of a host share it."""
    cache_gib: float = field(default=100.0, metadata={"free": True})
    """Largest size of `cache`, in GiB. Documents are read in random order, so all shards that a host reads must fit."""

    def __post_init__(self) -> None:
        require(self, "mixture", len(self.mixture) >= 1, "at least one MixtureItem")
        require(self, "sequence_length", self.sequence_length >= 2, "at least 2")
        repeats = "at least 1, and exactly 1 if long_document_tokens is not set"
        allowed = self.long_document_repeats >= 1 and (self.long_document_tokens or self.long_document_repeats == 1)
        require(self, "long_document_repeats", bool(allowed), repeats)
        for name in ("batch_size", "packing_bins"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("prefetch_batches", "read_threads", "worker_processes"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "packing", self.packing in ("global", "per_process"), "global or per_process")
        if self.packing == "global":
            require(self, "packing_shards", self.packing_shards == 0, "0 with packing=global")
        else:
            divides = self.packing_shards >= 1 and self.batch_size % self.packing_shards == 0
            require(
                self, "packing_shards", divides, f"a divisor of batch_size={self.batch_size} with packing=per_process"
            )
        require(self, "cache_gib", 0 < self.cache_gib < float("inf"), "positive and finite")
        require(self, "seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")
        require(self, "max_synthetic_share", 0 <= self.max_synthetic_share <= 1, "between 0 and 1")
        weights = [item.weight for item in self.mixture]
        share = sum(item.weight for item in self.mixture if item.synthetic) / sum(weights)
        least = f"at least {share:.4g}, the share of the weights of synthetic folders. Lower their weights"
        # Weights such as 0.1 and 0.2 are not exact.
        require(self, "max_synthetic_share", share <= self.max_synthetic_share * (1 + 1e-9), least)


def train_iterator(
    config: DataConfig, tokenizer: Tokenizer, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Return an endless iterator of training batches.

    `get_state` and `set_state` (or `grain.checkpoint.CheckpointSave` and `CheckpointRestore` with Orbax) continue it exactly.

    Args:
        config: Data settings.
        tokenizer: Tokenizer of the shards.
        process_index, process_count: Index of this process and number of processes. Each process gets batch_size / process_count rows
            of every batch.

    Raises:
        ShardError: A folder cannot be read or was written with another tokenizer.
        PlamoError: The batch cannot be divided among the processes.
    """
    sources = open_mixture(config, tokenizer)
    return mixed_batches(config, sources, process_index=process_index, process_count=process_count)


def open_mixture(config: DataConfig, tokenizer: Tokenizer) -> list[Pieces | UpsampledPieces]:
    """Open the shards of a mixture as the sources of `mixed_batches`. Raise ShardError as `train_iterator` does."""
    cache = open_cache(config)
    sources, in_buckets = [], 0
    for item in config.mixture:
        shards = open_shards(item.path, tokenizer, cache)
        pieces: Pieces | UpsampledPieces = Pieces(shards, config.sequence_length, tokenizer.bos_id, tokenizer.eos_id)
        if config.long_document_tokens is not None:
            pieces = UpsampledPieces(pieces, config.long_document_tokens, config.long_document_repeats)
        sources.append(pieces)
        if is_remote(item.path):
            in_buckets += sum(shard["size"] for shard in shards.manifest["shards"])
    if cache is not None and config.packing == "global" and in_buckets > cache.limit:
        # A process reads documents of all shards in random order, so it would fail after it has filled the cache.
        raise PlamoError(
            f"DataConfig.cache_gib={config.cache_gib} is not allowed: with packing=global it must be at least "
            f"{in_buckets / 2**30:.3g}, the size of the shards in buckets. Raise it, or use packing=per_process"
        )
    return sources


def open_cache(config: DataConfig) -> ShardCache | None:
    """Open the cache of shards that are in a bucket; None if the config names none."""
    return None if config.cache is None else ShardCache(config.cache, int(config.cache_gib * 2**30))


class Elements(Protocol):
    """Source of elements to mix and pack: random access to dicts of arrays of equal length."""

    targets: int
    """Total number of positions in all elements."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...

    def share(self, index: int, count: int) -> Share:
        """Return share `index` of `count`, for `packing="per_process"`."""


def mixed_batches(
    config: DataConfig,
    sources: Sequence[Elements],
    collator: Collator = TEXT_COLLATOR,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Return an endless iterator of batches from several sources, as `train_iterator` does from folders of shards.

    Args:
        config: Data settings; `mixture[i].weight` is the weight of `sources[i]`.
        sources: Elements to mix.
        collator: Data collator of the elements; the default is for text.
        process_index, process_count: As for `train_iterator`.
    """
    rows = _rows_of_process(config, process_index, process_count)
    # The packer fills all bins before it returns their rows. A buffer of that size lets it fill the bins again in the meantime.
    shard_rows = config.batch_size // max(1, config.packing_shards)
    buffer = config.prefetch_batches + -(-config.packing_bins // shard_rows) if config.prefetch_batches else 0
    if config.worker_processes:
        _mark_flags_parsed()
    if config.packing == "per_process":
        shards = _packing_shards(config, sources, collator, process_index, process_count)
        return ShardedBatches(shards, config.worker_processes, buffer)
    mixture = _mix(config, sources, config.seed, max(1, config.worker_processes))
    dataset = mixture.to_iter_dataset(_read_options(config.read_threads))
    dataset = pack(dataset, config.sequence_length, config.packing_bins, config.seed, config.shuffle, collator)
    dataset = dataset.batch(config.batch_size, drop_remainder=True)
    dataset = dataset.map(functools.partial(_take_rows, rows=rows)).map(collator.to_batch)
    if config.worker_processes:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.worker_processes))
    if buffer:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=buffer)
    return iter(dataset)


def _packing_shards(
    config: DataConfig, sources: Sequence[Elements], collator: Collator, process_index: int, process_count: int
) -> dict[int, grain.IterDataset]:
    """Return the endless batches of each packing shard that a process serves, by index."""
    own, rest = divmod(config.packing_shards, process_count)
    require(config, "packing_shards", not rest, f"a multiple of the number of processes, {process_count}")
    threads = -(-config.read_threads // own)
    shards = {}
    for shard in range(process_index * own, (process_index + 1) * own):
        shares = [source.share(shard, config.packing_shards) for source in sources]
        for item, share in zip(config.mixture, shares, strict=True):
            if not len(share):
                raise PlamoError(
                    f"DataConfig.packing_shards={config.packing_shards} is not allowed: {address(item.path)} "
                    f"has too few documents, or too long ones, so the share of packing shard {shard} is empty. "
                    "Use fewer packing shards, or packing=global"
                )
        # Hashed, so that shards of neighbouring numbers and seeds do not share orders.
        seed = int(np.random.SeedSequence([config.seed, shard, config.packing_shards]).generate_state(1)[0])
        dataset = _mix(config, shares, seed).to_iter_dataset(_read_options(threads))
        dataset = pack(dataset, config.sequence_length, config.packing_bins, seed, config.shuffle, collator)
        dataset = dataset.batch(config.batch_size // config.packing_shards, drop_remainder=True)
        shards[shard] = dataset.map(collator.to_batch)
    return shards


def _mark_flags_parsed() -> None:
    from absl import flags

    # Grain's worker processes read absl flags, and only `absl.app.run` would parse them.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def heldout_batches(
    config: DataConfig,
    documents: str | Path | Shards | TokenizedText,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Batch]:
    """Return the batches of held-out text for evaluation: every document once, in order. They can be iterated several times.

    The last batch is filled with rows of padding, so all batches have the same shape.

    Args:
        config: Data settings; sequence_length, batch_size, packing_bins and read_threads are used.
        documents: Folder of shards, opened shards, or text in memory.
        tokenizer: Tokenizer of the documents.
        process_index, process_count: As for `train_iterator`.

    Raises:
        ShardError: The folder cannot be read or was written with another tokenizer.
        PlamoError: The batch cannot be divided among the processes.
    """
    shards = (
        documents
        if isinstance(documents, Shards | TokenizedText)
        else open_shards(documents, tokenizer, open_cache(config))
    )
    pieces = Pieces(shards, config.sequence_length, tokenizer.bos_id, tokenizer.eos_id)
    return one_pass(config, pieces, process_index=process_index, process_count=process_count)


def one_pass(
    config: DataConfig,
    elements: Elements,
    collator: Collator = TEXT_COLLATOR,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Batch]:
    """Return batches with every element once, in order, as `heldout_batches` does. The arguments are the same as for `mixed_batches`."""
    rows = _rows_of_process(config, process_index, process_count)
    dataset = grain.MapDataset.source(elements).to_iter_dataset(_read_options(config.read_threads))
    dataset = pack(dataset, config.sequence_length, config.packing_bins, collator=collator)
    fill = functools.partial(grain.experimental.batch_and_pad, batch_size=config.batch_size)
    dataset = dataset.batch(config.batch_size, drop_remainder=False, batch_fn=fill)
    return dataset.map(functools.partial(_take_rows, rows=rows)).map(collator.to_batch)


def _mix(config: DataConfig, sources: Sequence[Elements | Share], seed: int, workers: int = 1) -> grain.MapDataset:
    """Return the endless mixture of the elements of all sources. Every `workers`-th element, from any start, is a mixture by weight too."""
    parts, proportions = [], []
    for number, (item, pieces) in enumerate(zip(config.mixture, sources, strict=True)):
        part = grain.MapDataset.source(pieces)
        if config.shuffle:
            # Grain adds the epoch number to the seed. The seed is hashed, so that different folders and seeds do not share orders.
            part = part.shuffle(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        parts.append(part.repeat())
        # Grain's weights count elements, ours count tokens.
        proportions.append(item.weight * len(pieces) / pieces.targets)
    if len(parts) == 1:
        return parts[0]
    if workers == 1:
        return grain.MapDataset.mix(parts, proportions)
    # Grain gives worker i of n the elements i, i + n, ... A mixture repeats a pattern, so every n-th element may come from one folder only.
    # Each worker therefore gets a mixture of its own, of every n-th element of each folder.
    mixtures = [grain.MapDataset.mix([part[i::workers] for part in parts], proportions) for i in range(workers)]
    return grain.MapDataset.mix(mixtures)


def _take_rows(batch: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in batch.items()}


def _rows_of_process(config: DataConfig, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count:
        raise PlamoError(
            f"process_index={process_index} is not allowed: it must be between 0 and process_count - 1 = {process_count - 1}"
        )
    rows, rest = divmod(config.batch_size, process_count)
    require(config, "batch_size", not rest, f"a multiple of the number of processes, {process_count}")
    return slice(process_index * rows, (process_index + 1) * rows)


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64 if threads else 0)
