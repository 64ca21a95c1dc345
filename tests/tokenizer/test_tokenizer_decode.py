"""Decoding, whole and streamed, and what one id is worth in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.tokenizer.tokenizer import StreamDecoder, Tokenizer
from support.vocabularies import FIXED_ROWS, valid_texts

VOCAB_SIZE = 861


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), skip_control=st.booleans())
def test_streaming_equals_decoding_at_once(golden, ids, skip_control):
    stream = StreamDecoder(golden, skip_control=skip_control)
    pushed = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(pushed) == golden.decode(ids, skip_control=skip_control)


@settings(deadline=None)
@given(text=valid_texts())
def test_streaming_never_shows_half_a_character(golden, text):
    stream = StreamDecoder(golden)
    shown = ""
    for i in golden.encode(text).tolist():
        shown += stream.push(i)
        assert text.startswith(shown)
    assert stream.flush() == ""
    assert shown == text


def test_an_unfinished_character_appears_at_the_flush(golden):
    first, second, third = golden.encode("\u2603").tolist()  # no row of its own: three bytes
    stream = StreamDecoder(golden)
    assert (stream.push(first), stream.push(second)) == ("", "")
    assert stream.flush() == "\ufffd"
    assert [stream.push(i) for i in (first, second, third)] == ["", "", "\u2603"]


def test_invalid_bytes_become_replacement_characters(golden):
    byte = golden.id_of("<0xFF>")
    assert golden.decode([byte, golden.encode("a")[0]]) == "\ufffda"


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40))
def test_byte_lengths_count_the_decoded_bytes(golden, ids):
    pieces = b"".join(golden.token_bytes(i) for i in ids if not golden.is_special(i))
    assert golden.byte_lengths[np.array(ids, int)].sum() == len(pieces)
    assert pieces.decode(errors="replace") == golden.decode(ids, skip_control=True)


@settings(deadline=None)
@given(text=valid_texts())
def test_byte_lengths_of_encoded_text_sum_to_its_bytes(golden, text):
    assert golden.byte_lengths[golden.encode(text, bos=True, eos=True)].sum() == len(text.encode())
    assert golden.byte_lengths.dtype == np.int32


def test_control_rows_are_shown_or_skipped(golden):
    ids = golden.encode("a", bos=True, eos=True)
    assert golden.decode(ids) == "<|plamo:bos|>a<|plamo:eos|>"
    assert golden.decode(ids, skip_control=True) == "a"
    assert golden.decode([golden.unk_id], skip_control=True) == ""


def test_a_normal_row_that_looks_like_a_byte_decodes_as_text():
    tokenizer = Tokenizer.from_rows([*FIXED_ROWS, ["<0x4", -1.0, "NORMAL"]])
    assert tokenizer.decode(tokenizer.encode("<0x41>")) == "<0x41>"


@pytest.mark.parametrize("ids", [[0, -1], [5, VOCAB_SIZE], np.array([0, 100_031])])
def test_ids_outside_the_vocabulary_are_refused(golden, ids):
    with pytest.raises(ValueError, match=f"at position 1 is outside the vocabulary of {VOCAB_SIZE} rows"):
        golden.decode(ids)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        golden.token_bytes(int(ids[1]))


@pytest.mark.parametrize("ids", [[1.5], np.zeros((2, 2), int), ["1"]])
def test_ids_must_be_a_row_of_integers(golden, ids):
    with pytest.raises(ValueError, match="one row of integers"):
        golden.decode(ids)


def test_nothing_decodes_to_nothing(golden):
    assert golden.decode([]) == ""
    assert golden.decode(np.zeros(0, np.int32)) == ""
