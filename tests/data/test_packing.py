"""The batch contract over any lengths of documents, and packing efficiency on real text."""

import itertools
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from plamo2_jax.data.packing import Pieces, measure_packing
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches, train_iterator
from plamo2_jax.data.shards import open_shards
from support.shards import check_contract, documents_of, expected_segments, segments_of, write

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packing") / "shards"


@hypothesis.given(lengths=LENGTHS, t=st.integers(2, 24), rows=st.integers(1, 4), bins=st.integers(1, 8))
def test_one_pass_holds_every_token_once(folder, letters, lengths, t, rows, bins):
    documents = documents_of(lengths)
    write(folder, documents, letters)
    config = DataConfig((MixtureItem(folder),), t, rows, packing_bins=bins)
    batches = list(heldout_batches(config, folder, letters))
    for batch in batches:
        check_contract(batch, rows, t)
    assert Counter(segments_of(batches)) == Counter(expected_segments(documents, letters, t))
    assert sum(int(batch["loss_weights"].sum()) for batch in batches) == sum(lengths) + len(lengths)


@hypothesis.given(lengths=LENGTHS, t=st.integers(2, 24), bins=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_of_training_holds_every_token_once(folder, letters, lengths, t, bins, seed):
    documents = documents_of(lengths)
    write(folder, documents, letters)
    # A batch is one filling of the bins, so that batches end where the packer has nothing half-filled.
    config = DataConfig((MixtureItem(folder),), t, bins, seed, bins, prefetch_batches=0, read_threads=0)
    expected = Counter(expected_segments(documents, letters, t))
    seen: Counter = Counter()
    iterator = train_iterator(config, letters)
    for _ in range(8):
        batch = next(iterator)
        check_contract(batch, bins, t)
        seen.update(segments_of([batch]))
        epochs = seen.total() // expected.total()
        for segment, times in expected.items():
            assert epochs * times <= seen[segment] <= (epochs + 1) * times
    assert set(seen) <= set(expected)


def test_pieces_of_a_long_document(tmp_path, letters):
    document = documents_of([10])[0]
    pieces = Pieces(open_shards(write(tmp_path / "shards", [document], letters)), 4, letters.bos_id, letters.eos_id)
    ids = letters.encode(document.text).tolist()
    assert [(piece["tokens"].tolist(), piece["targets"].tolist()) for piece in map(pieces.__getitem__, range(3))] == [
        ([1, *ids[:3]], ids[:4]),
        (ids[3:7], ids[4:8]),
        (ids[7:10], [*ids[8:10], 2]),
    ]
    assert len(pieces) == 3
    assert pieces.targets == 11


def packing_efficiency(batches):
    """The share of positions that hold a target."""
    return float(np.mean([batch["segment_ids"] != 0 for batch in batches]))


@pytest.mark.parametrize("t", [512, 2048])
def test_real_text_fills_98_percent_of_the_positions(corpus_shards, vocabulary, t):
    mixture = tuple(MixtureItem(path) for path in corpus_shards.values())
    config = DataConfig(mixture, t, 16, prefetch_batches=0)
    # Whole sets of bins: the last rows of a set are emptier than the others.
    batches = 2 * config.packing_bins // 16
    assert 0.98 <= packing_efficiency(itertools.islice(train_iterator(config, vocabulary), batches)) < 1


def test_packing_of_a_folder_is_measured_without_a_tokenizer(corpus_shards):
    few_rows, many_rows = (measure_packing(open_shards(corpus_shards["ja"]), 2048, bins) for bins in (4, 64))
    assert few_rows < 0.97
    assert 0.98 <= many_rows < 1


def test_efficiency_counts_positions(tmp_path, letters):
    folder = write(tmp_path / "shards", documents_of([5, 5, 5]), letters)
    # Three segments of 6 in rows of 10: three rows in a batch of four.
    config = DataConfig((MixtureItem(folder),), 10, 4)
    assert packing_efficiency(heldout_batches(config, folder, letters)) == 18 / 40
