"""Encoding is exactly the published algorithm, and loses nothing."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plamo2_jax.tokenizer import lattice
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.user_cache import compile_function
from support.segmentation import brute_force_ids
from support.vocabularies import CONTROLS, FIXED_ROWS, GOLDEN, tiny_rows, tiny_texts, valid_texts

CASES = json.loads((GOLDEN / "cases.json").read_text())
GOLDEN_ROWS = [json.loads(line) for line in (GOLDEN / "tokenizer.jsonl").read_text().split("\n") if line]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden_ids(golden, case):
    ids = golden.encode(case["text"], allow_control=True)
    assert ids.dtype == np.int32
    assert ids.tolist() == case["ids"]


@settings(max_examples=300, deadline=None)
@given(rows=tiny_rows(), text=tiny_texts(), allow_control=st.booleans())
@example(
    rows=[*FIXED_ROWS, ["ab", -2.0, "NORMAL"], ["a", -1.0, "NORMAL"], ["b", -1.0, "NORMAL"]],
    text="abab",
    allow_control=False,
)
def test_equals_brute_force_on_ties(rows, text, allow_control):
    tokenizer = Tokenizer.from_rows(rows)
    ids = tokenizer.encode(text, allow_control=allow_control)
    assert ids.tolist() == brute_force_ids(rows, text, allow_control)
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(text=valid_texts(), allow_control=st.booleans())
def test_equals_brute_force_on_all_of_unicode(golden, text, allow_control):
    ids = golden.encode(text, allow_control=allow_control)
    assert ids.tolist() == brute_force_ids(GOLDEN_ROWS, text, allow_control)
    assert golden.decode(ids) == text


def test_every_code_point_round_trips(golden):
    text = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF)
    assert golden.decode(golden.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(rows=tiny_rows(), text=tiny_texts(), allow_control=st.booleans())
def test_without_numba_the_ids_are_the_same(rows, text, allow_control):
    if lattice.compiled_encoder() is None:
        pytest.skip("numba is not installed: there is only one path")
    tokenizer = Tokenizer.from_rows(rows)
    expected = tokenizer.encode(text, allow_control=allow_control)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plamo2_jax.tokenizer.tokenizer.compiled_encoder", lambda: None)
        actual = tokenizer.encode(text, allow_control=allow_control)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype == np.int32


def test_numba_need_not_be_installed(golden, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it now raises ImportError
    compile_function.cache_clear()
    try:
        assert lattice.compiled_encoder() is None
        for case in CASES:
            assert golden.encode(case["text"], allow_control=True).tolist() == case["ids"]
    finally:
        compile_function.cache_clear()


def test_control_strings_in_untrusted_text_stay_text(golden):
    controls = {golden.unk_id, golden.bos_id, golden.eos_id, golden.pad_id, golden.op_id}
    for name in [*CONTROLS, "<|plamo:unk|>"]:
        text = f"東{name}{name}a"
        ids = golden.encode(text)
        assert not controls & set(ids.tolist())
        assert golden.decode(ids) == text
        trusted = golden.encode(text, allow_control=True)
        assert trusted.tolist().count(golden.id_of(name)) == 2
        assert golden.decode(trusted) == text


def test_text_that_spells_a_byte_row_is_text(golden):
    ids = golden.encode("<0x41>", allow_control=True)
    assert golden.id_of("<0x41>") not in ids
    assert golden.decode(ids) == "<0x41>"


def test_bos_and_eos_frame_the_ids(golden):
    inner = golden.encode("東京")
    framed = golden.encode("東京", bos=True, eos=True)
    assert framed.tolist() == [golden.bos_id, *inner.tolist(), golden.eos_id]
    assert framed.dtype == np.int32
    assert golden.encode("", bos=True).tolist() == [golden.bos_id]
    assert golden.encode("東京", bos=True).tolist() == framed.tolist()[:-1]


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("東a\udfff", 2), ("\U00020bb7\udc00x", 1)])
def test_a_lone_surrogate_is_refused_with_its_position(golden, text, position):
    with pytest.raises(ValueError, match=rf"lone surrogate .* at position {position}: "):
        golden.encode(text)


def test_bytes_are_not_text(golden):
    with pytest.raises(TypeError, match="takes a str, not bytes"):
        golden.encode(b"abc")


def test_a_token_too_dear_is_never_used():
    rows = [*FIXED_ROWS, ["abc", -2000.0, "NORMAL"], ["abd", -1999.9, "NORMAL"]]
    tokenizer = Tokenizer.from_rows(rows)
    assert tokenizer.encode("abc").tolist() == [5 + byte for byte in b"abc"]
    assert tokenizer.encode("abd").tolist() == [len(FIXED_ROWS) + 1]


def test_a_vocabulary_of_bytes_alone_encodes_everything():
    tokenizer = Tokenizer.from_rows(FIXED_ROWS)
    text = "a é 東 𠮷\0"
    assert tokenizer.encode(text).tolist() == [5 + byte for byte in text.encode()]


def test_long_tokens_and_long_texts_agree_with_repetition():
    rows = [*FIXED_ROWS, ["あ" * 300, -1.0, "NORMAL"], ["あ", -9.0, "NORMAL"]]
    tokenizer = Tokenizer.from_rows(rows)
    long, short = len(FIXED_ROWS), len(FIXED_ROWS) + 1
    ids = tokenizer.encode("あ" * 3001)
    assert sorted(ids.tolist()) == [long] * 10 + [short]


def test_a_tokenizer_survives_pickling(golden):
    copy = pickle.loads(pickle.dumps(golden))
    assert copy.encode("東京大学").tolist() == golden.encode("東京大学").tolist()
    assert copy.fingerprint == golden.fingerprint
