"""Diversity: measures by hand, independence of the order, and gates that stop planted collapses but no real text."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.data import corpus
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.diversity import (
    CollapseError,
    DiversityMeter,
    GateConfig,
    check,
    distinct_shares,
    problems,
    self_similarity,
)


def measure(texts):
    meter = DiversityMeter()
    for number, text in enumerate(texts):
        meter.add({"id": f"r{number}", "text": text})
    return meter.measure()


def pages(language, count=300):
    texts = (document["text"] for document in corpus.documents(language, "train"))
    return [text[:500] for text in texts if len(text) > 500][:count]


def test_measures_by_hand():
    assert distinct_shares(["abab", "ab"]) == {1: 2 / 6, 2: 2 / 4, 3: 1.0, 4: 1.0}
    assert distinct_shares([]) == dict.fromkeys(range(1, 5), 1.0)
    assert self_similarity(["同じ文章である。"] * 3) == 1.0
    assert self_similarity(["一つ"]) == 0.0
    assert self_similarity(["あいうえおかきくけこ", "さしすせそたちつてと"]) == 0.0
    found = measure(["猫は動物である。", "猫は動物である。", "犬は走る。", ""])
    assert (found.records, found.characters, found.lengths) == (4, 21, {1: 1, 8: 3})
    assert (found.top_opening, found.top_opening_share) == ("猫は動物である。", 0.5)
    assert measure([]).to_json()["self_similarity"] == 0.0


@settings(max_examples=8)
@given(
    st.lists(st.text("猫犬はだ。ab ", max_size=12), max_size=30), st.randoms(use_true_random=False), st.integers(0, 30)
)
def test_the_order_and_the_split_of_records_do_not_matter(texts, rng, cut):
    records = [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)]
    whole = DiversityMeter()
    for record in records:
        whole.add(record)
    rng.shuffle(records)
    first, second = DiversityMeter(), DiversityMeter()
    for number, record in enumerate(records):
        (first if number < cut else second).add(record)
    second.merge(first)
    assert second.measure() == whole.measure()


def test_the_sample_is_bounded_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr("plamo2_jax.synth.diversity.SAMPLE", 20)
    records = [{"id": f"r{number}", "text": f"{number}番目の文章" * 9} for number in range(200)]
    results = []
    for seed in range(3):
        random.Random(seed).shuffle(records)
        meter = DiversityMeter()
        for record in records:
            meter.add(record)
        assert len(meter._sample) == 20
        results.append(meter.measure())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("language", ["ja", "en"])
def test_real_pages_pass_the_gates(language):
    found = measure(pages(language))
    assert problems(found, GateConfig(), language) == []


@pytest.mark.parametrize(
    ("collapse", "expected"),
    [
        (
            lambda texts: [texts[i % 3] for i in range(300)],
            ["distinct-4", "self similarity", "compression ratio", "begin with"],
        ),
        (lambda texts: ["もちろん、喜んでお答えします。それはつまり、" + text for text in texts], ["begin with"]),
        (
            lambda texts: [f"{text[:20]}{texts[0][:460]}" for text in texts],
            ["distinct-4", "self similarity", "compression ratio"],
        ),
        (lambda texts: [text[:100] * 5 for text in texts], ["compression ratio"]),
    ],
)
def test_planted_collapses_are_named(collapse, expected):
    found = problems(measure(collapse(pages("ja"))), GateConfig(), "recipe r")
    for name in expected:
        assert any(name in sentence for sentence in found), (name, found)
    assert all(sentence.startswith("recipe r: ") for sentence in found)


def test_a_gate_stops_and_says_which():
    collapsed = measure(["同じ文章である。" * 9] * 300)
    with pytest.raises(
        CollapseError, match=r"recipe r: distinct-4 is 0\.\d+: .*100\.0% of the answers begin with '同じ"
    ):
        check(collapsed, GateConfig(), "recipe r")
    check(collapsed, GateConfig(min_records=301), "recipe r")
    with pytest.raises(PlamoError, match=r"GateConfig\.max_top_opening=2 is not allowed: it must be between 0 and 1"):
        GateConfig(max_top_opening=2)
