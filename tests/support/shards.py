"""Documents of exact lengths in tokens, and what batches must say about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from plamo2_jax.data.documents import Document
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.tokenizer.tokenizer import Tokenizer

_FIRST_LETTER = 0x4E00
LETTERS = 600
Segment = tuple[tuple[int, ...], tuple[int, ...]]


def letter_tokenizer() -> Tokenizer:
    """A row for each of 600 characters, so that a text has as many tokens as characters."""
    rows = [["<|plamo:unk|>", 0.0, "UNKNOWN"]]
    rows += [[f"<|plamo:{name}|>", 0.0, "CONTROL"] for name in ("bos", "eos", "pad", "op")]
    rows += [[f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)]
    rows += [[chr(_FIRST_LETTER + i), -1.0, "NORMAL"] for i in range(LETTERS)]
    return Tokenizer.from_rows(rows)


def documents_of(lengths: Sequence[int], seed: int = 0, letters: range = range(LETTERS)) -> list[Document]:
    """Random documents of these lengths in tokens; with three tokens or more, no two are alike in practice."""
    rng = np.random.default_rng(seed)
    return [
        Document("".join(chr(_FIRST_LETTER + letters[i]) for i in rng.integers(len(letters), size=n)), f"document {k}")
        for k, n in enumerate(lengths)
    ]


def write(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> Path:
    """Shards of the documents, several of them."""
    write_shards(documents, tokenizer, folder, tokens_per_shard=200, overwrite=True, progress=False)
    return folder


def expected_segments(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> list[Segment]:
    """(inputs, targets) of every segment that the documents make, cut the plain way."""
    segments = []
    for document in documents:
        ids = tokenizer.encode(document.text).tolist()
        inputs, targets = [tokenizer.bos_id, *ids], [*ids, tokenizer.eos_id]
        for start in range(0, len(inputs), length):
            segments.append((tuple(inputs[start : start + length]), tuple(targets[start : start + length])))
    return segments


def segments_of(batches: Iterable[Mapping[str, np.ndarray]]) -> list[Segment]:
    """(inputs, targets) of every segment, row by row in order."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            ids = batch["segment_ids"][row]
            for segment in range(1, ids.max(initial=0) + 1):
                here = ids == segment
                found.append((tuple(batch["tokens"][row][here].tolist()), tuple(batch["targets"][row][here].tolist())))
    return found


def check_contract(batch: Mapping[str, np.ndarray], rows: int, length: int) -> None:
    """Shapes, dtypes, and everything that segment ids imply."""
    dtypes = {"tokens": "int32", "targets": "int32", "segment_ids": "int32", "positions": "int32"}
    assert {name: array.dtype.name for name, array in batch.items()} == {**dtypes, "loss_weights": "float32"}
    assert {array.shape for array in batch.values()} == {(rows, length)}
    ids = batch["segment_ids"]
    padding = ids == 0
    np.testing.assert_array_equal(batch["loss_weights"], (~padding).astype(np.float32))
    for name in ("tokens", "targets", "positions"):
        assert not batch[name][padding].any()
    for row in range(rows):
        used = ids[row][~padding[row]]
        # Padding only at the end; segments contiguous and numbered from 1 in order.
        assert not padding[row][: len(used)].any()
        if not len(used):
            continue
        steps = np.diff(used)
        assert used[0] == 1
        assert set(steps.tolist()) <= {0, 1}
        positions = batch["positions"][row][: len(used)]
        starts = np.flatnonzero(np.concatenate([[1], steps]))
        restart = starts[used - 1]
        np.testing.assert_array_equal(positions, np.arange(len(used)) - restart)
        # Within a segment an input is the target before it.
        inside = np.flatnonzero(steps == 0)
        np.testing.assert_array_equal(batch["tokens"][row][inside + 1], batch["targets"][row][inside])
