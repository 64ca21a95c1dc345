"""Bits per byte of a model on held-out sets, compared with `xz -9e` where they are plain text."""

from __future__ import annotations

import dataclasses
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches
from plamo2_jax.data.shards import Shards, open_shards
from plamo2_jax.model.bits_per_byte import HeldOut, make_evaluator
from plamo2_jax.progress import tqdm
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of a model and of a general compressor on one held-out set."""

    model: HeldOut
    documents: int
    xz_bits_per_byte: float | None
    """Bits per byte of `xz -9e` on the same documents, joined by newlines into one file; None for conversations."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, as they are written to files."""
        xz = {} if self.xz_bits_per_byte is None else {"xz_bits_per_byte": self.xz_bits_per_byte}
        return {**self.model.metrics, "perplexity": self.model.perplexity, "documents": self.documents, **xz}


@dataclasses.dataclass(frozen=True)
class HeldOutSet:
    """Held-out data as batches."""

    batches: Iterable[Batch]
    """The batches of one pass."""
    documents: int
    """Number of documents or conversations."""
    targets: int
    """Number of positions to measure, for the progress bar."""
    text: Shards | TokenizedText | None = None
    """The documents, for xz; None if they are not plain text."""


def text_set(
    documents: str | Path | TokenizedText, tokenizer: Tokenizer, *, sequence_length: int, batch_size: int
) -> HeldOutSet:
    """Return the held-out set of plain text: a folder of shards, or text in memory.

    Args:
        tokenizer: Tokenizer of the shards.
        sequence_length: Positions per row.
        batch_size: Rows per batch.

    Raises:
        ShardError: The folder cannot be read or was written with another tokenizer.
    """
    if not isinstance(documents, TokenizedText):
        documents = open_shards(documents, tokenizer)
    data = DataConfig((MixtureItem(Path("heldout")),), sequence_length, batch_size)
    batches = heldout_batches(data, documents, tokenizer)
    # Each document has one end token.
    return HeldOutSet(batches, documents.documents, documents.tokens + documents.documents, documents)


def compare(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    heldout: Mapping[str, Path | HeldOutSet],
    *,
    sequence_length: int,
    batch_size: int = 8,
) -> dict[str, Comparison]:
    """Measure a model on held-out sets. All sets with the same shape of batch share one compilation.

    Args:
        tokenizer: Tokenizer of the data.
        heldout: Folders of shards, or sets of batches, by name.
        sequence_length: Positions per row. A longer document is cut into pieces that do not see each other, so longer rows can only help
            a model.
        batch_size: Rows per batch.

    Raises:
        ShardError: A folder cannot be read or was written with another tokenizer.
        PlamoError: The tokenizer has more rows than the model.
    """
    evaluate = make_evaluator(model, tokenizer.padded_byte_lengths(model.config.vocab_size))
    results = {}
    for name, found in heldout.items():
        if not isinstance(found, HeldOutSet):
            found = text_set(found, tokenizer, sequence_length=sequence_length, batch_size=batch_size)
        with tqdm(total=found.targets, desc=f"held-out {name}", unit="token", unit_scale=True) as progress:

            def counted(batches=found.batches, progress=progress):
                for batch in batches:
                    yield batch
                    progress.update(int(np.count_nonzero(batch["loss_weights"])))

            result = evaluate(params, counted())
        xz = None if found.text is None else xz_bits_per_byte(found.text, tokenizer)
        results[name] = Comparison(result, found.documents, xz)
    return results


def xz_bits_per_byte(shards: Shards | TokenizedText, tokenizer: Tokenizer) -> float:
    """Return the bits per byte of `xz -9e` on the documents, decoded and joined by newlines into one file."""
    text = "\n".join(tokenizer.decode(shards[i].ids) for i in range(len(shards))).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def table(results: Mapping[str, Comparison]) -> str:
    """Format the results as a text table."""
    header = ("held-out", "documents", "bytes", "tokens", "nats/token", "perplexity", "bits/byte", "xz -9e")
    rows = [header]
    for name, result in results.items():
        model, xz = result.model, result.xz_bits_per_byte
        counts = (f"{count:,}" for count in (result.documents, model.bytes, model.tokens))
        scores = (f"{model.loss:.4f}", f"{model.perplexity:.4g}", f"{model.bits_per_byte:.4f}")
        rows.append((name, *counts, *scores, "-" if xz is None else f"{xz:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in rows)
    return "\n".join(map("  ".join, lines))
