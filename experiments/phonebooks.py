"""Phonebooks that a small model learns to look up in minutes: a tokenizer and shards, and the accuracy of a model by length of the book.

A number is one token, and a name two or three. So a model of a million parameters learns to look up in minutes on two CPU cores. To learn
to spell telephone numbers, it would take hours.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from trials import LANGUAGES, heldout_bits, run

from plamo2_jax import models
from plamo2_jax.eval import phonebook
from plamo2_jax.eval.depths import depths
from plamo2_jax.eval.phonebook_names import full_names
from plamo2_jax.eval.retrieval import ask, table
from plamo2_jax.storage import write_whole

# The tokenizer joins a tab with neither name nor number.
SEPARATOR, DEPTHS, CANDIDATES = "\t", 4, 4


@dataclasses.dataclass(frozen=True)
class Books:
    """Form and size of the phonebooks of an experiment."""

    digits: int = 2
    """Digits of a number. Half of the numbers with so many digits are the limit of a book's entries."""
    kinds: Mapping[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {"short": (2, 5, 5), "long": (2, 40, 20)}
    )
    """Least and most entries, and queries, of the books of each kind."""


def prepare(home: Path, books: Books, documents: int, vocab_size: int) -> None:
    """Write a tokenizer, shards of the bundled corpus and shards of phonebooks, unless they exist; compiled programs are kept, too.

    Args:
        home: folder that gets tokenizer.jsonl and data/LANGUAGE/{train,heldout} and data/KIND.
        documents: phonebooks of each kind.
        vocab_size: rows of the tokenizer.
    """
    home.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    if not (home / "tokenizer.jsonl").exists():
        words = home / "words.jsonl"
        lines = "".join(json.dumps({"text": word}, ensure_ascii=False) + "\n" for word in _spelt(books.digits))
        write_whole(words, lines.encode())
        run("tokenizer", "train", "--input", "bundled:all:train", words, "--vocab-size", vocab_size, "--output", home)
    sources = {
        f"{language}/{split}": f"bundled:{language}:{split}" for language in LANGUAGES for split in ("train", "heldout")
    }
    for name, (least, most, queries) in books.kinds.items():
        sources[name] = home / f"{name}.jsonl"
        if not sources[name].exists():
            form = ("--digits", books.digits, "--separator", SEPARATOR, "--queries", queries)
            run("phonebook", sources[name], "--documents", documents, "--entries", least, most, *form)
    for name, source in sources.items():
        if not (home / "data" / name).exists():
            run("data", "prepare", "--input", source, "--tokenizer", home, "--output", home / "data" / name)


def _spelt(digits: int) -> list[str]:
    """Return names and numbers, often enough for the vocabulary to have them as tokens."""
    rng = np.random.default_rng(0)
    names = [name for language in LANGUAGES for name in full_names(rng, language, 1600)]
    return 20 * names + 1000 * [f"{i:0{digits}}" for i in range(10**digits)]


def measure(
    home: Path,
    folder: Path,
    books: Books,
    *,
    lengths: Sequence[int],
    samples: int,
    sequence: tuple[int, int],
    batches: int,
) -> dict:
    """Return held-out bits per byte by language, and the accuracies of lookups as rows of `retrieval.table`.

    Args:
        home: folder of `prepare`.
        folder: a run or a model.
        lengths: tokens of the books with question and answer.
        samples: questions of each language, length and depth.
        sequence: tokens of a row of held-out text, and rows of a batch.
        batches: batches of held-out text of each language.
    """
    with models.open(folder, batch_size=8 * CANDIDATES) as model:
        questions = phonebook.questions(
            lambda text: len(model.tokenizer.encode(text, bos=True)),
            lengths=lengths,
            depths=depths(DEPTHS),
            samples=samples,
            candidates=CANDIDATES,
            digits=books.digits,
            separator=SEPARATOR,
        )
        rows = table(ask(questions, model, batch_size=8))
    return {"bits_per_byte": heldout_bits(home, folder, *sequence, batches), "rows": rows}


def accuracy(found: Mapping, score: str, length: int) -> float:
    """Return the mean of a score over languages and depths at a length."""
    rows = [row for row in found["rows"] if row["length"] == length and row["depth"] is None]
    return float(np.mean([row[score] for row in rows]))
