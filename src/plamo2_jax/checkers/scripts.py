"""Checkers of scripts and characters: hiragana, katakana, kanji, full and half width, punctuation."""

from __future__ import annotations

import re
import string
import unicodedata

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings, plain
from plamo2_jax.checkers.guess import LANGUAGES, guess_language
from plamo2_jax.checkers.parameters import RELATION, compare, count
from plamo2_jax.checkers.romaji import is_romaji

_IFEVAL_KANJI = re.compile("[\u4e00-\u9faf]")
_FURIGANA = re.compile("[\u4e00-\u9faf]+(（[ぁ-ん]+）)?")
_DIGIT = re.compile(r"\d")
_KANJI_NUMERAL = re.compile("[〇零一二三四五六七八九十百千]")
_HALF_WIDTH = re.compile("[^\u0020-\u007e\uff61-\uff9f\uffa0-\uffdc\uffe8-\uffee\u201c\u201d]")
# Punctuation, Latin letters and symbols that texts in one script may have.
_NEUTRAL = frozenset("(){}-|!@#$%^&*-=_+'\"?/.,<>[]\\;:`~（）・？！。、，．" + string.ascii_letters)
_NAMES = {
    "ja": "日本語 英語 フランス語 ドイツ語 スペイン語 イタリア語 ポルトガル語 韓国語 中国語 タイ語 ロシア語 アラビア語",
    "en": "Japanese English French German Spanish Italian Portuguese Korean Chinese Thai Russian Arabic",
}
_CODES = ["ja", "en", "fr", "de", "es", "it", "pt", "ko", "zh", "th", "ru", "ar"]
LANGUAGE_NAMES = {language: dict(zip(_CODES, names.split(), strict=True)) for language, names in _NAMES.items()}


def response_language(text: str, language: str) -> bool:
    return guess_language(text) in (language, None)


def no_hiragana(text: str) -> bool:
    return not any("ぁ" <= character <= "ゖ" for character in text)


def hiragana_only(text: str) -> bool:
    return all("ぁ" <= c <= "ん" or c == "ー" or not unicodedata.category(c).startswith("L") for c in text)


def no_katakana(text: str) -> bool:
    return not any("ァ" <= character <= "ヺ" or "ｦ" <= character <= "ﾟ" for character in text)


def katakana_only(text: str) -> bool:
    return all(
        "ァ" <= c <= "ン" or c in "ー・" or "ｦ" <= c <= "ﾟ" or not unicodedata.category(c).startswith("L") for c in text
    )


def kanji_count(text: str, relation: str, count: int) -> bool:
    return compare(sum(1 for _ in _IFEVAL_KANJI.finditer(text)), relation, count)


def furigana(text: str) -> bool:
    return all(match.group(1) for match in _FURIGANA.finditer(text))


def no_digits(text: str) -> bool:
    return _DIGIT.search(text) is None


def no_kanji_numerals(text: str) -> bool:
    return _KANJI_NUMERAL.search(unicodedata.normalize("NFKC", text)) is None


def _in_script(text: str, least: str, most: str, extra: str) -> bool:
    characters = [c for c in text if not c.isspace()]
    return bool(characters) and all(
        least <= c <= most or c in extra or c in _NEUTRAL or unicodedata.category(c).startswith("S") for c in characters
    )


def hiragana_text(text: str) -> bool:
    return _in_script(text, "\u3040", "\u309f", "ー" + string.digits)


def katakana_text(text: str) -> bool:
    return _in_script(text, "\u30a0", "\u30ff", "ー" + string.digits)


def kanji_text(text: str) -> bool:
    return _in_script(text, "\u4e00", "\u9fff", "")


def full_width(text: str) -> bool:
    return not any("!" <= character <= "~" for character in text)


def half_width(text: str) -> bool:
    return _HALF_WIDTH.search("".join(text.split())) is None


def _lacks(text: str, marks: str) -> bool:
    """Return whether marks occur only after a digit, as in 1,000."""
    return all(text[i - 1 : i].isdigit() for i, c in enumerate(text) if c in marks)


def no_comma(text: str) -> bool:
    return "," not in text


def no_japanese_comma(text: str) -> bool:
    return "、" not in text


def no_japanese_period(text: str) -> bool:
    return "。" not in text


def no_commas(text: str) -> bool:
    return _lacks(text, ",、，")


def japanese_punctuation(text: str) -> bool:
    return _lacks(text, ",.，．")


def no_japanese_punctuation(text: str) -> bool:
    return _lacks(text, "、。")


def no_whitespace(text: str) -> bool:
    return not any(character.isspace() for character in text)


def no_trailing_whitespace(text: str) -> bool:
    return text == text.rstrip()


_LANGUAGE = Parameter(
    f"an ISO 639-1 code out of {', '.join(LANGUAGES)}",
    lambda value: isinstance(value, str) and value in LANGUAGES,
    lambda rng, language: rng.choice(_CODES),
    lambda value, language: LANGUAGE_NAMES[language].get(value, value),
)


CHECKERS = (
    Checker(
        "response_language",
        "The text is in a language, judged by script and frequent words. A text without letters passes.",
        response_language,
        {"language": _LANGUAGE},
        {
            "ja": Wordings(
                ("{language}で答えてください。", "回答には{language}だけを使ってください。"),
                ("全文を{language}で書き、ほかの言語は混ぜないでください。",),
            ),
            "en": Wordings(
                ("Answer in {language}.", "Use only {language} in your answer."),
                ("Write the whole response in {language} and in no other language.",),
            ),
        },
    ),
    plain(
        "no_hiragana",
        "The text has no hiragana.",
        no_hiragana,
        ja=(
            "ひらがなを使わずに書いてください。",
            "ひらがなは禁止です。",
            "回答にひらがなが一つも現れないようにしてください。",
        ),
    ),
    plain(
        "hiragana_only",
        "All letters are hiragana. Digits, punctuation and symbols may occur.",
        hiragana_only,
        ja=(
            "ひらがなのみで書いてください。",
            "文字はすべてひらがなにしてください。",
            "漢字もカタカナも使わず、ひらがなで答えること。",
        ),
    ),
    plain(
        "no_katakana",
        "The text has no katakana.",
        no_katakana,
        ja=(
            "カタカナを使わずに書いてください。",
            "カタカナは禁止です。",
            "回答にカタカナが一つも現れないようにしてください。",
        ),
    ),
    plain(
        "katakana_only",
        "All letters are katakana. Digits, punctuation and symbols may occur.",
        katakana_only,
        ja=(
            "カタカナのみで書いてください。",
            "文字はすべてカタカナにしてください。",
            "漢字もひらがなも使わず、カタカナで答えること。",
        ),
    ),
    Checker(
        "kanji_count",
        "The text has at least, or less than, a number of kanji.",
        kanji_count,
        {"relation": RELATION, "count": count(5, 60, step=5)},
        {
            "ja": Wordings(
                ("漢字を{count}字{relation}使ってください。", "漢字の数は{count}文字{relation}とします。"),
                ("使う漢字が全部で{count}文字{relation}になるように書いてください。",),
            ),
        },
    ),
    plain(
        "furigana",
        "Every run of kanji is followed by hiragana in （）.",
        furigana,
        ja=(
            "すべての漢字の後に、全角の丸括弧で読みがなを書いてください。",
            "漢字（かんじ）のように、漢字には必ず読みを添えてください。",
            "漢字を使うたびに、その読みをひらがなで（）の中に示すこと。",
        ),
    ),
    plain(
        "no_digits",
        "The text has no digits. Numbers are written in kanji.",
        no_digits,
        ja=(
            "数は漢数字で書いてください。",
            "算用数字を使わず、漢数字を使ってください。",
            "数値を表すときは一、二、三のような漢数字だけにすること。",
        ),
        en=("Do not use digits.", "Spell out all numbers.", "Write every number as a word, without any digit."),
    ),
    plain(
        "no_kanji_numerals",
        "The text has no kanji for digits, 十, 百 or 千.",
        no_kanji_numerals,
        ja=(
            "漢数字を使わないでください。",
            "数は算用数字だけで書いてください。",
            "一、二、十のような漢数字が現れないようにしてください。",
        ),
    ),
    plain(
        "hiragana_text",
        "The text is in hiragana. Latin letters, digits and symbols may occur. It is not empty.",
        hiragana_text,
        ja=(
            "ひらがなと記号だけで回答してください。",
            "日本語の文字はひらがなに限ります。",
            "漢字とカタカナを含まない、ひらがなの文章にしてください。",
        ),
    ),
    plain(
        "katakana_text",
        "The text is in katakana. Latin letters, digits and symbols may occur. It is not empty.",
        katakana_text,
        ja=(
            "カタカナと記号だけで回答してください。",
            "日本語の文字はカタカナに限ります。",
            "漢字とひらがなを含まない、カタカナの文章にしてください。",
        ),
    ),
    plain(
        "kanji_text",
        "The text is in kanji. Latin letters and symbols may occur, but no digits. It is not empty.",
        kanji_text,
        ja=(
            "漢字と記号だけで回答してください。",
            "日本語の文字は漢字に限ります。",
            "かなを含まない、漢字だけの文章にしてください。",
        ),
    ),
    plain(
        "full_width",
        "The text has no half-width ASCII characters, except white space.",
        full_width,
        ja=(
            "すべて全角文字で書いてください。",
            "半角の英数字や記号を使わないでください。",
            "英字や数字も含めて、全角の文字だけで答えること。",
        ),
    ),
    plain(
        "half_width",
        "All characters are half-width, except white space.",
        half_width,
        ja=(
            "すべて半角文字で書いてください。",
            "全角文字を使わないでください。",
            "かなも含めて、半角の文字だけで答えること。",
        ),
    ),
    plain(
        "romaji",
        "The text is Japanese in Hepburn romanization.",
        is_romaji,
        ja=(
            "ローマ字だけで書いてください。",
            "日本語をヘボン式ローマ字で書いてください。",
            "かなも漢字も使わず、ヘボン式のローマ字表記で答えること。",
        ),
    ),
    plain(
        "no_comma",
        "The text has no ASCII comma.",
        no_comma,
        en=("Do not use commas.", "Avoid commas in the whole answer.", "The answer must not contain a single comma."),
    ),
    plain(
        "no_japanese_comma",
        "The text has no 、.",
        no_japanese_comma,
        ja=(
            "読点を使わないでください。",
            "「、」を使わずに書いてください。",
            "回答に読点が一つもないようにしてください。",
        ),
    ),
    plain(
        "no_japanese_period",
        "The text has no 。.",
        no_japanese_period,
        ja=(
            "句点を使わないでください。",
            "「。」を使わずに書いてください。",
            "回答に句点が一つもないようにしてください。",
        ),
    ),
    plain(
        "no_commas",
        "The text has no comma of any kind (, 、 ，) except after a digit.",
        no_commas,
        ja=(
            "コンマも読点も使わないでください。",
            "「,」や「、」を避けて書いてください。",
            "区切りのコンマや読点がどこにもない回答にしてください。",
        ),
        en=(
            "Use no comma of any script.",
            "Do not write , or 、 in your answer.",
            "Neither Western nor Japanese commas may occur.",
        ),
    ),
    plain(
        "japanese_punctuation",
        "The text has no Western comma or period except after a digit.",
        japanese_punctuation,
        ja=(
            "句読点には「、」と「。」を使ってください。",
            "英文のコンマやピリオドを使わないでください。",
            "文の区切りに「,」や「.」を用いず、日本語の句読点で書くこと。",
        ),
    ),
    plain(
        "no_japanese_punctuation",
        "The text has no 、 and 。 except after a digit.",
        no_japanese_punctuation,
        ja=(
            "「、」と「。」を使わないでください。",
            "句読点の代わりにコンマとピリオドを使ってください。",
            "日本語の句読点が現れない書き方で答えること。",
        ),
    ),
    plain(
        "no_whitespace",
        "The text has no white space, including line breaks.",
        no_whitespace,
        ja=(
            "空白も改行も使わないでください。",
            "スペースや改行なしで続けて書いてください。",
            "回答に空白文字が一つもないようにしてください。",
        ),
        en=(
            "Use no spaces or line breaks.",
            "Write without any white space.",
            "The answer must be one run of characters without white space.",
        ),
    ),
    plain(
        "no_trailing_whitespace",
        "The text does not end with white space.",
        no_trailing_whitespace,
        ja=(
            "最後に空白や改行を付けないでください。",
            "末尾の空白は不要です。",
            "回答の終わりに余分な空白文字を残さないこと。",
        ),
        en=(
            "Do not end with spaces or line breaks.",
            "Leave no white space at the end.",
            "The last character of the answer must not be white space.",
        ),
    ),
)
