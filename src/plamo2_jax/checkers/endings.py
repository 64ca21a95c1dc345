"""Checkers of how Japanese sentences end: です・ます, plain forms, nouns (体言止め)."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings, plain
from plamo2_jax.checkers.parameters import WORD, count
from plamo2_jax.checkers.sentences import japanese_sentences
from plamo2_jax.checkers.words_ja import ends_with_noun

_END = re.compile("[。！？]")
_POLITE = re.compile(
    "(?:です|ます|でした|ました|ません|ませんでした|でしょう|ましょう|ください|下さい)(?:[かねよ]|よね|が|けど)?$"
)
_ENDINGS = ("です", "ます", "ました", "だ", "である")


def _unquoted(text: str) -> str:
    """Return a text without what each line has from 「 to the next 」, and from 『 to the next 』."""
    for opening, closing in ("「」", "『』"):
        text = "\n".join(_without(line, opening, closing) for line in text.split("\n"))
    return text


def _without(line: str, opening: str, closing: str) -> str:
    # On a line without a closing mark, a regular expression would search for one again at each opening mark.
    kept, position = [], 0
    while (start := line.find(opening, position)) >= 0 and (end := line.find(closing, start + 1)) >= 0:
        kept.append(line[position:start])
        position = end + 1
    return "".join(kept) + line[position:]


def _bodies(text: str) -> list[str]:
    """Return the sentences without quotes and end marks."""
    found = (sentence.rstrip("。!?").strip() for sentence in japanese_sentences(_unquoted(text)))
    return [sentence for sentence in found if sentence]


def sentence_endings(text: str, ending: str) -> bool:
    return all(sentence.endswith(ending) for sentence in _END.split(_unquoted(text)) if sentence)


def noun_endings(text: str, count: int) -> bool:
    pieces = _END.split(_unquoted(text))
    return sum(1 for piece in pieces[:-1] if ends_with_noun(piece)) >= count


def noun_endings_only(text: str) -> bool:
    bodies = _bodies(text)
    return bool(bodies) and all(ends_with_noun(body) for body in bodies)


def polite_endings(text: str) -> bool:
    bodies = _bodies(text)
    return bool(bodies) and all(_POLITE.search(body[-20:]) for body in bodies)


def plain_endings(text: str) -> bool:
    bodies = _bodies(text)
    return bool(bodies) and not any(_POLITE.search(body[-20:]) for body in bodies)


CHECKERS = (
    Checker(
        "sentence_endings",
        "Every sentence ends with a text. Quotes in 「」 and 『』 do not count; a line break does not end a sentence.",
        sentence_endings,
        {"ending": Parameter(WORD.allowed, WORD.fits, lambda rng, language: rng.choice(_ENDINGS), WORD.words)},
        {
            "ja": Wordings(
                ("どの文も{ending}で終えてください。", "文末はすべて{ending}に統一してください。"),
                ("すべての文の終わりが{ending}になるように書いてください。",),
            ),
        },
    ),
    Checker(
        "noun_endings",
        "At least a number of sentences end with a noun before 。, ！ or ？ (体言止め).",
        noun_endings,
        {"count": count(1, 5)},
        {
            "ja": Wordings(
                ("体言止めの文を{count}つ以上入れてください。", "少なくとも{count}文は名詞で終えてください。"),
                ("名詞で止める文を{count}回以上用いてください。",),
            ),
        },
    ),
    plain(
        "noun_endings_only",
        "Every sentence ends with a noun (体言止め).",
        noun_endings_only,
        ja=(
            "すべての文を体言止めにしてください。",
            "どの文も名詞で終えてください。",
            "文末が名詞以外にならないように書いてください。",
        ),
    ),
    plain(
        "polite_endings",
        "Every sentence ends in the polite style (です・ます).",
        polite_endings,
        ja=(
            "です・ます調で書いてください。",
            "文体は敬体とします。",
            "すべての文を丁寧な「です」「ます」の形で終えること。",
        ),
    ),
    plain(
        "plain_endings",
        "No sentence ends in the polite style.",
        plain_endings,
        ja=(
            "だ・である調で書いてください。",
            "文体は常体とします。",
            "「です」「ます」を使わず、普通体の文末にそろえること。",
        ),
    ),
)
