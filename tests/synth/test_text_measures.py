"""chrF against sacrebleu's numbers, copying against a slow search, numbers and meta phrases by example."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.chrf import chrf
from plamo2_jax.synth.copying import copied_share, longest_copy
from plamo2_jax.synth.numbers import final_number, numbers, numbers_in_words
from plamo2_jax.synth.phrases import meta_phrase, read_phrases


# sacrebleu 2.6.0: CHRF().sentence_score(text, [reference]).score
@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The cat sat on the mat.", "The cat is sitting on the mat.", 49.6485170311433),
        ("東京は日本の首都です。", "東京は、日本の首都である。", 42.430564437855615),
        ("abc", "abcd", 68.86227544910179),
        ("", "", 0.0),
        ("", "abc", 0.0),
        ("ab", "xy", 0.0),
        ("a", "a", 100.0),
        ("the the the", "the", 61.49193548387096),
        ("猫 が\n好き", "猫が好きです", 58.011049723756905),
        ("同じ文章です。", "同じ文章です。", 100.0),
        ("Hello World", "hello world", 37.53968253968254),
        ("aaaaaaaaaa", "aaa", 57.90258449304174),
    ],
)
def test_chrf_has_sacrebleus_value(text, reference, expected):
    assert chrf(text, reference) == pytest.approx(expected, rel=1e-12)


TEXTS = st.text("ab猫\ud83d ", max_size=24)


@given(TEXTS, TEXTS, st.integers(1, 6))
def test_copying_is_that_of_a_slow_search(text, source, window):
    a, b = "".join(text.split()), "".join(source.split())
    common = [a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1) if a[i:j] in b]
    assert longest_copy(text, source) == max(map(len, common), default=0)
    covered = {i + k for i in range(len(a) - window + 1) if a[i : i + window] in b for k in range(window)}
    assert copied_share(text, source, window) == pytest.approx(len(covered) / len(a) if a else 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1億2000万人", [120_000_000]),
        ("120 million people", [120_000_000]),
        ("１２，３４５円", [12345]),
        ("3万5千", [35000]),
        ("約1.5万", [15000]),
        ("3千5百円、2千5百万円、3千500、5百20", [3500, 25_000_000, 3500, 520]),
        ("1万3千5百円 2億3千5百万", [13500, 235_000_000]),
        ("2½ hours, -1 ¾, 1,000⅓", [Fraction(5, 2), Fraction(-7, 4), Fraction(3001, 3)]),
        ("3/4 and ½ and \\frac{2}{3}", [Fraction(3, 4), Fraction(1, 2), Fraction(2, 3)]),
        ("温度は-5度、−2.50", [-5, Fraction(-5, 2)]),
        ("3-5人, GPT-4", [3, 5, 4]),
        ("2025年11月28日", [2025, 11, 28]),
        ("1,2,3", [1, 2, 3]),
        ("1/0", []),
        ("9" * 200, None),
        ("なし", []),
    ],
)
def test_numbers_of_a_text(text, expected):
    if expected is None:
        assert numbers(text)  # bounded pieces, and no error of Python's limit on digits
    else:
        assert numbers(text) == expected


@pytest.mark.parametrize("text", ["1" * 20_000, "111,111," * 2000, "1千" * 3000, "1 ½" * 3000])
def test_texts_of_digits_have_many_numbers(text):
    assert len(numbers(text)) > 1


def test_numbers_in_words():
    assert numbers_in_words("三百二十五人と二〇二五年、一万二千") >= {325, 2025, 12000}
    assert numbers_in_words("Twelve apples in May") >= {12, 5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("まず 3 + 4 = 7。\n答え: 7 個", 7),
        ("答えは12です。検算: 12 - 5 = 7", 12),
        ("#### 1,234", 1234),
        ("よって \\boxed{\\frac{3}{4}} である (7 行目)", Fraction(3, 4)),
        ("The answer is 42. There are 2 ways.", 42),
        ("3個買って、残りは9個", 9),
        ("答えは十二個", 12),
        ("答え: -8", -8),
        ("Answer: 2½", Fraction(5, 2)),
        ("数字はない", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_solution(text, expected):
    assert final_number(text) == expected


@given(st.text(max_size=60))
def test_any_text_has_numbers_or_none(text):
    numbers(text), numbers_in_words(text), final_number(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("以下に要約を示します。猫は動物です。", "以下に"),
        ("Ｓｕｒｅ, here is the text: cats.", "Sure, here"),
        ("「はい、書き換えました。」", "はい、"),
        ("I\u2019m sorry, but no.", "I'm sorry"),
        ("私はAIとしてお答えします。", "AIとして"),
        ("猫は動物です。" * 20 + "ご不明な点がございましたらお知らせください。", "ご不明な点がございましたら"),
        ("猫は動物です。以下に述べるように、夜行性です。", None),
        ("Feel free to roam, said the cat. " * 1 + "It left. " * 20, None),
        ("", None),
    ],
)
def test_meta_phrases(text, expected):
    assert meta_phrase(text) == expected


def test_a_phrase_can_be_allowed():
    assert meta_phrase("以下に示す。", allow=["以下に"]) is None


def test_a_wrong_table_of_phrases_is_refused():
    with pytest.raises(PlamoError, match=r"phrases\.ja\.middle is not allowed: it must be one of start"):
        read_phrases({"ja": {"middle": ["猫"]}})
    with pytest.raises(PlamoError, match=r"phrases\.ja\.end has 3: it must be a text"):
        read_phrases({"ja": {"end": [3]}})
