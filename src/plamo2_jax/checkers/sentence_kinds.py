"""Checkers of the sentences of a Japanese text: statements and questions, emoji, delimiters, words in one of them."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings, plain
from plamo2_jax.checkers.parameters import WORD, count
from plamo2_jax.checkers.sentences import marked_sentences

_EMOJI_END = re.compile("[\U0001f300-\U0001faff\u2700-\u27bf\U0001f1e6-\U0001f1ff]\ufe0f?$")


def _joined_sentences(text: str) -> list[str]:
    """Return the sentences. Marks in a row, such as ！？, end one sentence, and an emoji after a mark belongs to the sentence before it."""
    found: list[list[str]] = []
    for sentence in marked_sentences(text):
        if found and not any(c.isalnum() for c in sentence):
            found[-1].append(sentence)
        else:
            found.append([sentence])
    return ["".join(parts) for parts in found]


def emoji_endings(text: str) -> bool:
    return all(_EMOJI_END.search(sentence.rstrip("。．.!?！？ \t\n")) for sentence in _joined_sentences(text))


def balanced_sentences(text: str) -> bool:
    counts = {"?": 0, "!": 0, "": 0}
    for sentence in marked_sentences(text):
        counts[sentence[-1] if sentence[-1] in "?!" else ""] += 1
    return min(counts.values()) > 0 and max(counts.values()) - min(counts.values()) <= 1


def two_statements_a_question(text: str) -> bool:
    last = [sentence[-1] for sentence in marked_sentences(text)]
    questions = last.count("?")
    statements = sum(1 for mark in last if mark in "。.．")
    return questions > 0 and abs(statements / questions - 2) <= 0.2


def word_in_sentence(text: str, number: int, word: str) -> bool:
    sentences = marked_sentences(text)
    return len(sentences) >= number and word.lower() in sentences[number - 1].lower()


def sentence_delimiter(text: str, delimiter: str) -> bool:
    """Whether every sentence ends with a delimiter instead of a full stop."""
    text = text.strip()
    if not text.endswith(delimiter):
        return False
    parts = text.split(delimiter)[:-1]
    return all(part.strip() for part in parts) and len(_joined_sentences(text.replace(delimiter, "。"))) == len(parts)


CHECKERS = (
    plain(
        "emoji_endings",
        "Every sentence ends with an emoji, before or after its mark.",
        emoji_endings,
        ja=(
            "どの文の終わりにも絵文字を付けてください。",
            "文末に必ず絵文字を置いてください。",
            "一文ごとに絵文字で締めくくってください。",
        ),
        en=(
            "End every sentence with an emoji.",
            "Put an emoji at the end of each sentence.",
            "No sentence may end without an emoji.",
        ),
    ),
    plain(
        "balanced_sentences",
        "Statements, questions and exclamations all occur, and their numbers differ by at most one.",
        balanced_sentences,
        ja=(
            "平叙文、疑問文、感嘆文を同じ数だけ使ってください。",
            "「。」「？」「！」で終わる文の数をそろえてください。",
            "三種類の文（平叙・疑問・感嘆）がほぼ同数になるように書いてください。",
        ),
    ),
    plain(
        "two_statements_a_question",
        "There are two statements for each question.",
        two_statements_a_question,
        ja=(
            "平叙文と疑問文を2対1の割合で書いてください。",
            "疑問文一つにつき平叙文を二つ書いてください。",
            "「。」で終わる文が「？」で終わる文の二倍になるようにしてください。",
        ),
    ),
    Checker(
        "word_in_sentence",
        "A word occurs in the sentence of a number, in any case.",
        word_in_sentence,
        {"number": count(2, 7, least=1), "word": WORD},
        {
            "ja": Wordings(
                ("{number}番目の文に{word}を入れてください。", "{word}は{number}文目で使ってください。"),
                ("最初から数えて{number}つ目の文に{word}が出てくるようにしてください。",),
            ),
        },
    ),
    Checker(
        "sentence_delimiter",
        "Every sentence ends with a text that takes the place of 。.",
        sentence_delimiter,
        {
            "delimiter": Parameter(
                WORD.allowed, WORD.fits, lambda rng, language: rng.choice(("／", "◇", "(了)", "|||")), WORD.words
            )
        },
        {
            "ja": Wordings(
                ("句点の代わりに{delimiter}を使ってください。", "どの文も{delimiter}で終えてください。"),
                ("文と文の境目と文章の最後には、必ず{delimiter}を置いてください。",),
            ),
        },
    ),
)
