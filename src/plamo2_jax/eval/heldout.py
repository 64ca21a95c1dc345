"""The held-out table: bits per byte of a model, and of `xz -9e` where there is plain text, for each held-out set."""

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
    """One language's held-out text: the model, and a general compressor."""

    model: HeldOut
    """What the model needs."""
    documents: int
    """Number of documents."""
    xz_bits_per_byte: float | None
    """Bits `xz -9e` needs for a byte of the same documents, joined by newlines into one file; None for conversations."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, as they go into files."""
        xz = {} if self.xz_bits_per_byte is None else {"xz_bits_per_byte": self.xz_bits_per_byte}
        return {**self.model.metrics, "perplexity": self.model.perplexity, "documents": self.documents, **xz}


@dataclasses.dataclass(frozen=True)
class HeldOutSet:
    """Held-out data in batches."""

    batches: Iterable[Batch]
    """One pass."""
    documents: int
    """Number of documents or conversations."""
    targets: int
    """Positions to measure, for the progress bar."""
    text: Shards | TokenizedText | None = None
    """The documents, for xz; None where they are no plain text."""


def text_set(
    documents: str | Path | TokenizedText, tokenizer: Tokenizer, *, sequence_length: int, batch_size: int
) -> HeldOutSet:
    """Batches of plain text.

    Args:
        documents: a folder of shards, or text in memory.
        tokenizer: the one that the shards were written with.
        sequence_length: positions in a row.
        batch_size: rows in a batch.

    Raises:
        ShardError: a folder cannot be read or was made with another tokenizer.
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
    """Measure held-out data, set by set, in one pass each; all sets of one shape of batch share one compilation.

    Args:
        model: the model.
        params: its parameters.
        tokenizer: the one that the data were tokenized with.
        heldout: folders of shards, or sets of batches, by name.
        sequence_length: positions in a row; a longer document is read in pieces that do not see each other, so longer rows can only
            help a model.
        batch_size: rows at once.

    Raises:
        ShardError: a folder cannot be read or was made with another tokenizer.
        ValueError: the tokenizer has more rows than the model.
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
    """Bits a byte of what `xz -9e` makes of the documents, decoded and joined by newlines into one file."""
    text = "\n".join(tokenizer.decode(shards[i].ids) for i in range(len(shards))).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def table(results: Mapping[str, Comparison]) -> str:
    """The comparison as lines of text."""
    header = ("held-out", "documents", "bytes", "tokens", "nats/token", "perplexity", "bits/byte", "xz -9e")
    rows = [
        (
            language,
            f"{result.documents:,}",
            f"{result.model.bytes:,}",
            f"{result.model.tokens:,}",
            f"{result.model.loss:.4f}",
            f"{result.model.perplexity:.4g}",
            f"{result.model.bits_per_byte:.4f}",
            "-" if result.xz_bits_per_byte is None else f"{result.xz_bits_per_byte:.4f}",
        )
        for language, result in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (header, *rows)
    )
