"""Vocabularies and texts for the tokenizer's tests."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
CONTROLS = ["<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", "<|plamo:op|>"]
FIXED_ROWS = [
    ["<|plamo:unk|>", 0.0, "UNKNOWN", 0, 0, 0, 0],
    *([name, 0.0, "CONTROL", 0, 0, 0, 0] for name in CONTROLS),
    *([f"<0x{value:02X}>", -20.0, "BYTE", 0, 0, 0, 0] for value in range(256)),
]


# Few characters and few scores: tokens overlap and costs tie all the time. -1000 ties with an unknown code point.
TINY_ALPHABET = st.sampled_from("ab\n<|é東𠮷")
TINY_SCORES = st.sampled_from([-1.0, -2.0, -3.0, 0.5, 0.0, -1.99995, -1000.0, -1000.5, -900.0])


@st.composite
def tiny_rows(draw: st.DrawFn) -> list[list]:
    """Rows of a random vocabulary: the fixed ones and up to 30 short tokens, anywhere among them."""
    tokens = draw(st.lists(st.text(TINY_ALPHABET, min_size=1, max_size=6), max_size=30, unique=True))
    rows = list(FIXED_ROWS)
    for token in tokens:
        position = draw(st.integers(0, len(rows)))
        rows.insert(position, [token, draw(TINY_SCORES), "NORMAL", 0, 0, 0, 0])
    return rows


def tiny_texts() -> st.SearchStrategy[str]:
    """Texts over the alphabet of `tiny_rows`, with control strings and cut-off ones in between."""
    piece = st.one_of(TINY_ALPHABET, st.sampled_from([*CONTROLS, "<|plamo:unk|>", "<|plamo:", "<0x41>", "|>"]))
    return st.lists(piece, max_size=40).map("".join)


def valid_texts() -> st.SearchStrategy[str]:
    """Any valid Unicode text (no surrogates), often with control strings in it."""
    any_text = st.text(st.characters(exclude_categories=["Cs"]))
    return st.lists(st.one_of(any_text, st.sampled_from([*CONTROLS, "<0x0A>"])), max_size=8).map("".join)
