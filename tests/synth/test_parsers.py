"""Parsers: what they accept, what they refuse, and that no text makes them fail or hang."""

import time

import hypothesis
import hypothesis.strategies as st
import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.parsers import PARSERS, make_parser
from plamo2_jax.synth.parsers.markdown import code_blocks
from plamo2_jax.synth.parsers.parser import LONGEST
from plamo2_jax.synth.parsers.verdicts import read_number
from plamo2_jax.synth.record import Refusal
from support.canned_answers import ANSWERS

PARAMETERS = {
    "passage": {"prefix": ["Text:", "本文："], "least_characters": 3},
    "fields": {"labels": {"title": ["Title", "題名"], "body": ["Body", "本文"]}, "optional": ["body"]},
    "json": {"required": {"a": "string"}},
    "choice": {"options": {"yes": ["yes", "はい"], "no": ["no", "いいえ"], "none": ["no change"]}},
}


def parser(name, **parameters):
    return make_parser(name, parameters or PARAMETERS.get(name, {}), "recipe r, step s")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Text: a cat", "a cat"),
        ("  **Text:** “a cat”", "a cat"),
        ("## Text:\n\n# Cats\n**Cats** sleep.\n* one\n> two", "Cats\nCats sleep.\n- one\ntwo"),
        ("本文：\n```\n猫です。\n```", "猫です。"),
        ("Text: “a” and “b”", "“a” and “b”"),
        ("Text: 3 * 4 * 5 and a__b__c", "3 * 4 * 5 and abc"),
        ("Here is the text: a cat", "no prefix"),
        ("Text: a", "too short"),
        ("Text:", "too short"),
    ],
)
def test_passages(text, value):
    found = parser("passage")(text)
    assert (found.reason.removeprefix("parse: ") if isinstance(found, Refusal) else found) == value


def test_markdown_is_kept_on_request():
    text = "# Title\n**a** `b`\n```python\nx\n```"
    assert parser("passage", plain=False)(text) == text


def test_question_answer_pairs():
    text = "Intro\n1. **Q1:** a?\n   **A1:** b\n  more\n\n質問２： あ\n回答２： い\nQ: no answer\nQ: c\nA:\nA: d\n"
    assert parser("qa_pairs")(text) == [
        {"question": "a?", "answer": "b\n  more"},
        {"question": "あ", "answer": "い"},
        {"question": "c", "answer": "d"},
    ]
    assert parser("qa_pairs", most=1)(text) == [{"question": "a?", "answer": "b\n  more"}]
    assert parser("qa_pairs", least=4)(text) == Refusal("parse: too few question-answer pairs")
    assert parser("qa_pairs")("Quality: a\nAll: b") == Refusal("parse: too few question-answer pairs")


def test_fields():
    read = parser("fields")
    assert read("Title: a\nb\n\nBody： c") == {"title": "a\nb", "body": "c"}
    assert read("【題名】: あ") == {"title": "あ", "body": ""}
    assert read("Body: c") == Refusal("parse: no field title")
    assert read("Title:\nBody: c") == Refusal("parse: no field title")


def test_json():
    read = parser("json")
    assert read('Sure:\n```json\n{"a": "b", "c": [1]}\n```\nDone.') == {"a": "b", "c": [1]}
    assert read('x {"a": "b"} y') == {"a": "b"}
    assert parser("json", required={})("[1, 2]") == [1, 2]
    for bad, reason in (
        ("{'a': 1}", "no JSON"),
        ('{"a": 1}', "no string a"),
        ('{"a": " "}', "no string a"),
        ("[1]", "not a JSON object"),
        ('{"a": NaN}', "no JSON"),
        ("[" * 5000 + "]" * 5000, "no JSON"),
        ('"a"', "no JSON"),
    ):
        assert read(bad) == Refusal(f"parse: {reason}"), bad


def test_lists():
    text = "List:\n1. a\n2) **b**\n- c\n  d\n・え\n①お\n10． f\n- a\n-g\n3 h"
    assert parser("list")(text) == ["a", "b", "c\nd", "え", "お", "f", "h"]
    assert parser("list", least=2, most=2)(text) == ["a", "b"]
    assert parser("list", least=8)(text) == Refusal("parse: too few list items")


def test_code_and_tests():
    read = parser("code_and_tests")
    assert read(ANSWERS["code"]["ja"])["program"] == "def add(a, b):\n    return a + b"
    shell = "```sh\nls\n```\n"
    assert read(shell + ANSWERS["code"]["ja"])["tests"].count("assert") == 4
    assert read("```python\nx = 1\n```") == Refusal("parse: fewer than two code blocks")
    assert read("```python\nx = 1\n```\n```python\nprint(x)\n```") == Refusal("parse: too few assertions")
    assert read("```python\n\n```\n```python\nassert 1\nassert 2\n```") == Refusal("parse: no program")
    # An open block is not used: the answer was cut.
    assert code_blocks("```python\na\n````x\n```\n~~~\nb\n~~~\n```py\nc") == [("python", "a\n````x"), ("", "b")]


def test_tables_with_a_question():
    read = parser("table_question")
    found = read(ANSWERS["table"]["en"])
    assert found["table"].splitlines()[0] == "| item | value |"
    assert found["question"] == "Is the humidity above 50%?"
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert read(f"{table}\nQ: x\nA: y") == Refusal("parse: too few rows")
    assert read(f"{table}| 3 |\n\nQ: x\nA: y") == Refusal("parse: rows of the table differ in length")
    assert read(f"{table}| 3 | 4 |") == Refusal("parse: too few question-answer pairs")
    assert read("Q: x\nA: y") == Refusal("parse: no table")
    assert read(f"Q: x\nA: y\n\n{table}| 3 | 4 |")["answer"] == "y"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. [[4]]", 4.0),
        ("[[1]] no, [[2]]", 2.0),
        ("点数： ４点", 4.0),
        ("**Score:** 3.5/5", 3.5),
        ("4", 4.0),
        ("Score: 9", "score out of range"),
        ("Score: -3", "score out of range"),
        ("Score: 12345", "score out of range"),
        ("[[-3]]", "score out of range"),
        ("I like it", "no score"),
        ("2 of 3 are good", "no score"),
        ("", "no score"),
    ],
)
def test_scores(text, value):
    found = parser("score")(text)
    assert (found.reason.removeprefix("parse: ") if isinstance(found, Refusal) else found) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12 × 4 = 48\n答え: 48個", "48"),
        ("so\n**Answer:** $1,200.50.", "1200.5"),
        ("Answer: 3\n...\nAnswer: 4", "4"),
        (r"thus \boxed{7}", "7"),
        ("答え：－３．０", "-3"),
        ("Answer: 3/4", "0.75"),
        ("Answer: 0.10", "0.1"),
        ("答え: 120万円", "1200000"),
        ("答え: 1.5億", "150000000"),
        ("Answer: 3 million", "3000000"),
        ("Answer: 2/4", "0.5"),
        ("Answer: -2/6", "-1/3"),
        ("Answer: -0", "0"),
        ("Answer: -0.05", "-0.05"),
        ("Answer: 1267650600228229401496703205376", "1267650600228229401496703205376"),
        ("Answer: 0.1²", None),
        ("Answer: 100", "100"),
        ("Answer: 3 or 4", None),
        ("Answer: cats", None),
        ("48", None),
    ],
)
def test_final_answers(text, answer):
    found = parser("final_answer")(text)
    assert (None if isinstance(found, Refusal) else found["answer"]) == answer


def test_numbers_with_two_readings_are_refused():
    assert read_number("12 and 13") is None
    assert read_number("1e5") is None


def test_choices():
    read = parser("choice")
    assert read("no\n\n「はい」。") == "yes"
    assert read("No change needed") == "none"
    assert read("NO.") == "no"
    assert read("maybe") == Refusal("parse: no choice")
    assert read("Nothing is wrong") == Refusal("parse: no choice")
    assert read(" \n ") == Refusal("parse: no choice")


PIECES = st.sampled_from(
    [
        *"-*#|`~:：.Q A1質問回答\n\t 「」{}[]<>\\\"'",
        "```",
        "Q:",
        "A:",
        "Answer:",
        "|---|",
        "[[3]]",
        "Text:",
        "\ud800",
        "\u0000",
        "\u2028",
    ]
)


@hypothesis.given(st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join)))
@hypothesis.settings(max_examples=300)
def test_no_text_makes_a_parser_fail(text):
    for name in PARSERS:
        value = parser(name)(text)
        assert not isinstance(value, Refusal) or value.reason.startswith("parse: ")
        assert value is not None


@pytest.mark.parametrize(
    "piece",
    ["*", "**a", "- ", "|", "|-", "`", "Q", "質問 ", "Q: ", "[", "{", "\n", " \n", "１", "_ ", "「", "\\boxed{"],
)
def test_time_is_bounded_for_long_texts(piece):
    text = piece * (LONGEST // len(piece))
    for name in PARSERS:
        begin = time.process_time()
        parser(name)(text)
        assert time.process_time() - begin < 60, name
    assert parser("passage")("x" * (LONGEST + 1)) == Refusal("parse: too long")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("foo", {}, "the parser 'foo' is unknown: it must be one of passage"),
        (None, {}, "the parser None is unknown"),
        ("list", {"x": 1}, "the parser list has no parameter 'x': it has least, most, least_characters"),
        ("list", {"least": "a"}, "least='a' is not allowed for the parser list: it must be a whole number"),
        ("list", {"least": True}, "must be a whole number"),
        ("list", {"least": 5, "most": 2}, "Items.most=2 is not allowed"),
        ("passage", {"prefix": "Text:"}, "it must be a list of texts"),
        ("passage", {"prefix": [1]}, "it must be a list of texts"),
        ("score", {"least": 9}, "Score.most=5 is not allowed: it must be a number above least=9"),
        ("fields", {}, "Fields.labels={} is not allowed"),
        ("json", {"required": {"a": "text"}}, "types by key, each one of string, number"),
        ("choice", {"options": {"a": ["x"]}}, "texts of two or more options"),
    ],
)
def test_bad_parameters_are_named(name, parameters, message):
    with pytest.raises(PlamoError, match=r"^recipe r, step s: ") as error:
        make_parser(name, parameters, "recipe r, step s")
    assert message in str(error.value)
