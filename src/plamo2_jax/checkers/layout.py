"""Checkers of the form of a whole text: answers to choose from, quotes, brackets, indents, templates."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings, plain
from plamo2_jax.checkers.parameters import WORDS, count, quoted

QUOTES = {'""': '""', "「」": "「」", "『』": "『』", "()": "()", "（）": "（）"}
_CLOSING = {")": "(", "]": "[", "}": "{"}
_THESIS = re.compile(r"\s*<i>.+</i>\s*$")
_EXPLAINED = re.compile("[^\\s\"'「」]")
_OPTIONS = {
    "ja": ("はい、そうです。", "いいえ、違います。", "どちらとも言えません。"),
    "en": ("My answer is yes.", "My answer is no.", "My answer is maybe."),
}


def one_of(text: str, options: Sequence[str]) -> bool:
    return any(option in text for option in options)


def wrapped(text: str, marks: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == QUOTES[marks][0] and text[-1] == QUOTES[marks][1]


def bracket_depth(text: str, least: int) -> bool:
    """Whether (), [] and {} are balanced and nest at least so deep."""
    stack: list[str] = []
    deepest = 0
    for character in text:
        if character in "([{":
            stack.append(character)
            deepest = max(deepest, len(stack))
        elif character in _CLOSING and (not stack or stack.pop() != _CLOSING[character]):
            return False
    return deepest >= least


def quote_depth(text: str, least: int) -> bool:
    """Whether " and ' alternate inside each other at least so deep, and all are closed."""
    stack: list[str] = []
    deepest = 0
    for character in text:
        if character in "\"'":
            if stack and stack[-1] == character:
                stack.pop()
            else:
                stack.append(character)
                deepest = max(deepest, len(stack))
    return not stack and deepest >= least and text.count('"') >= 2 and text.count("'") >= 2


def explained_quote(text: str) -> bool:
    """Whether a quoted phrase occurs with an explanation after it that is not quoted."""
    for opening, closing, gap in (("「", "」", False), ('"', '"', True), ("'", "'", True)):
        start, end = text.find(opening), -1
        while start >= 0:
            # Many openings can have the same closing mark: it is searched for once.
            if end < start + 2:
                end = text.find(closing, start + 2)
            if end < 0:
                break
            rest = text[end + 1 : end + 100]
            after = rest.lstrip()
            if (not gap or len(after) < len(rest)) and len(after) > 1 and _EXPLAINED.match(after):
                return True
            start = text.find(opening, start + 1 if opening != closing else end + 1)
    return False


def template(text: str, labels: Sequence[str]) -> bool:
    """Whether labels occur once each, in order, followed by a colon and content."""
    text = text.replace("：", ":")
    marks = [label + ":" for label in labels]
    if any(text.count(mark) != 1 for mark in marks):
        return False
    places = [text.find(mark) for mark in marks]
    if sorted(places) != places:
        return False
    ends = [*places[1:], len(text)]
    return all(text[place + len(mark) : end].strip() for place, mark, end in zip(places, marks, ends, strict=True))


def italic_theses(text: str) -> bool:
    sections = [section for section in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")) if section.strip()]
    return bool(sections) and all(_THESIS.match(section.strip().split("\n", 1)[0]) for section in sections)


def growing_indent(text: str) -> bool:
    indents = [len(line) - len(line.lstrip(" ")) for line in text.splitlines() if line.strip()]
    return all(before < after for before, after in itertools.pairwise(indents))


def indent_unit(text: str, spaces: int) -> bool:
    """Whether the white space before each line is a multiple of some spaces."""
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if indent.strip(" ") or len(indent) % spaces:
            return False
    return True


_QUOTE = Parameter(
    " or ".join(f"'{marks}'" for marks in QUOTES),
    lambda value: isinstance(value, str) and value in QUOTES,
    lambda rng, language: rng.choice(("「」", "『』", "（）") if language == "ja" else ('""', "()")),
)
_CHOICES = Parameter(WORDS.allowed, WORDS.fits, lambda rng, language: list(_OPTIONS[language]), WORDS.words)
_LABELS = Parameter(
    WORDS.allowed,
    WORDS.fits,
    lambda rng, language: list(
        rng.choice(
            (("回答", "理由", "まとめ"), ("要点", "詳細"))
            if language == "ja"
            else (("Answer", "Reason"), ("Facts", "Opinion", "Advice"))
        )
    ),
    lambda value, language: ("、" if language == "ja" else ", ").join(quoted(f"{label}:", language) for label in value),
)

CHECKERS = (
    Checker(
        "one_of",
        "The text contains one of some answers.",
        one_of,
        {"options": _CHOICES},
        {
            "ja": Wordings(
                ("次のどれかを選んで答えてください: {options}。", "{options}のうち一つを答えに使ってください。"),
                ("答えは{options}の中から選び、そのまま書いてください。",),
            ),
            "en": Wordings(
                ("Choose one of these answers: {options}", "Reply with one of {options}"),
                ("Pick your answer from {options} and write it unchanged.",),
            ),
        },
    ),
    Checker(
        "wrapped",
        "The whole text is between two marks.",
        wrapped,
        {"marks": _QUOTE},
        {
            "ja": Wordings(
                ("回答の全体を{marks}で囲んでください。", "最初の文字と最後の文字を{marks}にしてください。"),
                ("回答を丸ごと{marks}の中に書いてください。",),
            ),
            "en": Wordings(
                ("Put the whole answer in {marks}.", "The first and last characters of your answer are {marks}."),
                ("Enclose everything you write in one pair of {marks}.",),
            ),
        },
    ),
    Checker(
        "bracket_depth",
        "The brackets (), [] and {} are balanced, and nest at least a number of levels deep.",
        bracket_depth,
        {"least": count(2, 5)},
        {
            "ja": Wordings(
                ("括弧を{least}重以上の入れ子にしてください。", "( ) [ ] {{ }} を使い、{least}段以上重ねてください。"),
                ("対応の取れた括弧が{least}段以上の深さになるようにしてください。",),
            ),
            "en": Wordings(
                (
                    "Nest brackets {least} or more levels deep.",
                    "Use ( ), [ ] and {{ }} inside each other, at least {least} deep.",
                ),
                ("Balanced brackets must reach a depth of {least}.",),
            ),
        },
    ),
    Checker(
        "quote_depth",
        "Quotation marks \" and ' alternate inside each other at least a number of levels deep, and all are closed.",
        quote_depth,
        {"least": count(2, 3)},
        {
            "ja": Wordings(
                (
                    "\" と ' を交互に{least}重以上の入れ子にしてください。",
                    "引用符を{least}段以上重ね、\" と ' を交互に使ってください。",
                ),
                ("二重引用符と一重引用符が互い違いに{least}段以上入れ子になるようにしてください。",),
            ),
            "en": Wordings(
                (
                    "Nest \" and ' in turn, {least} or more levels deep.",
                    "Put quotes inside quotes, at least {least} levels, with \" and ' alternating.",
                ),
                ("Alternate double and single quotes to a depth of {least}.",),
            ),
        },
    ),
    plain(
        "explained_quote",
        "A quoted phrase is followed by an explanation without quotes.",
        explained_quote,
        ja=(
            "引用した語句の後に、引用符のない説明を続けてください。",
            "「」で引用し、その直後に説明を書いてください。",
            "引用のすぐ後ろで、その意味を地の文で説明すること。",
        ),
        en=(
            "Follow a quoted phrase by an explanation without quotes.",
            "Quote something, then explain it.",
            "After each quotation, comment on it in words of your own.",
        ),
    ),
    Checker(
        "template",
        "Labels with a colon occur once each, in order, with content after them.",
        template,
        {"labels": _LABELS},
        {
            "ja": Wordings(
                ("次の見出しを順に使ってください: {labels}。", "{labels}の順に、それぞれ内容を書いてください。"),
                ("回答の枠は{labels}です。順番を変えず、一度ずつ使い、中身を埋めてください。",),
            ),
            "en": Wordings(
                ("Use these labels in order: {labels}.", "Fill in the template {labels}."),
                ("Build the answer from {labels}, each once, in this order, with content.",),
            ),
        },
    ),
    plain(
        "italic_theses",
        "Every section, separated by blank lines, begins with a line in <i>…</i>.",
        italic_theses,
        ja=(
            "各段落の最初の行を<i>と</i>で囲んだ主張にしてください。",
            "空行で区切った節ごとに、まず<i>主張</i>を一行で書いてください。",
            "どの節も<i>…</i>だけの行から始めること。",
        ),
        en=(
            "Begin each section with a thesis in <i></i> on its own line.",
            "Separate sections by blank lines; the first line of each is <i>a thesis</i>.",
            "Every section opens with one line in <i>…</i>.",
        ),
    ),
    plain(
        "growing_indent",
        "Each line has more spaces before it than the line above.",
        growing_indent,
        ja=(
            "行が進むごとに字下げを深くしてください。",
            "各行の先頭の空白を、前の行より増やしてください。",
            "字下げが一行ごとに大きくなるように書いてください。",
        ),
        en=(
            "Indent each line more than the one above.",
            "Increase the indent with every line.",
            "Let the number of leading spaces grow from line to line.",
        ),
    ),
    Checker(
        "indent_unit",
        "The white space before each line is a multiple of a number of spaces.",
        indent_unit,
        {"spaces": count(2, 4, least=1, most=100)},
        {
            "ja": Wordings(
                ("字下げは半角スペース{spaces}個の倍数にしてください。", "インデントの単位は空白{spaces}個です。"),
                ("行頭の空白は、スペース{spaces}個を単位としてそろえてください。",),
            ),
            "en": Wordings(
                ("Indent by multiples of {spaces} spaces.", "The indent unit is {spaces} spaces."),
                ("If a line is indented, use a multiple of {spaces} spaces.",),
            ),
        },
    ),
)
