"""Rules: what each gives, what is refused, and that nobody's expression or program holds us up."""

import time

import pytest

from plamo2_jax.eval.answer_rules import RuleError, check_rules, mean, score
from plamo2_jax.pattern import matches_whole


def one(name, value, answer, finished=True):
    rules = check_rules({name: value})
    return score(rules, answer, finished)[name]


@pytest.mark.parametrize(
    ("name", "value", "answer", "expected"),
    [
        ("language", "ja", "猫はねこ科の動物です。", 1.0),
        ("language", "ja", "ｶﾀｶﾅ、ーも々も", 1.0),
        ("language", "en", "Cats are animals, 100 %.", 1.0),
        ("language", "ja", "Cats are animals.", 0.0),
        ("language", "ja", "猫cat猫", 0.4),
        ("language", "en", "1 + 2 = 3", 0.0),
        ("characters", [3, 5], "１２３４", 1.0),
        ("characters", [4, 8], "ab", 0.5),
        ("characters", [0, 4], "abcdefgh", 0.5),
        ("characters", [0, 0], "", 1.0),
        ("matches", r"題名：[^\n]+", "題名：猫", 1.0),
        ("matches", r"題名：[^\n]+", "題名：猫\n本文", 0.0),
        ("contains", "猫", "吾輩は猫", 1.0),
        ("contains", ["猫", "犬"], "吾輩は猫", 0.5),
        ("json", True, "```json\n[1, 2]\n```", 1.0),
        ("json", True, "[1, 2", 0.0),
        ("json", True, "NaN", 0.0),
        ("json", True, "[" * 100_000, 0.0),
        ("json", {"title": "string", "pages": "integer"}, '{"title": "猫", "pages": 3}', 1.0),
        ("json", {"title": "string", "pages": "integer"}, '{"title": "猫", "pages": true}', 0.5),
        ("json", {"title": "string"}, '["title"]', 0.0),
        ("exact", "東京 タワー", " 東京　ﾀﾜｰ\n", 1.0),
        ("exact", "東京", "東京都", 0.0),
        ("check", {"name": "bullets", "count": 2, "mark": "・"}, "・猫\n・犬", 1.0),
        ("check", {"name": "no_japanese_comma"}, "猫、犬", 0.0),
        ("check", [{"name": "polite_endings"}, {"name": "no_japanese_comma"}], "猫、犬です。", 0.5),
    ],
)
def test_what_a_rule_gives(name, value, answer, expected):
    assert one(name, value, answer) == pytest.approx(expected)


def test_finished_and_the_mean():
    assert (one("finished", True, "a", True), one("finished", True, "a", False)) == (1.0, 0.0)
    assert mean({"a": 1.0, "b": 0.5}) == 0.75
    assert mean({}) == 1.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "must be an object"),
        ({"lenght": 3}, "'lenght' is unknown: it must be one of language, characters, matches"),
        ({"language": "fr"}, "language='fr' is not allowed: it must be 'ja' or 'en'"),
        ({"characters": [5, 3]}, r"characters=\[5, 3\] is not allowed: it must be \[least, most\]"),
        ({"characters": [True, 3]}, "not allowed"),
        ({"matches": "("}, "must be a regular expression"),
        ({"contains": []}, "none of them empty"),
        ({"json": {"a": "text"}}, "names and types"),
        ({"json": False}, "must be true"),
        ({"exact": " "}, "not empty"),
        ({"code": {"language": "c", "tests": "x"}}, '"python"'),
        ({"code": {"language": "python", "tests": ""}}, "not empty"),
        ({"code": {"language": "python", "tests": "x", "names": "sum"}}, "list of texts"),
        ({"code": {"language": "python", "tests": "x", "files": []}}, "not empty"),
        ({"finished": 1}, "true or false"),
        ({"check": "no_comma"}, "an object such as"),
        ({"check": []}, "an object such as"),
        ({"check": {"name": "no_coma"}}, "the rule check: the checker 'no_coma' is unknown"),
        (
            {"check": [{"name": "bullets", "count": 2}]},
            "the rule check: checker bullets: the parameter mark is missing",
        ),
    ],
)
def test_a_wrong_rule_is_named_with_what_is_allowed(rules, message):
    with pytest.raises(RuleError, match=message):
        check_rules(rules)


def test_an_expression_that_never_ends_does_not_match_and_the_next_one_does():
    start = time.monotonic()
    assert not matches_whole("(a+)+b", "a" * 60, 0.3)
    assert time.monotonic() - start < 60
    assert matches_whole("a+", "aaa", 5)


def answer(code):
    return f"こうです。\n```python\n{code}\n```\n以上。"


TESTS = {"language": "python", "tests": "assert double(2) == 4"}


def test_code_passes_and_fails():
    assert one("code", TESTS, answer("def double(x):\n    return 2 * x")) == 1.0
    assert one("code", TESTS, answer("def double(x):\n    return x")) == 0.0
    assert one("code", TESTS, answer("def double(x:")) == 0.0
    assert one("code", TESTS, "def double(x): return 2 * x") == 0.0  # no block
    named = {"language": "python", "tests": "assert sum([2]) == 4", "names": ["sum"]}
    assert one("code", named, answer("def sum(x):\n    return 2 * x[0]")) == 1.0
