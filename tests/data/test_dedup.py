"""Duplicates are found, distinct documents are kept, nothing depends on chance."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.data import corpus
from plamo2_jax.data.dedup import DedupConfig, DedupReport, deduplicate, fingerprint, minhash, shingle_hashes


@pytest.fixture(scope="module")
def real_documents() -> list[dict[str, str]]:
    """Held-out pages of the bundled corpus, cut to a size that keeps the tests fast."""
    return [{**d, "text": d["text"][:3000]} for d in corpus.documents(split="heldout") if len(d["text"]) > 400]


def run(documents: list[dict], **config) -> tuple[list[dict], DedupReport]:
    report = DedupReport()
    return list(deduplicate(documents, DedupConfig(**config), report, progress=False)), report


def edited(text: str, share: float, seed: int) -> str:
    """The text with about this share of its characters replaced, in runs of ten."""
    rng, letters = random.Random(seed), list(text)
    for _ in range(int(share * len(letters) / 10)):
        start = rng.randrange(len(letters) - 10)
        letters[start : start + 10] = [chr(rng.randrange(0x4E00, 0x9000)) for _ in range(10)]
    return "".join(letters)


def jaccard(a: str, b: str, ngram: int) -> float:
    """The definition, with Python sets."""
    a, b = "".join(a.split()), "".join(b.split())
    a, b = ({t[i : i + ngram] for i in range(len(t) - ngram + 1)} for t in (a, b))
    return len(a & b) / len(a | b)


def test_real_distinct_documents_are_kept(real_documents):
    kept, report = run(real_documents)
    assert kept == real_documents
    assert report.documents_in == report.documents_out == len(real_documents) > 150


def test_planted_duplicates_are_found_and_the_first_stays(real_documents):
    planted = []
    for i, document in enumerate(real_documents[:40]):
        planted.append({**document, "id": f"spaced-{i}", "text": "\n\n " + document["text"].replace("\n", "\n \n")})
        planted.append({**document, "id": f"edited-{i}", "text": edited(document["text"], 0.03, i)})
    kept, report = run(real_documents + planted)
    assert kept == real_documents
    assert {d.id for d in report.exact} == {f"spaced-{i}" for i in range(40)}
    assert {d.id for d in report.near} == {f"edited-{i}" for i in range(40)}
    for found in report.exact + report.near:
        assert found.duplicate_of == real_documents[int(found.id.split("-")[1])]["id"]
    assert "exact duplicates 40, near-duplicates 40" in report.summary()


def test_documents_below_the_threshold_are_kept(real_documents):
    changed = [{**d, "id": f"new-{i}", "text": edited(d["text"], 0.3, i)} for i, d in enumerate(real_documents[:40])]
    kept, report = run(real_documents[:40] + changed)
    assert len(kept) == 80
    assert not report.near


def test_deduplication_is_idempotent_and_repeats_itself(real_documents):
    doubled = [d for document in real_documents[:50] for d in (document, {**document, "text": document["text"] + "。"})]
    first, report = run(doubled)
    again, _ = run(doubled)
    twice, second = run(first)
    assert first == again == twice
    assert len(report.near) == 50
    assert not second.near
    assert not second.exact


def test_estimate_is_near_the_true_similarity(real_documents):
    config = DedupConfig(permutations=256)
    for i, share in enumerate([0.0, 0.05, 0.1, 0.3, 0.6]):
        text = real_documents[i]["text"]
        other = edited(text, share, i)
        estimate = minhash(text, config).jaccard(minhash(other, config))
        assert abs(estimate - jaccard(text, other, config.ngram)) < 4 / 256**0.5 * 0.5


@given(st.text(max_size=60), st.integers(1, 8))
def test_shingles_are_those_of_the_definition(text, ngram):
    squeezed = "".join(text.split())
    expected = {squeezed[i : i + ngram] for i in range(max(1, len(squeezed) - ngram + 1))} if squeezed else set()
    hashes = shingle_hashes(text, ngram)
    assert len(hashes) == len(expected)
    assert np.all(np.diff(hashes.astype(np.int64)) > 0)
    assert np.array_equal(hashes, shingle_hashes(" \n".join(text), ngram))


@given(st.text(), st.text())
def test_fingerprint_ignores_white_space_only(a, b):
    assert (fingerprint(a) == fingerprint(b)) == ("".join(a.split()) == "".join(b.split()))


def test_long_texts_are_hashed_in_pieces(real_documents):
    long = "".join(d["text"] for d in real_documents)
    # Pieces or not, the signature is the minimum over all shingles.
    config = DedupConfig(permutations=16)
    from datasketch import MinHash

    whole = MinHash(num_perm=16, seed=config.seed, hashfunc=int)
    whole.update_batch(shingle_hashes(long, config.ngram).tolist())
    assert np.array_equal(minhash(long, config).hashvalues, whole.hashvalues)


def test_empty_documents_and_repeated_ids():
    kept, report = run(
        [{"text": ""}, {"text": " \n"}, {"text": "a"}, {"text": "b", "id": "x"}, {"text": "c", "id": "x"}]
    )
    assert [d["text"] for d in kept] == ["", "a", "b", "c"]
    assert [(d.id, d.duplicate_of) for d in report.exact] == [("1", "0")]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", 0.0, r"threshold=0.0 is not allowed: it must be in \(0, 1\]"),
        ("ngram", 0, "ngram=0 is not allowed: it must be at least 1"),
        ("permutations", 8, "permutations=8 is not allowed: it must be at least 16"),
    ],
)
def test_bad_config_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        DedupConfig(**{field: value})
