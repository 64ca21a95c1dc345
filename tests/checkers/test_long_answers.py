"""An answer of a megabyte does not hold any checker."""

import time

import pytest

from plamo2_jax import checkers
from plamo2_jax.checkers import CHECKERS
from plamo2_jax.checkers.checker import LONGEST_TEXT
from support.checker_examples import EXAMPLES

MEGABYTE = 1_000_000
SECONDS = {"one checker": 1.5, "all": 5.0}
"""Largest processor times. A quiet core takes less than 0.2 s and 1 s."""
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
def test_all_checkers_together_take_seconds(kind):
    unit = ANSWERS[kind]
    answer = unit * -(-MEGABYTE // len(unit))
    taken = {}
    for name in CHECKERS:
        parameters = EXAMPLES[name][0][0]
        start = time.process_time()
        assert checkers.check(name, answer, parameters) in (True, False)
        taken[name] = time.process_time() - start
    slowest = max(taken, key=taken.__getitem__)
    assert taken[slowest] < SECONDS["one checker"], slowest
    assert sum(taken.values()) < SECONDS["all"]


def test_the_end_of_a_long_text_is_ignored():
    text = "a" * LONGEST_TEXT + "猫"
    assert checkers.check("characters_between", text, {"least": LONGEST_TEXT, "most": LONGEST_TEXT})
    assert not checkers.check("excluded_texts", text[1:], {"texts": ["猫"]})
    assert checkers.check("excluded_texts", text, {"texts": ["猫"]})
