"""Count where an exported tokenizer.json, in the `tokenizers` library, encodes text differently from `Tokenizer.encode`.

    python experiments/tokenizer_json/run.py TOKENIZER --output experiments/tokenizer_json/results.json

TOKENIZER is a tokenizer.jsonl, or a folder with one. The texts are all documents of the bundled corpus. Needs `pip install tokenizers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tokenizers
import tyro

from plamo2_jax.convert.tokenizer_files import tokenizer_json
from plamo2_jax.data.corpus import LANGUAGES, documents
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def main(tokenizer: Annotated[Path, tyro.conf.Positional], *, output: Path | None = None) -> None:
    """Compare the two encoders.

    Args:
        tokenizer: A tokenizer.jsonl, or a folder with one.
        output: File to write the counts to, as JSON.
    """
    ours = Tokenizer.load(tokenizer)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    results = {"rows": ours.vocab_size, "fingerprint": ours.fingerprint, "tokenizers": tokenizers.__version__}
    results |= {language: compare(ours, theirs, language) for language in LANGUAGES}
    print(json.dumps(results, indent=2))
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def compare(ours: Tokenizer, theirs: tokenizers.Tokenizer, language: str) -> dict[str, int]:
    """Compare the two encoders on the documents of one language."""
    counts = dict.fromkeys(
        ("texts", "characters", "boundaries", "other_texts", "other_boundaries", "other_costs", "other_lengths"), 0
    )
    costs = ours.vocabulary.costs
    for document in documents(language):
        text = document["text"]
        left = ours.encode(text)
        right = np.array(theirs.encode(text, add_special_tokens=False).ids, np.int64)
        first, second = boundaries(ours, left), boundaries(ours, right)
        counts["texts"] += 1
        counts["characters"] += len(text)
        counts["boundaries"] += len(first)
        counts["other_texts"] += not np.array_equal(left, right)
        counts["other_boundaries"] += len(np.setdiff1d(first, second))
        counts["other_costs"] += int(costs[left].sum() != costs[right].sum())
        counts["other_lengths"] += len(left) != len(right)
    return counts


def boundaries(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return the positions in bytes at which tokens end."""
    return np.cumsum(tokenizer.byte_lengths[ids])


if __name__ == "__main__":
    tyro.cli(main)
