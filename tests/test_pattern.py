"""Regular expressions of others: the first that matches, in bounded time."""

import time

import pytest

from plamo2_jax.pattern import PatternError, first_matches, matches_whole, require_pattern


def test_the_first_pattern_that_matches_counts():
    texts = ["layers.1.o_proj", "layers.2.o_proj", "norm"]
    assert first_matches([r"layers\.1", "layers", "x"], texts, "match") == [0, 1, None]
    assert first_matches(["o_proj", "layers"], texts, "search") == [0, 0, None]
    assert first_matches(["o_proj", "norm"], texts, "fullmatch") == [None, None, 1]
    assert first_matches([], texts, "search") == [None, None, None]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a", "["], r"'\[' is not a regular expression: unterminated"),
        (["a{9999999999}"], "is not a regular expression"),
        (["a" * 1001], r"it has 1,001 characters, more than 1,000"),
        (["(?P<a>x)(?P=b)"], "unknown group name"),
    ],
)
def test_what_is_no_pattern_is_named(patterns, message):
    with pytest.raises(PatternError, match=message) as refusal:
        first_matches(patterns, ["aaa"], "search")
    assert refusal.value.pattern == patterns[-1]


def test_a_pattern_without_end_does_not_hold_up_the_next_one():
    start = time.monotonic()
    with pytest.raises(PatternError, match="takes longer than"):
        first_matches(["(a+)+b"], ["a" * 100], "search", seconds=0.2)
    assert first_matches(["(a+)+"], ["a" * 100], "search") == [0]
    assert matches_whole("a+", "aaa", 1)
    assert not matches_whole("(a+)+b", "a" * 100, 0.2)
    assert time.monotonic() - start < 60


def test_a_pattern_of_a_configuration_is_compiled_alone():
    require_pattern("a|b")
    with pytest.raises(PatternError, match="is not a regular expression"):
        require_pattern("(")
