"""Contamination: planted items are found in every form, unrelated pages are not, and the hashes find what a plain search finds."""

import unicodedata

import numpy as np
import pytest

from plamo2_jax.data.contamination import (
    ContaminationConfig,
    ContaminationIndex,
    ContaminationReport,
    EvaluationItem,
    contaminated_items,
    decontaminate,
    normalize,
    texts_of,
)
from plamo2_jax.data.corpus import documents
from plamo2_jax.data.documents import Document
from plamo2_jax.errors import PlamoError

JA = "江戸時代の将軍徳川綱吉が1687年に定めた「生類憐れみの令」について、その内容を2つ述べなさい。"
EN = "Janet's ducks lay 16 eggs per day. She eats three for breakfast, and bakes muffins with four every day."
KANA = "カタカナの語、ガギグゲゴとパピプペポを、半角でもABCと一緒に123と書いた長い文です。"


@pytest.fixture(scope="module")
def pages():
    train = list(documents(None, "train"))
    rng = np.random.default_rng(0)
    return [train[i]["text"] for i in rng.choice(len(train), 300, replace=False)]


def half_width(text):
    """Katakana of half width, with separate sound marks, and letters and digits of full width."""
    marks = {"\u3099": "ﾞ", "\u309a": "ﾟ"}
    by_wide = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFF61, 0xFF9E)}
    narrow = "".join(by_wide.get(c, marks.get(c, c)) for c in unicodedata.normalize("NFD", text))
    return "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in narrow)


FORMS = {
    "exact": lambda text: text,
    "re-spaced": lambda text: "\n".join(text.split()) if text.isascii() else " ".join(text),
    "wrapped": lambda text: (
        text.replace(" ", "\n  ") if text.isascii() else "\n".join([text[:10], text[10:25], text[25:]])
    ),
    "width": half_width,
    "upper case": str.upper,
    "without punctuation": lambda text: text.translate(dict.fromkeys(map(ord, "、。「」.,"))),
}


@pytest.mark.parametrize("form", FORMS)
def test_planted_items_are_found_in_every_form(pages, form):
    index = ContaminationIndex(EvaluationItem(text[:5], (text,)) for text in (JA, EN, KANA))
    for number, item in enumerate((JA, EN, KANA)):
        for page in pages[:5]:
            middle = len(page) // 2
            planted = page[:middle] + "\n" + FORMS[form](item) + "\n" + page[middle:]
            assert [(match.item, match.rule) for match in index.matches(planted)] == [(number, "window")]


def test_a_part_of_an_item_is_found_if_it_fills_a_window():
    items = [EvaluationItem("ja", (JA,)), EvaluationItem("en", (EN,))]
    index = ContaminationIndex(items, ContaminationConfig(shingle_share=1.0))
    kept = normalize(JA).replace(" ", "")
    assert [match.rule for match in index.matches(f"前{kept[5:35]}後")] == ["window"]
    assert index.matches(f"前{kept[5:34]}後") == []
    words = normalize(EN).split()
    assert [match.rule for match in index.matches(f"x {' '.join(words[2:15])} y")] == ["window"]
    assert index.matches(f"x {' '.join(words[2:14])} y") == []
    # A word must be whole.
    assert index.matches(f"x {' '.join(words[2:15])}y") == []


def test_short_items_are_compared_as_a_whole():
    items = ["日本の首都はどこですか？", "What is the capital of France?", "はい、そうです。", "B"]
    index = ContaminationIndex(EvaluationItem(text, (text,)) for text in items)
    assert index.too_short.tolist() == [False, False, True, True]
    found = contaminated_items(
        items,
        [
            "問 日本の首都は、どこですか",
            "q: WHAT is the capital of  france a: Paris",
            "はい、そうです。B",
            "日本の首都はどこで",
        ],
    )
    assert found == ["whole", "whole", None, None]
    mixed = "Select the [Insert - Frames - Borders] menu で開く"
    assert contaminated_items([mixed], [" ".join(mixed)]) == ["whole"]
    assert contaminated_items(items, ["what is the capital of Frances", "日本の首都はどこ"]) == [None] * 4


def test_rearranged_items_are_found_by_their_shingles():
    rng = np.random.default_rng(0)
    item = "".join(chr(c) for c in rng.integers(0x4E00, 0x9FFF, 120)) + "のです"
    parts = [item[i : i + 29] for i in range(0, 116, 29)]
    [match] = ContaminationIndex([EvaluationItem("a", (item,))]).matches("。改行".join(reversed(parts)))
    assert (match.rule, match.share) == ("shingles", pytest.approx(4 * 17 / 111))
    assert contaminated_items([item], ["。改行".join(reversed(parts[:2]))]) == [None]


def test_matches_are_those_of_a_plain_search(pages):
    """No match is lost or added by hashing: compare with sets of strings, on pages of which some share sentences."""
    items = [page["text"] for page in documents(None, "heldout")][:60]
    config = ContaminationConfig(window_characters=14, window_words=6, shingle_share=1.0)
    index = ContaminationIndex((EvaluationItem(str(i), (text,)) for i, text in enumerate(items)), config)

    def windows(text, kind):
        if kind == "characters":
            kept = normalize(text).replace(" ", "")
            return {kept[i : i + 14] for i in range(len(kept) - 13)}
        words = normalize(text).split()
        return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}

    def kind(text):
        kept = normalize(text).replace(" ", "")
        return "characters" if sum("ぁ" <= c <= "鿿" for c in kept) >= 0.2 * len(kept) else "words"

    wanted = [windows(text, kind(text)) for text in items]
    hits = 0
    for page in pages:
        found = {each: windows(page, each) for each in ("characters", "words")}
        expected = [i for i, text in enumerate(items) if wanted[i] & found[kind(text)]]
        assert [match.item for match in index.matches(page) if match.rule != "shingles"] == expected
        hits += len(expected)
    assert hits > 20


def test_long_documents_are_compared_in_stretches(monkeypatch, pages):
    text = "\n".join(pages[:20])
    items = [EvaluationItem(str(i), (text[i : i + 60],)) for i in range(0, len(text), 97)]
    whole = ContaminationIndex(items).matches(text)
    monkeypatch.setattr("plamo2_jax.data.contamination._STRETCH", 100)
    assert ContaminationIndex(items).matches(text) == whole
    assert len(whole) > 50


def test_documents_are_removed_and_counted(pages):
    index = ContaminationIndex([EvaluationItem("ja", (JA,)), EvaluationItem("en", (EN,)), EvaluationItem("b", ("B",))])
    given = [Document(text, str(i)) for i, text in enumerate([*pages[:50], pages[50] + JA, EN + JA, pages[51]])]
    report = ContaminationReport()
    assert [document.id for document in decontaminate(given, index, report)] == [*map(str, range(50)), "52"]
    counts = report.to_json()
    assert counts["items"] == {"all": 3, "too_short": 1, "contaminated": 2}
    assert counts["documents"] == {"in": 53, "out": 51}
    assert counts["matches"] == {"window": 3}
    assert counts["first"][0] == {"document": "50", "item": "ja", "rule": "window", "share": 1.0}
    assert (
        report.summary()
        == "removed 2 of 53 documents, which contain 2 of 3 evaluation items, 1 of them too short to compare"
    )


def test_the_texts_of_a_record_are_found_in_all_fields():
    record = {"id": 3, "question": "q", "choices": ["a", {"text": "b"}], "answer": None}
    assert texts_of(record) == ("q", "a", "b")
    assert texts_of(record, ["question"]) == ("q",)
    # Of short texts only the longest is compared: unrelated documents contain an answer such as Tokyo Metropolis.
    index = ContaminationIndex([EvaluationItem("x", ("日本の首都はどこですか", "東京都庁のある場所"))])
    assert index.matches("東京都庁のある場所") == []
    with pytest.raises(PlamoError, match="there is no evaluation item"):
        ContaminationIndex([])


@pytest.mark.parametrize("size", [10, 60, 400])
def test_the_quick_refusal_changes_no_match(pages, monkeypatch, size):
    items = [EvaluationItem(str(i), (page[:size],)) for i, page in enumerate(pages[:60])]
    index = ContaminationIndex([*items, EvaluationItem("words", ("apt-get install a package",))])
    texts = [
        *pages,
        *(page[100:300] for page in pages),
        "",
        "APT get  install, a PACKAGE!",
        "x" * 90 + " " + "\u0301" * 5,
    ]
    found = [index.matches(text) for text in texts]
    assert 30 <= sum(map(bool, found)) < len(texts)
    monkeypatch.setattr(ContaminationIndex, "_may_match", lambda self, codes: True)
    assert found == [index.matches(text) for text in texts]
