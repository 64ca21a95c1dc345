"""An answer of a megabyte does not hold any checker."""

import time

import pytest

from plamo2_jax import checkers
from plamo2_jax.checkers import CHECKERS
from plamo2_jax.checkers.checker import LONGEST_TEXT
from support.checker_examples import EXAMPLES

MEGABYTE = 1_000_000
SECONDS = 60
"""Largest processor time of a checker. A quiet core takes less than 0.2 s, and a checker that is quadratic in the length takes hours."""
ANSWERS = {
    "one letter": "a",
    "line ends": "\n",
    "opening brackets": "[({",
    "digits": "1234567890",
    "long words": "a" * 5000 + " ",
    "kana": "ねコﾈかの",
    "full stops": "。",
    # Each line continues on the next one.
    "lines that end with の": "あの\n",
    # Each opening quotation mark is far from the next closing one.
    "opening quotation marks": "「" * 200_000 + "」",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_no_checker_takes_long(kind):
    unit = ANSWERS[kind]
    answer = unit * -(-MEGABYTE // len(unit))
    for name in CHECKERS:
        parameters = EXAMPLES[name][0][0]
        start = time.process_time()
        assert checkers.check(name, answer, parameters) in (True, False)
        assert time.process_time() - start < SECONDS, name


def test_the_end_of_a_long_text_is_ignored():
    text = "a" * LONGEST_TEXT + "猫"
    assert checkers.check("characters_between", text, {"least": LONGEST_TEXT, "most": LONGEST_TEXT})
    assert not checkers.check("excluded_texts", text[1:], {"texts": ["猫"]})
    assert checkers.check("excluded_texts", text, {"texts": ["猫"]})
