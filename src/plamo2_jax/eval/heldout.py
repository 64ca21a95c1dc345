"""The held-out table: bits per byte of a model and of `xz -9e` on the same text, language by language."""

from __future__ import annotations

import dataclasses
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches
from plamo2_jax.data.shards import Shards
from plamo2_jax.eval.perplexity import HeldOut, make_evaluator
from plamo2_jax.progress import tqdm
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One language's held-out text: the model, and a general compressor."""

    model: HeldOut
    """What the model needs."""
    documents: int
    """Number of documents."""
    xz_bits_per_byte: float
    """Bits `xz -9e` needs for a byte of the same documents, joined by newlines into one file."""

    def figures(self) -> dict[str, float]:
        """All figures by name, as they go into files."""
        return {**self.model.figures(), "documents": self.documents, "xz_bits_per_byte": self.xz_bits_per_byte}


def compare(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    heldout: Mapping[str, Path],
    *,
    sequence_length: int,
    batch_size: int = 8,
) -> dict[str, Comparison]:
    """Measure held-out text, language by language, in one pass.

    Args:
        model: maps tokens, segment ids and positions to logits over `model.config.vocab_size` rows.
        params: its parameters.
        tokenizer: the one that the shards were written with.
        heldout: folders of shards by language.
        sequence_length: positions in a row; a longer document is read in pieces that do not see each other, so longer rows can only
            help a model.
        batch_size: rows at once.

    Raises:
        ShardError: a folder cannot be read or was made with another tokenizer.
        ValueError: the tokenizer has more rows than the model.
    """
    evaluate = make_evaluator(model, byte_lengths(tokenizer, model.config.vocab_size))
    results = {}
    for language, folder in heldout.items():
        data = DataConfig((MixtureItem(Path(folder)),), sequence_length, batch_size)
        batches = heldout_batches(data, folder, tokenizer)
        with tqdm(total=batches.targets, desc=f"held-out {language}", unit="token", unit_scale=True) as progress:

            def counted(batches=batches, progress=progress):
                for batch in batches:
                    yield batch
                    progress.update(int(np.count_nonzero(batch["loss_weights"])))

            result = evaluate(params, counted())
        results[language] = Comparison(result, batches.documents, xz_bits_per_byte(batches.shards, tokenizer))
    return results


def byte_lengths(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """[v] int32, UTF-8 bytes each id stands for; rows of the embedding beyond the tokenizer's stand for none.

    Raises:
        ValueError: the tokenizer has more rows than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"ModelConfig.vocab_size={vocab_size} is not allowed with this tokenizer: it has {tokenizer.vocab_size} rows, and the "
            "model needs at least as many"
        )
    return np.pad(tokenizer.byte_lengths, (0, vocab_size - tokenizer.vocab_size))


def xz_bits_per_byte(shards: Shards, tokenizer: Tokenizer) -> float:
    """Bits a byte of what `xz -9e` makes of the documents, decoded and joined by newlines into one file."""
    text = "\n".join(tokenizer.decode(shards[i].ids) for i in range(len(shards))).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def table(results: Mapping[str, Comparison]) -> str:
    """The comparison as lines of text."""
    header = ("language", "documents", "bytes", "tokens", "nats/token", "bits/byte", "xz -9e")
    rows = [
        (
            language,
            f"{result.documents:,}",
            f"{result.model.bytes:,}",
            f"{result.model.tokens:,}",
            f"{result.model.loss:.4f}",
            f"{result.model.bits_per_byte:.4f}",
            f"{result.xz_bits_per_byte:.4f}",
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
