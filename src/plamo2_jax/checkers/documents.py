"""Checkers of answers that cut, change or sort a document. Positions count from 0, and the last position is included."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Wordings
from plamo2_jax.checkers.parameters import PROMPT, choice, count, ordered, text
from plamo2_jax.checkers.sentences import japanese_sentences

_NUMBER = re.compile(r"-?\d{1,18}")
ORDERS = {
    "dictionary": None,
    "length": len,
    "sum of numbers": lambda sentence: sum(int(number) for number in _NUMBER.findall(sentence)),
}
_ORDER_WORDS = {
    "ja": {"dictionary": "辞書順", "length": "短い順", "sum of numbers": "含まれる数の和の小さい順"},
    "en": {"dictionary": "dictionary order", "length": "order of length", "sum of numbers": "order of the sum of their numbers"},
}  # fmt: skip


def _trimmed(document: str) -> str:
    return document.rstrip("\r\n")


def _as_list(parts: list[str]) -> str:
    return "[\n" + ",\n".join(parts) + "\n]"


def document_start(text: str, document: str, length: int) -> bool:
    return _trimmed(document)[:length] in text


def document_end(text: str, document: str, length: int) -> bool:
    return _trimmed(document)[-length:] in text


def document_range(text: str, document: str, start: int, end: int) -> bool:
    return _trimmed(document)[start : end + 1] in text


def document_replaced(text: str, document: str, start: int, end: int, replacement: str) -> bool:
    document = _trimmed(document)
    return document[:start] + replacement + document[end + 1 :] in text


def document_split(text: str, document: str, parts: int) -> bool:
    document = _trimmed(document)
    size = max(1, -(-len(document) // parts))
    return _as_list([document[start : start + size] for start in range(0, len(document), size)]) in text


def document_sorted(text: str, document: str, order: str) -> bool:
    sentences = [sentence.strip() for sentence in japanese_sentences(_trimmed(document)) if sentence.strip()]
    return _as_list(sorted(sentences, key=ORDERS[order])) in text


_REPLACEMENT = text(("###", "＊＊＊", "（略）"), ("###", "***", "(cut)"))
_ORDER = choice(*ORDERS)
_ORDER = type(_ORDER)(_ORDER.allowed, _ORDER.fits, _ORDER.draw, lambda value, language: _ORDER_WORDS[language][value])
_RANGE = ordered("start", "end")

CHECKERS = (
    Checker(
        "document_start",
        "The text contains the first characters of a document.",
        document_start,
        {"document": PROMPT, "length": count(3, 8, least=1)},
        {
            "ja": Wordings(
                (
                    "{document}の最初の{length}文字を入れてください。",
                    "次の文の先頭{length}文字を書き写してください: {document}",
                ),
                ("{document}の頭から{length}文字を回答に含めてください。",),
            ),
            "en": Wordings(
                (
                    "Include the first {length} characters of {document}.",
                    "Copy {length} characters from the beginning of {document}.",
                ),
                ("The opening {length} characters of {document} must occur.",),
            ),
        },
    ),
    Checker(
        "document_end",
        "The text contains the last characters of a document.",
        document_end,
        {"document": PROMPT, "length": count(3, 8, least=1)},
        {
            "ja": Wordings(
                (
                    "{document}の最後の{length}文字を入れてください。",
                    "次の文の末尾{length}文字を書き写してください: {document}",
                ),
                ("{document}の終わりの{length}文字を回答に含めてください。",),
            ),
            "en": Wordings(
                (
                    "Include the last {length} characters of {document}.",
                    "Copy {length} characters from the end of {document}.",
                ),
                ("The closing {length} characters of {document} must occur.",),
            ),
        },
    ),
    Checker(
        "document_range",
        "The text contains the characters of a document between two positions.",
        document_range,
        {"document": PROMPT, "start": count(0, 3), "end": count(4, 8)},
        {
            "ja": Wordings(
                (
                    "{document}の{start}文字目から{end}文字目まで（先頭は0）を入れてください。",
                    "0から数えて{start}〜{end}番目の文字を書き写してください: {document}",
                ),
                ("先頭を0として、{document}の{start}番目から{end}番目までの文字列を含めてください。",),
            ),
            "en": Wordings(
                (
                    "Include characters {start} to {end} of {document}, counted from 0.",
                    "Copy positions {start} to {end} (the first is 0) of {document}.",
                ),
                ("The part of {document} from index {start} to index {end} must occur.",),
            ),
        },
        _RANGE,
    ),
    Checker(
        "document_replaced",
        "The text contains a document in which the characters between two positions are replaced.",
        document_replaced,
        {"document": PROMPT, "start": count(0, 3), "end": count(4, 8), "replacement": _REPLACEMENT},
        {
            "ja": Wordings(
                (
                    "{document}の{start}〜{end}文字目（先頭は0）を{replacement}に替えて、全文を書いてください。",
                    "次の文の0から数えて{start}番目から{end}番目を{replacement}に置き換えてください: {document}",
                ),
                ("{document}全体を書き、位置{start}から{end}まで（0起点）だけ{replacement}にしてください。",),
            ),
            "en": Wordings(
                (
                    "Write {document} with characters {start} to {end}, counted from 0, replaced by {replacement}.",
                    "Put {replacement} in place of positions {start} to {end} (the first is 0) of {document}.",
                ),
                ("Reproduce {document}, but with {replacement} from index {start} to index {end}.",),
            ),
        },
        _RANGE,
    ),
    Checker(
        "document_split",
        "The text contains a document cut into equal parts, as a list in square brackets with one part a line.",
        document_split,
        {"document": PROMPT, "parts": count(2, 4, least=1)},
        {
            "ja": Wordings(
                (
                    "{document}を同じ長さの{parts}個に分け、角括弧の中に一行ずつ、コンマで区切って並べてください。",
                    "次の文を{parts}等分した一覧を[ ]の中に書いてください: {document}",
                ),
                ("{parts}つに等しく切った{document}を、[ と ] の間に一行一つで示してください。",),
            ),
            "en": Wordings(
                (
                    "Cut {document} into {parts} equal parts, listed in square brackets, one a line, with commas.",
                    "List {parts} equal pieces of {document} between [ and ].",
                ),
                ("Show {document} as {parts} pieces of equal length, a line each, in square brackets.",),
            ),
        },
    ),
    Checker(
        "document_sorted",
        "The text contains the sentences of a document in an order, as a list in square brackets with one sentence a line.",
        document_sorted,
        {"document": PROMPT, "order": _ORDER},
        {
            "ja": Wordings(
                (
                    "{document}の文を{order}に並べ、角括弧の中に一行ずつ、コンマで区切って書いてください。",
                    "次の文章を文に分け、{order}の一覧を[ ]の中に書いてください: {document}",
                ),
                ("{order}に並べ替えた{document}の各文を、[ と ] の間に一行一文で示してください。",),
            ),
            "en": Wordings(
                (
                    "List the sentences of {document} in {order}, in square brackets, one a line, with commas.",
                    "Sort the sentences of {document} in {order} between [ and ].",
                ),
                ("Show the sentences of {document} in {order}, a line each, in square brackets.",),
            ),
        },
    ),
)
