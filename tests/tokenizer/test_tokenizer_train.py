"""Training a vocabulary on real text, and the files it is read from."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.data.corpus import documents
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.tokenizer.train import VocabularyOptions, sample_texts, train_tokenizer
from support.vocabularies import valid_texts

OPTIONS = VocabularyOptions(vocab_size=1500, sample_bytes=200_000, character_coverage=0.99)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """About 250 kB of Japanese and English."""
    return [d["text"] for language in ("ja", "en") for d in itertools.islice(documents(language, "train"), 40)]


@pytest.fixture(scope="module")
def trained(real_texts) -> Tokenizer:
    return train_tokenizer(real_texts, OPTIONS, progress=False)


def test_rows_are_laid_out_as_documented(trained, tmp_path):
    assert trained.vocab_size == 1500
    assert trained.tokens[:7] == (
        "<|plamo:unk|>",
        "<|plamo:bos|>",
        "<|plamo:eos|>",
        "<|plamo:pad|>",
        "<|plamo:op|>",
        "<|plamo:reserved5|>",
        "<|plamo:reserved6|>",
    )
    assert trained.tokens[7:11] == (" ", "\u3000", "\t", "\n")
    rows = [json.loads(line) for line in trained.save(tmp_path).read_text().split("\n") if line]
    types = [row[2] for row in rows]
    assert types == ["UNKNOWN"] + ["CONTROL"] * 6 + ["NORMAL"] * 4 + ["BYTE"] * 256 + ["NORMAL"] * (1500 - 267)
    assert [row[0] for row in rows[11:267]] == [f"<0x{value:02X}>" for value in range(256)]
    scores = [row[1] for row in rows[267:]]
    assert scores == sorted(scores, reverse=True)
    assert max(scores) < 0
    assert all(len(row) == 7 for row in rows)
    assert max(map(len, trained.tokens[267:])) <= OPTIONS.max_token_chars


def test_training_again_gives_the_same_file(trained, real_texts):
    assert train_tokenizer(iter(real_texts), OPTIONS, progress=False).fingerprint == trained.fingerprint


def test_another_seed_gives_another_sample(trained, real_texts):
    small = VocabularyOptions(vocab_size=1500, sample_bytes=150_000, character_coverage=0.99, seed=1)
    assert train_tokenizer(real_texts, small, progress=False).fingerprint != trained.fingerprint


def test_held_out_text_round_trips_and_shrinks(trained):
    for language, bytes_per_token in (("ja", 3.0), ("en", 2.0)):
        text = "\n".join(d["text"] for d in itertools.islice(documents(language, "heldout"), 10))
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert len(text.encode()) / len(ids) > bytes_per_token


@settings(deadline=None)
@given(text=valid_texts())
def test_any_text_round_trips(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_tokens_hold_literal_spaces_and_newlines(trained):
    learned = trained.tokens[267:]
    assert any(" " in token.strip(" ") for token in learned)  # between words
    assert any("\n" in token and token.strip() for token in learned)
    assert not any("\u2581" in token for token in learned)


def test_words_and_digits_can_be_kept_apart(real_texts):
    options = VocabularyOptions(
        vocab_size=1500, sample_bytes=200_000, character_coverage=0.99, cross_spaces=False, split_digits=True
    )
    learned = train_tokenizer(real_texts, options, progress=False).tokens[267:]
    assert not any(" " in token.strip(" ") for token in learned)
    assert not any(len(token) > 1 and any(c.isascii() and c.isdigit() for c in token) for token in learned)


def test_text_full_of_reserved_strings_trains(real_texts):
    """Spellings that mean something to SentencePiece or in the file must neither break training nor become tokens."""
    hostile = ["<|plamo:bos|><0x41><unk><s>\u2581\u2585 \0 <|plamo:reserved5|> <0x41><0x42>\n" * 50] * 20
    tokenizer = train_tokenizer([*real_texts, *hostile], OPTIONS, progress=False)
    assert tokenizer.vocab_size == 1500
    assert not any(token.startswith("<0x") for token in tokenizer.tokens[267:])
    assert tokenizer.decode(tokenizer.encode(hostile[0])) == hostile[0]


def test_too_little_text_is_said():
    with pytest.raises(ValueError, match=r"vocab_size=5000 is not allowed: the text supports at most \d+ rows"):
        train_tokenizer(["短い文。A short text. " * 20], VocabularyOptions(vocab_size=5000), progress=False)
    with pytest.raises(ValueError, match="all inputs are empty"):
        train_tokenizer(["", "\0"], OPTIONS, progress=False)


def test_too_few_rows_for_the_characters_is_said(real_texts):
    with pytest.raises(ValueError, match="300"):
        train_tokenizer(real_texts, VocabularyOptions(vocab_size=300), progress=False)


def test_a_lone_surrogate_in_the_corpus_is_said():
    with pytest.raises(ValueError, match="text 1 holds a lone surrogate at position 2"):
        train_tokenizer(["good", "ab\ud800"], OPTIONS, progress=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 267), ("sample_bytes", 0), ("character_coverage", 1.5), ("max_token_chars", 0), ("seed_pieces", 1)],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value} is not allowed: it must be"):
        VocabularyOptions(**{field: value})


@given(texts=st.lists(st.text("aé東𠮷", max_size=50), max_size=30), limit=st.integers(1, 400), seed=st.integers(0, 5))
def test_a_sample_is_even_ordered_and_bounded(texts, limit, seed):
    numbered = [f"{i}:{text}" for i, text in enumerate(texts)]
    sample = sample_texts(numbered, limit, seed)
    assert sample == sample_texts(numbered, limit, seed)
    assert sample == [text for text in numbered if text in set(sample)]
    total = sum(len(text.encode()) for text in numbered)
    kept = sum(len(text.encode()) for text in sample)
    assert kept >= min(limit, total)
    assert not sample or kept - max(len(text.encode()) for text in sample) < limit


def test_a_huge_document_is_sampled_throughout():
    text = "".join(f"{i:09d}\n" for i in range(100_000))
    sample = "".join(sample_texts([text], 200_000, seed=0))
    assert 200_000 <= len(sample) <= 220_000
    assert min(sample.split("\n")[:-1]) < "000020000"
    assert max(sample.split("\n")[:-1]) > "000080000"
