"""Calibration data: rows of tokens from shards, text or the bundled corpus."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.data.packing import Pieces
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, mixed_batches
from plamo2_jax.data.shards import MANIFEST, open_shards
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import require_at_least

# Text is tokenized in memory: 64 MB of text are about 16 million tokens, far more than a calibration needs.
_MOST_BYTES = 64 << 20


def read_calibration(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    rows: int,
    sequence_length: int,
    batch_size: int,
    seed: int,
) -> list[Batch]:
    """Return batches of packed rows, drawn at random in equal shares from all sources.

    Args:
        sources: Folders of shards, text in any form that `data prepare` reads, or bundled:ja:train and the like. Give each its share as
            SOURCE=WEIGHT.
        tokenizer: The model's tokenizer.
        rows: Number of rows, a multiple of `batch_size`.
        sequence_length: Tokens in a row.
        batch_size: Rows in a batch.
        seed: Random seed of the order.

    Raises:
        PlamoError: A source cannot be read, or was tokenized with another tokenizer; or a number is out of range.
    """
    require_at_least(1, samples=rows, batch_size=batch_size)
    if not sources:
        raise PlamoError("--calibration must name at least one folder of shards, text, or bundled:ja:train")
    items, elements = [], []
    for source in sources:
        path, weight = _split(source)
        folder = Path(path)
        if (folder / MANIFEST).is_file():
            documents = open_shards(folder, tokenizer)
        else:
            report = ReadReport(max_bad_rate=0.0, judge_after=1)
            read = _bounded(read_documents([path], report=report))
            documents = TokenizedText(read, tokenizer, path)
        items.append(MixtureItem(folder, weight))
        elements.append(Pieces(documents, sequence_length, tokenizer.bos_id, tokenizer.eos_id))
    config = DataConfig(
        tuple(items), sequence_length, batch_size, seed=seed, prefetch_batches=0, read_threads=0, packing_bins=64
    )
    return list(itertools.islice(mixed_batches(config, elements), -(-rows // batch_size)))


def _split(source: str) -> tuple[str, float]:
    path, separator, weight = source.rpartition("=")
    if not separator:
        return source, 1.0
    try:
        return path, float(weight)
    except ValueError:
        return source, 1.0


def _bounded(documents):
    size = 0
    for document in documents:
        yield document
        size += len(document.text)
        if size > _MOST_BYTES:
            return
