"""Every checker: texts that pass and fail, wordings, drawn parameters, refused parameters, and arbitrary texts."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax import checkers
from plamo2_jax.checkers import CHECKERS, CheckerError
from plamo2_jax.checkers.checker import fields
from support.checker_examples import EXAMPLES

CASES = [(name, language) for name, checker in CHECKERS.items() for language in checker.wordings]


@pytest.mark.parametrize("name", CHECKERS)
def test_examples_pass_and_fail(name):
    for parameters, passing, failing in EXAMPLES[name]:
        for text in passing:
            assert checkers.check(name, text, parameters), (parameters, text)
        for text in failing:
            assert not checkers.check(name, text, parameters), (parameters, text)


@pytest.mark.parametrize("name", CHECKERS)
def test_every_checker_has_a_passing_and_a_failing_example(name):
    assert any(passing for _, passing, _ in EXAMPLES[name])
    assert any(failing for _, _, failing in EXAMPLES[name])


def test_examples_belong_to_checkers():
    assert set(EXAMPLES) == set(CHECKERS)


@pytest.mark.parametrize(("name", "language"), CASES)
def test_training_and_test_wordings_do_not_overlap(name, language):
    wordings = CHECKERS[name].wordings[language]
    assert len(wordings.train) >= 2
    assert wordings.test
    assert not set(wordings.train) & set(wordings.test)
    # Nor do two sentences become equal after the parameters are written.
    for seed in range(5):
        parameters = checkers.draw(name, language, seed)
        written = {
            split: {checkers.instruction(name, parameters, language, split, other) for other in range(20)}
            for split in ("train", "test")
        }
        assert not written["train"] & written["test"]


def test_no_training_wording_is_a_test_wording_of_another_checker():
    train = {text for name, language in CASES for text in CHECKERS[name].wordings[language].train}
    test = {text for name, language in CASES for text in CHECKERS[name].wordings[language].test}
    assert not train & test


@pytest.mark.parametrize(("name", "language"), CASES)
def test_every_wording_mentions_every_parameter(name, language):
    checker = CHECKERS[name]
    for split in ("train", "test"):
        for wording in checker.wordings[language].of(split):
            assert set(fields(wording)) == set(checker.mentioned()), wording


@pytest.mark.parametrize(("name", "language"), CASES)
def test_drawn_parameters_are_valid_repeatable_and_written(name, language):
    for seed in range(20):
        parameters = checkers.draw(name, language, seed)
        assert checkers.validate(name, parameters) == parameters == checkers.draw(name, language, seed)
        text = checkers.instruction(name, parameters, language, "train", seed)
        assert text == checkers.instruction(name, parameters, language, "train", seed)
        for parameter in CHECKERS[name].mentioned():
            assert CHECKERS[name].parameters[parameter].words(parameters[parameter], language) in text


def test_draws_vary():
    drawn = {checkers.draw("characters", "ja", seed)["count"] for seed in range(50)}
    assert len(drawn) > 10


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lenght", {}, "'lenght' is unknown: docs/checkers.md"),
        (["bullets"], {}, "is unknown"),
        ("bullets", {"count": 3}, "bullets: the parameter mark is missing"),
        ("bullets", {"count": -1, "mark": "・"}, "count=-1 is not allowed: it must be a whole number from 0"),
        ("bullets", {"count": True, "mark": "・"}, "count=True is not allowed"),
        ("bullets", {"count": 1, "mark": "・", "x": 1}, "the parameter 'x' is unknown: it has count, mark"),
        ("no_comma", [], "must be an object, not list"),
        ("characters_between", {"least": 5, "most": 3}, "least=5 is above most=3"),
        ("paragraph_start_ja", {"paragraphs": 2, "paragraph": 3, "word": "猫"}, "paragraph=3 must be at most"),
        ("words_ja", {"words": []}, "a list of 1 to 100 texts"),
        ("words_ja", {"words": [" "]}, "none of them blank"),
        ("letter_frequency", {"letter": "ab", "relation": "at least", "count": 1}, "one character"),
        ("letter_frequency", {"letter": "a", "relation": "以上", "count": 1}, '"at least" or "less than"'),
        ("exact_counts", {"counts": {"a": -1}}, "an object of texts and whole numbers"),
        ("zero_padded", {"width": 0}, "from 1 to 100"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(name, parameters, message):
    with pytest.raises(CheckerError, match=message):
        checkers.check(name, "猫", parameters)


def test_a_language_without_wordings_is_refused():
    with pytest.raises(CheckerError, match="has no wordings for 'en': ja"):
        checkers.instruction("no_hiragana", {}, "en", "train", 0)


PIECES = "猫ねこネコﾈｺＡ１。、！？.,!?「」『』《》（）()[]{}<>*-・#`~|$\\%&@:;\"'_+=/ \t\n\r\u2028\u3000\ud800\0é😺"
TEXTS = st.text(st.sampled_from(PIECES + string.ascii_letters + string.digits), max_size=60) | st.text(max_size=60)


@settings(max_examples=25, deadline=None)
@given(text=TEXTS, seed=st.integers(0, 1000))
def test_no_text_makes_a_checker_raise(text, seed):
    for name, language in CASES:
        parameters = checkers.draw(name, language, seed)
        assert checkers.check(name, text, parameters) in (True, False)
    for name, examples in EXAMPLES.items():
        for parameters, passing, failing in examples:
            # Cut and joined examples reach deeper into the parsers.
            for example in passing + failing:
                checkers.check(name, example[: len(example) // 2] + text, parameters)


@pytest.mark.parametrize("name", ["html_table", "xml_text", "yaml_text", "python_text", "json_text", "latex_text"])
def test_deep_and_expanding_documents_are_refused(name):
    bomb = "<!DOCTYPE a [" + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12)) + "]><a>&e11;</a>"
    for text in (
        "[" * 100_000,
        "<a>" * 100_000,
        "{" * 100_000,
        "(" * 100_000,
        bomb,
        "- " * 50_000,
        "a: &b [*b]\n" * 5000,
    ):
        assert checkers.check(name, text) in (True, False)
    assert not checkers.check("xml_text", bomb)
