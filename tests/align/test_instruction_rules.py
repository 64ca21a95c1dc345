"""The instructions' own answers obey the rules that come with them."""

import statistics

import pytest

from plamo2_jax.align.preference_data.prompts import to_prompt
from plamo2_jax.data.instructions import instructions
from plamo2_jax.eval import answer_rules as rules


@pytest.fixture(scope="module")
def scores() -> list[tuple[dict, dict[str, float]]]:
    lines = list(instructions("heldout"))
    return [
        (line, rules.score(rules.check_rules(line["rules"]), line["messages"][1]["content"], True)) for line in lines
    ]


def test_forms_lengths_and_ends_are_met(scores):
    for line, score in scores:
        assert all(value == 1.0 for name, value in score.items() if name != "language"), (line["id"], score)


def test_answers_are_mostly_in_the_language_asked_for(scores):
    # Japanese help names commands, functions and JSON keys in Latin letters.
    for language, least in (("ja", 0.8), ("en", 0.99)):
        found = [score["language"] for line, score in scores if line["language"] == language]
        assert statistics.fmean(found) > least


def test_the_other_language_fails(scores):
    for line, _ in scores[:50]:
        wrong = "これは日本語です。" if line["language"] == "en" else "This is English."
        assert rules.score(line["rules"], wrong, True)["language"] == 0.0


def test_a_line_is_a_prompt_without_its_answer(scores):
    line, _ = scores[0]
    prompt = to_prompt(line, "here", {})
    assert [message["role"] for message in prompt.messages] == ["user"]
    assert prompt.id == line["id"]
    assert prompt.rules == line["rules"]
