"""Cleaning removes what it says, keeps real text as it is, and counts every rejection."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.data.clean import (
    CleanConfig,
    CleanReport,
    clean_documents,
    duplicate_line_share,
    guess_language,
    normalize_text,
    top_ngram_share,
)

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
JAPANESE += "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。"
ENGLISH = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife."
CHINESE = "中华人民共和国位于亚洲东部，太平洋西岸，是世界上人口最多的国家之一，首都是北京，最大的城市是上海。"
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite."
)


@given(st.text(alphabet=st.characters(codec=None)), st.sampled_from(["none", "NFC", "NFKC"]))
def test_normalization_is_idempotent(text, form):
    once = normalize_text(text, form)
    assert normalize_text(once, form) == once
    assert "\r" not in once
    assert "\n\n\n" not in once
    assert not any(unicodedata.category(c) == "Cs" or (ord(c) < 32 and c not in "\n\t") for c in once)


@given(st.lists(st.text(alphabet="あいうカキク漢字ａＢｃ①㍍ﾊﾝｶｸ神abc 　", min_size=1), min_size=1))
def test_default_keeps_visible_characters(lines):
    text = "\n".join(lines)
    assert "".join(normalize_text(text).split()) == "".join(text.split())


def test_normalization_of_known_cases():
    assert normalize_text("a\r\nb\rc\u2028d  \n\n\n\ne\x00\x07\ufeff ") == "a\nb\nc\nd\n\ne"
    assert normalize_text("    indented\tcode") == "indented\tcode"
    assert normalize_text("if x:\n    y") == "if x:\n    y"
    # NFC replaces this name variant by another character: never by default.
    assert normalize_text("\ufa19") == "\ufa19"
    assert normalize_text("\ufa19", "NFC") == "\u795e"
    family = "👨\u200d👩\u200d👧"
    assert normalize_text(family) == family


@pytest.mark.parametrize(
    ("text", "language"),
    [(JAPANESE, "ja"), (ENGLISH, "en"), (CHINESE, "other"), (FRENCH, "other"), ("12345 !?", "other"), ("", "other")],
)
def test_language_is_guessed_by_script(text, language):
    assert guess_language(text) == language


def test_language_of_mixed_text():
    assert guess_language("コマンド apt-get install hello を実行します。") == "ja"
    assert guess_language(ENGLISH + " (日本)") == "en"


def test_repetition_measures():
    assert duplicate_line_share("a b\nc d\na b\n\n") == pytest.approx(1 / 3)
    assert duplicate_line_share(JAPANESE) == 0
    assert top_ngram_share("=" * 100) == 1
    assert top_ngram_share(ENGLISH) < 0.03


def test_every_reason_is_counted():
    texts = ["", "短い文。", FRENCH, (ENGLISH + "\n") * 5, ENGLISH + "-" * 100, JAPANESE, ENGLISH]
    report = CleanReport()
    kept = list(clean_documents(({"text": t, "n": i} for i, t in enumerate(texts)), CleanConfig(), report))
    assert kept == [{"text": JAPANESE, "n": 5}, {"text": ENGLISH, "n": 6}]
    assert report.rejected == {"empty": 1, "short": 1, "language": 1, "repeated lines": 1, "repeated text": 1}
    assert (report.documents_in, report.documents_out) == (7, 2)
    assert report.chars_out == len(JAPANESE) + len(ENGLISH)
    assert "kept 2 of 7 documents" in report.summary()


def test_declared_language_must_match():
    report = CleanReport()
    assert not list(clean_documents([{"text": ENGLISH, "language": "ja"}], CleanConfig(), report))
    assert report.rejected == {"language": 1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unicode_form", "NFD", "unicode_form='NFD' is not allowed: it must be one of none, NFC, NFKC"),
        ("languages", ("fr",), "languages="),
        ("min_chars", 0, "min_chars=0 is not allowed: it must be at least 1"),
        ("max_top_ngram", 2.0, "max_top_ngram=2.0 is not allowed: it must be between 0 and 1"),
    ],
)
def test_bad_config_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        CleanConfig(**{field: value})


def test_a_region_is_no_other_language_and_an_empty_one_none():
    documents = [{"text": ENGLISH, "language": language} for language in ("en-US", "EN_GB", "en", "", None, "ja-JP")]
    report = CleanReport()
    assert len(list(clean_documents(documents, CleanConfig(), report))) == 5
    assert report.rejected == {"language": 1}


def test_characters_are_accounted_for():
    texts = [ENGLISH + "\r\n\x00 ", FRENCH, "short", JAPANESE]
    report = CleanReport()
    list(clean_documents(({"text": text} for text in texts), CleanConfig(), report))
    assert report.lost() == {
        "boilerplate": 0,
        "language": len(FRENCH),
        "short": 5,
        "white space and controls": 4,
    }
    assert report.chars_in - sum(report.lost().values()) == report.chars_out == len(ENGLISH) + len(JAPANESE)


def test_long_texts_are_measured_in_stretches(monkeypatch):
    text = "".join(chr(0x4E00 + i * i % 9973) for i in range(5000)) + "=" * 5000
    whole = top_ngram_share(text)
    assert whole == pytest.approx(0.5, abs=0.01)
    monkeypatch.setattr("plamo2_jax.data.characters._STRETCH", 1000)
    assert top_ngram_share(text) == pytest.approx(whole, abs=0.01)
