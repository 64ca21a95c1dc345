"""Checkers of lists, placeholders, highlights, titles and other parts that are counted."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings
from plamo2_jax.checkers.parameters import WORD, count

_NUMBERED = re.compile(r"\d+\.(?:\s|$)")
_STAR = re.compile(r"\*[^\n*]*\*")
_DOUBLE_STAR = re.compile(r"\*\*[^\n*]*\*\*")
_BRACKETED = re.compile("《[^\n《》]*》")
TITLES = {"<<>>": ("<<", ">>"), "『』": ("『", "』")}


def placeholders(text: str, count: int) -> bool:
    found = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0:
            end = line.find("]", start + 1)
            if end < 0:
                break
            found += 1
            start = line.find("[", end + 1)
    return found >= count


def bullets(text: str, count: int, mark: str) -> bool:
    found = 0
    for line in text.split("\n"):
        line = line.lstrip()
        if mark == "* or -":
            found += line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*"))
        else:
            found += line.startswith("・") and line[1:2] not in ("", "・")
    return found == count


def numbered_items(text: str, count: int) -> bool:
    return sum(1 for line in text.split("\n") if _NUMBERED.match(line.lstrip()[:30])) == count


def highlights(text: str, count: int, mark: str) -> bool:
    if mark == "《》":
        found = sum(1 for match in _BRACKETED.findall(text) if match.strip("《》").strip())
    else:
        found = sum(1 for match in _STAR.findall(text) if match.strip("*").strip())
        found += sum(1 for match in _DOUBLE_STAR.findall(text) if match[2:-2].strip())
    return found >= count


def sections_en(text: str, word: str, count: int) -> bool:
    return len(re.findall(rf"{re.escape(word)}\s?\d+", text)) >= count


def sections_ja(text: str, unit: str, count: int) -> bool:
    return len(re.findall(rf"第[\d\uff10-\uff19]{{1,9}}{re.escape(unit)}", text)) >= count


def title(text: str, marks: str) -> bool:
    opening, closing = TITLES[marks]
    for line in text.split("\n"):
        start, end = line.find(opening), line.rfind(closing)
        if start >= 0 and end > start + len(opening) and line[start:end].lstrip(opening[0]).rstrip(closing[0]).strip():
            return True
    return False


def postscript(text: str, marker: str) -> bool:
    if marker == "P.P.S":
        return re.search(r"p\.\s?p\.\s?s", text, re.IGNORECASE) is not None
    if marker == "P.S.":
        return re.search(r"p\.\s?s\.", text, re.IGNORECASE) is not None
    return marker.lower() in text.lower()


def marked_bullets(text: str, mark: str) -> bool:
    """Whether bullets with a mark occur, and none of them is empty."""
    found = False
    for line in text.splitlines():
        line = line.lstrip()
        if line.startswith(mark):
            content = line[len(mark) :].strip()
            if not content or not content.strip(mark):
                return False
            found = True
    return found


def nested_bullets(text: str) -> bool:
    """Whether every * item has - items below it, and each - item belongs to one."""
    items = [line.lstrip()[:2] for line in text.splitlines() if line.lstrip().startswith(("* ", "- "))]
    if not items or items[0] != "* ":
        return False
    return all(after == "- " for item, after in zip(items, [*items[1:], "* "], strict=True) if item == "* ")


_MARKER = Parameter(
    WORD.allowed,
    WORD.fits,
    lambda rng, language: rng.choice(("追伸", "P.S.", "P.P.S") if language == "ja" else ("P.S.", "P.P.S")),
    WORD.words,
)
_MARK_WORDS = {"ja": {"* or -": "「*」または「-」", "・": "「・」"}, "en": {"* or -": "* or -", "・": "・"}}
_BULLET = Parameter(
    '"* or -" or "・"',
    lambda value: isinstance(value, str) and value in ("* or -", "・"),
    lambda rng, language: "・" if language == "ja" else "* or -",
    lambda value, language: _MARK_WORDS[language][value],
)
_HIGHLIGHT_WORDS = {"ja": {"*": "*アスタリスク*", "《》": "《》"}, "en": {"*": "*asterisks*", "《》": "《》"}}
_HIGHLIGHT = Parameter(
    '"*" or "《》"',
    lambda value: isinstance(value, str) and value in ("*", "《》"),
    lambda rng, language: "《》" if language == "ja" else "*",
    lambda value, language: _HIGHLIGHT_WORDS[language][value],
)
_TITLE = Parameter(
    '"<<>>" or "『』"',
    lambda value: isinstance(value, str) and value in TITLES,
    lambda rng, language: "『』" if language == "ja" else "<<>>",
)
_SECTION = Parameter(
    WORD.allowed, WORD.fits, lambda rng, language: rng.choice(("Section", "SECTION", "Part", "Chapter"))
)
_UNIT = Parameter(WORD.allowed, WORD.fits, lambda rng, language: rng.choice("章節項部条回"))
_MARKED = Parameter(WORD.allowed, WORD.fits, lambda rng, language: rng.choice(("◆", "+", "*_*", "->", "●")), WORD.words)

CHECKERS = (
    Checker(
        "placeholders",
        "At least a number of placeholders in square brackets occur, such as [name].",
        placeholders,
        {"count": count(1, 5)},
        {
            "ja": Wordings(
                (
                    "[氏名]のような角括弧の空欄を{count}個以上入れてください。",
                    "後で埋める箇所を[ ]で示し、{count}か所以上作ってください。",
                ),
                ("[日付]のように角括弧で書いた置き換え箇所が、少なくとも{count}個ある文章にしてください。",),
            ),
            "en": Wordings(
                (
                    "Include {count} or more placeholders in square brackets, such as [name].",
                    "Leave at least {count} blanks, written like [date].",
                ),
                ("No fewer than {count} bracketed placeholders like [city] have to occur.",),
            ),
        },
    ),
    Checker(
        "bullets",
        "The text has an exact number of bullet points. `mark`: the characters that begin a bullet point.",
        bullets,
        {"count": count(2, 8), "mark": _BULLET},
        {
            "ja": Wordings(
                (
                    "{mark}で始まる箇条書きをちょうど{count}個書いてください。",
                    "箇条書きの項目は{count}個とし、行頭に{mark}を付けてください。",
                ),
                ("行頭が{mark}の項目が、過不足なく{count}個ある回答にしてください。",),
            ),
            "en": Wordings(
                (
                    "Write exactly {count} bullet points that start with {mark}.",
                    "Use {count} bullets with the mark {mark}.",
                ),
                ("The list has {count} items, no more and no fewer, each after {mark}.",),
            ),
        },
    ),
    Checker(
        "numbered_items",
        'The text has an exact number of lines that begin with a number and a period, such as "1. ".',
        numbered_items,
        {"count": count(2, 8)},
        {
            "ja": Wordings(
                (
                    "「1. 」の形の番号付きリストで、ちょうど{count}項目書いてください。",
                    "番号付きの項目を{count}個挙げてください。",
                ),
                ("数字とピリオドで始まる行が、全部で{count}行になるようにしてください。",),
            ),
            "en": Wordings(
                ('Write a numbered list of exactly {count} items, as in "1. ".', "Give {count} numbered items."),
                ("Number the points as 1., 2. and so on, {count} in total.",),
            ),
        },
    ),
    Checker(
        "highlights",
        "At least a number of phrases are highlighted with a mark.",
        highlights,
        {"count": count(1, 5), "mark": _HIGHLIGHT},
        {
            "ja": Wordings(
                (
                    "{mark}で囲んだ強調を{count}か所以上入れてください。",
                    "大切な語句を{mark}で強調し、{count}個以上にしてください。",
                ),
                ("少なくとも{count}つの語句を{mark}で目立たせてください。",),
            ),
            "en": Wordings(
                ("Highlight {count} or more phrases with {mark}.", "Emphasize at least {count} parts with {mark}."),
                ("No fewer than {count} passages must stand out by {mark}.",),
            ),
        },
    ),
    Checker(
        "sections_en",
        'At least a number of sections begin with a word and a number, such as "Section 1".',
        sections_en,
        {"word": _SECTION, "count": count(2, 6)},
        {
            "en": Wordings(
                (
                    "Write {count} sections and begin each with {word} and its number.",
                    "Use {count} sections, titled {word} 1 and so on.",
                ),
                ("Divide the answer into {count} numbered units, each opened by {word} X.",),
            ),
        },
    ),
    Checker(
        "sections_ja",
        "At least a number of sections begin with 第1章, 第1節 and so on.",
        sections_ja,
        {"unit": _UNIT, "count": count(2, 6)},
        {
            "ja": Wordings(
                (
                    "第1{unit}、第2{unit}のように、{count}個の部分に分けて書いてください。",
                    "全体を{count}つに分け、それぞれ第1{unit}の形で始めてください。",
                ),
                ("見出しを第X{unit}の形で付け、{count}つのまとまりで構成してください。",),
            ),
        },
    ),
    Checker(
        "title",
        "The text has a title between two marks on one line.",
        title,
        {"marks": _TITLE},
        {
            "ja": Wordings(
                ("{marks}で囲んだ題名を付けてください。", "題名を書き、{marks}の中に入れてください。"),
                ("タイトルを用意し、それを{marks}で括ってください。",),
            ),
            "en": Wordings(
                ("Give it a title inside {marks}.", "Write a title and put it between {marks}."),
                ("The answer needs a headline, enclosed in {marks}.",),
            ),
        },
    ),
    Checker(
        "postscript",
        "A marker of a postscript occurs, in any case.",
        postscript,
        {"marker": _MARKER},
        {
            "ja": Wordings(
                ("最後に{marker}で始まる一言を添えてください。", "結びに{marker}を付けてください。"),
                ("本文の後に{marker}と書いて、付け足しの文を続けてください。",),
            ),
            "en": Wordings(
                ("Add a postscript that starts with {marker}.", "Close with a note after {marker}."),
                ("After the main text, append some words introduced by {marker}",),
            ),
        },
    ),
    Checker(
        "marked_bullets",
        "Bullet points that begin with a mark occur, and none of them is empty.",
        marked_bullets,
        {"mark": _MARKED},
        {
            "ja": Wordings(
                ("{mark}で始まる箇条書きを使ってください。", "要点を箇条書きにし、行頭に{mark}を付けてください。"),
                ("行頭が{mark}の項目を一つ以上並べてください。",),
            ),
            "en": Wordings(
                ("Use bullet points that begin with {mark}.", "List the points, each after {mark}."),
                ("At least one line must be an item introduced by {mark}.",),
            ),
        },
    ),
    Checker(
        "nested_bullets",
        "Every * item has - items below it, and no - item comes first.",
        nested_bullets,
        {},
        {
            "ja": Wordings(
                (
                    "「* 」の項目それぞれの下に「- 」の項目を置いてください。",
                    "箇条書きは二段とし、上の段を*、下の段を-で書いてください。",
                ),
                ("* で始まる項目には必ず - で始まる小項目を続けてください。",),
            ),
            "en": Wordings(
                (
                    "Use * for bullets and - for at least one sub-bullet of each.",
                    "Write a list of two levels: * above, - below.",
                ),
                ("Each item with * must be followed by one or more items with -.",),
            ),
        },
    ),
)
