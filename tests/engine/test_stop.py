"""Stop strings and text held back, against a brute-force definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.stop import RowText, StopConfig, StopText

TEXT = st.text("abc", max_size=12)
STRINGS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


def brute_force(text, strings):
    """Grow the text by a character until it ends in a stop string; cut the longest such."""
    for end in range(len(text) + 1):
        ending = [s for s in strings if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(pieces=st.lists(TEXT, max_size=6), strings=STRINGS)
def test_output_is_cut_before_the_first_complete_stop_string(pieces, strings):
    stop = StopText(strings)
    out = "".join([stop.push(piece) for piece in pieces])
    assert (out + stop.flush(), stop.stopped) == brute_force("".join(pieces), strings)


@given(text=st.text("abc", max_size=20), strings=STRINGS)
def test_only_a_possible_beginning_is_held_back(text, strings):
    stop, out = StopText(strings), ""
    for end, character in enumerate(text, 1):
        out += stop.push(character)
        if not stop.stopped:
            held = text[len(out) : end]
            assert out + held == text[:end]
            assert not held or any(s.startswith(held) for s in strings)


@given(text=st.text("ab", max_size=12), strings=STRINGS, first=st.integers(0, 12))
def test_stop_strings_complete_before_the_minimum_do_not_count(text, strings, first):
    stop = StopText(strings)
    out = "".join([stop.push(character, may_stop=i >= first) for i, character in enumerate(text)]) + stop.flush()
    ends = [end for end in range(first + 1, len(text) + 1) if any(text[:end].endswith(s) for s in strings)]
    assert stop.stopped == bool(ends)
    assert text.startswith(out)
    if not ends:
        assert out == text


def test_half_a_character_is_held_back(tokenizer):
    row, ids = RowText(tokenizer), [tokenizer.id_of(f"<0x{byte:02X}>") for byte in "東".encode()]
    assert [row.push(id) for id in ids] == ["", "", "東"]
    assert row.push(ids[0]) == ""
    assert row.flush() == "\ufffd"
    assert row.text == "東\ufffd"


def test_control_tokens_are_no_text(tokenizer):
    row = RowText(tokenizer)
    assert row.push(tokenizer.op_id) == ""
    assert row.push(tokenizer.id_of("猫")) == "猫"


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("min_new_tokens", -1), ("min_new_tokens", 999), ("ids", (-1,)), ("strings", ("",))],
)
def test_config_names_what_is_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"StopConfig\.{field}="):
        StopConfig(**{field: value})


def test_a_bare_string_is_no_list_of_stop_strings():
    with pytest.raises(ValueError, match="tuple of strings"):
        StopConfig(strings="stop")
