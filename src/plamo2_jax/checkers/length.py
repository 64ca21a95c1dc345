"""Checkers of length: characters, words, sentences, paragraphs, lines."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Wordings
from plamo2_jax.checkers.parameters import RELATION, WORD, choice, compare, count, ordered
from plamo2_jax.checkers.sentences import english_sentences, japanese_sentences, marked_sentences

_WORD = re.compile(r"\w+")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_PUNCTUATION = re.compile("[.,?!'\"]")


def characters(text: str, relation: str, count: int) -> bool:
    return compare(len(text), relation, count)


def characters_between(text: str, least: int, most: int) -> bool:
    return least <= len(text) <= most


def words(text: str, relation: str, count: int) -> bool:
    return compare(sum(1 for _ in _WORD.finditer(text)), relation, count)


def sentences_ja(text: str, relation: str, count: int) -> bool:
    return compare(len(japanese_sentences(text)), relation, count)


def sentences_en(text: str, relation: str, count: int) -> bool:
    return compare(len(english_sentences(text)), relation, count)


def sentences_between(text: str, least: int, most: int) -> bool:
    return least <= len(marked_sentences(text)) <= most


def divided_paragraphs(text: str, count: int) -> bool:
    parts = _DIVIDER.split(text)
    if not parts[0].strip():
        parts = parts[1:]
    if parts and not parts[-1].strip():
        parts = parts[:-1]
    return all(part.strip() for part in parts) and len(parts) == count


def _block_after_blank_lines(text: str, number: int, paragraphs: int) -> str | None:
    """Return a paragraph, or None if the number of paragraphs is not `paragraphs`."""
    blocks = text.split("\n\n")
    filled = sum(1 for block in blocks if block.strip())
    return blocks[number - 1].strip() if filled == paragraphs and number <= filled else None


def paragraph_start_en(text: str, paragraphs: int, paragraph: int, word: str) -> bool:
    block = _block_after_blank_lines(text, paragraph, paragraphs)
    if not block:
        return False
    first = block.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return _PUNCTUATION.split(first, maxsplit=1)[0].lower() == word.lower()


def paragraph_start_ja(text: str, paragraphs: int, paragraph: int, word: str) -> bool:
    block = _block_after_blank_lines(text, paragraph, paragraphs)
    return bool(block) and block.lstrip("「").lstrip("『").startswith(word.lower())


def paragraphs_between(text: str, least: int, most: int) -> bool:
    return least <= sum(1 for block in text.split("\n\n") if block.strip()) <= most


def sections_between(text: str, least: int, most: int, separator: str) -> bool:
    separator = separator.replace("\\n", "\n")
    return least <= sum(1 for section in text.strip().split(separator) if section.strip()) <= most


def line_breaks(text: str, count: int) -> bool:
    return text.count("\n") == count


def blank_lines(text: str, count: int) -> bool:
    return sum(1 for line in text.splitlines() if not line.strip()) == count


_LEAST_MOST = ordered("least", "most")


def _paragraph_exists(parameters) -> str | None:
    if parameters["paragraph"] > parameters["paragraphs"]:
        return f"paragraph={parameters['paragraph']} must be at most paragraphs={parameters['paragraphs']}"
    return None


CHECKERS = (
    Checker(
        "characters",
        "The text has at least, or less than, a number of characters.",
        characters,
        {"relation": RELATION, "count": count(50, 1000, step=50)},
        {
            "ja": Wordings(
                ("{count}文字{relation}で書いてください。", "回答の長さは{count}文字{relation}とします。"),
                ("文字数を{count}字{relation}に収めた回答をお願いします。",),
            ),
            "en": Wordings(
                (
                    "Write {relation} {count} characters.",
                    "The length of your answer must be {relation} {count} characters.",
                ),
                ("Keep the answer to {relation} {count} characters, spaces included.",),
            ),
        },
    ),
    Checker(
        "characters_between",
        "The number of characters lies between two bounds, both included.",
        characters_between,
        {"least": count(50, 300, step=50), "most": count(100, 600, step=50)},
        {
            "ja": Wordings(
                ("{least}文字から{most}文字までの長さで答えてください。", "{least}字以上、{most}字以下で書くこと。"),
                ("長さが{least}〜{most}文字の範囲に入るようにまとめてください。",),
            ),
            "en": Wordings(
                (
                    "Answer in {least} to {most} characters.",
                    "Use no fewer than {least} and no more than {most} characters.",
                ),
                ("The answer should be between {least} and {most} characters long.",),
            ),
        },
        _LEAST_MOST,
    ),
    Checker(
        "words",
        "The text has at least, or less than, a number of words (runs of letters, digits and _).",
        words,
        {"relation": RELATION, "count": count(50, 500, step=25)},
        {
            "en": Wordings(
                ("Write {relation} {count} words.", "Your answer must have {relation} {count} words."),
                ("Make the response {relation} {count} words long.",),
            ),
        },
    ),
    Checker(
        "sentences_ja",
        "The text has at least, or less than, a number of sentences by Japanese rules.",
        sentences_ja,
        {"relation": RELATION, "count": count(2, 12)},
        {
            "ja": Wordings(
                ("{count}文{relation}で答えてください。", "文の数は{count}つ{relation}にしてください。"),
                ("全体を{count}文{relation}の文章でまとめてください。",),
            ),
        },
    ),
    Checker(
        "sentences_en",
        "The text has at least, or less than, a number of sentences by English rules.",
        sentences_en,
        {"relation": RELATION, "count": count(2, 12)},
        {
            "en": Wordings(
                ("Use {relation} {count} sentences.", "Write an answer of {relation} {count} sentences."),
                ("The number of sentences in the response must be {relation} {count}.",),
            ),
        },
    ),
    Checker(
        "sentences_between",
        "The number of sentences by Japanese rules lies between two bounds, both included.",
        sentences_between,
        {"least": count(2, 5), "most": count(3, 9)},
        {
            "ja": Wordings(
                ("{least}文から{most}文で書いてください。", "文の数を{least}以上{most}以下にすること。"),
                ("{least}〜{most}文の範囲で説明をお願いします。",),
            ),
        },
        _LEAST_MOST,
    ),
    Checker(
        "divided_paragraphs",
        "The text has an exact number of paragraphs, separated by ***.",
        divided_paragraphs,
        {"count": count(2, 6)},
        {
            "ja": Wordings(
                ("***で区切った{count}個の段落で書いてください。", "段落は{count}個とし、間に *** を置いてください。"),
                ("回答を{count}段落に分け、段落の境目にマークダウンの区切り *** を入れること。",),
            ),
            "en": Wordings(
                (
                    "Write {count} paragraphs separated by ***.",
                    "Put *** between the paragraphs, and write {count} of them.",
                ),
                ("Structure the answer as {count} paragraphs with the divider *** between them.",),
            ),
        },
    ),
    Checker(
        "paragraph_start_en",
        "The text has an exact number of paragraphs, separated by blank lines, and one of them starts with a word.",
        paragraph_start_en,
        {"paragraphs": count(2, 5, least=1), "paragraph": count(1, 5, least=1), "word": WORD},
        {
            "en": Wordings(
                (
                    "Write {paragraphs} paragraphs with a blank line between them. Paragraph {paragraph} starts with the word {word}.",
                    "Separate {paragraphs} paragraphs by two line breaks, and begin paragraph {paragraph} with {word}.",
                ),
                (
                    "The answer has {paragraphs} paragraphs, divided by blank lines; the first word of paragraph {paragraph} is {word}.",
                ),
            ),
        },
        _paragraph_exists,
    ),
    Checker(
        "paragraph_start_ja",
        "The text has an exact number of paragraphs, separated by blank lines, and one of them starts with a word.",
        paragraph_start_ja,
        {"paragraphs": count(2, 5, least=1), "paragraph": count(1, 5, least=1), "word": WORD},
        {
            "ja": Wordings(
                (
                    "空行で区切った{paragraphs}個の段落で書き、{paragraph}番目の段落は{word}で始めてください。",
                    "段落を{paragraphs}個とし、段落の間は改行2つとします。{paragraph}段落目の最初の言葉は{word}です。",
                ),
                (
                    "全体は改行2つで分かれた{paragraphs}段落です。そのうち{paragraph}段落目を{word}から書き出してください。",
                ),
            ),
        },
        _paragraph_exists,
    ),
    Checker(
        "paragraphs_between",
        "The number of paragraphs, separated by blank lines, lies between two bounds, both included.",
        paragraphs_between,
        {"least": count(2, 4), "most": count(3, 8)},
        {
            "ja": Wordings(
                (
                    "空行で区切った{least}個から{most}個の段落で書いてください。",
                    "段落の数は{least}以上{most}以下で、間に空行を入れます。",
                ),
                ("{least}〜{most}段落に分け、段落どうしを空行で離してください。",),
            ),
            "en": Wordings(
                (
                    "Write {least} to {most} paragraphs with blank lines between them.",
                    "Use at least {least} and at most {most} paragraphs, separated by blank lines.",
                ),
                ("Divide the answer by blank lines into no fewer than {least} and no more than {most} paragraphs.",),
            ),
        },
        _LEAST_MOST,
    ),
    Checker(
        "sections_between",
        "The number of sections, separated by a text, lies between two bounds, both included. \\n in the separator is a line break.",
        sections_between,
        {"least": count(2, 4), "most": count(3, 8), "separator": choice("----", "====", "\\n\\n", "#####")},
        {
            "ja": Wordings(
                (
                    "{separator}で区切った{least}個から{most}個の節で書いてください。",
                    "節の数を{least}以上{most}以下とし、{separator}で区切ってください。",
                ),
                ("{separator}を区切りに使い、{least}〜{most}個の部分に分けてください。",),
            ),
            "en": Wordings(
                (
                    "Write {least} to {most} sections, separated by {separator}.",
                    "Use {separator} between the sections. There must be {least} to {most} of them.",
                ),
                ("Split the answer with {separator} into at least {least} and at most {most} parts.",),
            ),
        },
        _LEAST_MOST,
    ),
    Checker(
        "line_breaks",
        "The text has an exact number of line breaks.",
        line_breaks,
        {"count": count(1, 8)},
        {
            "ja": Wordings(
                ("改行をちょうど{count}回使ってください。", "改行の数は{count}にしてください。"),
                ("回答に含まれる改行が全部で{count}個になるようにしてください。",),
            ),
            "en": Wordings(
                (
                    "Use exactly {count} line breaks.",
                    "Your answer must contain {count} line breaks, no more and no fewer.",
                ),
                ("Write the answer so that it has {count} newline characters in total.",),
            ),
        },
    ),
    Checker(
        "blank_lines",
        "The text has an exact number of blank lines.",
        blank_lines,
        {"count": count(1, 6)},
        {
            "ja": Wordings(
                ("空行をちょうど{count}行入れてください。", "回答の空行は{count}行とします。"),
                ("何も書かない行が全部で{count}行あるようにしてください。",),
            ),
            "en": Wordings(
                ("Use exactly {count} blank lines.", "Your answer must have {count} blank lines."),
                ("The answer should contain {count} empty lines in total.",),
            ),
        },
    ),
)
