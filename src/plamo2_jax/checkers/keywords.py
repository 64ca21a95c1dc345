"""Checkers of words and letters that a text has or lacks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plamo2_jax.checkers.checker import Checker, Parameter, Wordings
from plamo2_jax.checkers.parameters import RELATION, WORD, WORDS, compare, count, texts
from plamo2_jax.checkers.words_ja import count_word

_PERSON_NAMES = ("太郎", "花子", "次郎", "さくら", "健太", "美咲", "直樹", "香織", "拓海", "結衣", "遥", "翼")


def words_en(text: str, words: Sequence[str]) -> bool:
    lowered = text.lower()
    return all(word.lower() in lowered for word in words)


def word_frequency_en(text: str, word: str, relation: str, count: int) -> bool:
    return compare(text.lower().count(word.lower()), relation, count)


def forbidden_words_en(text: str, words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


def words_ja(text: str, words: Sequence[str], never: Sequence[str] = ()) -> bool:
    return all(word not in never and count_word(text, word) > 0 for word in words)


def word_frequency_ja(text: str, word: str, relation: str, count: int, never: Sequence[str] = ()) -> bool:
    return compare(0 if word in never else count_word(text, word), relation, count)


def forbidden_words_ja(text: str, words: Sequence[str]) -> bool:
    return all(count_word(text, word) == 0 for word in words)


def letter_frequency(text: str, letter: str, relation: str, count: int) -> bool:
    lowered, letter = text.lower(), letter.lower()
    found = lowered.count(letter)
    if "ぁ" <= letter <= "ん":  # Katakana counts as the same letter.
        found += lowered.count(chr(ord(letter) + 96))
    return compare(found, relation, count)


def excluded_texts(text: str, texts: Sequence[str]) -> bool:
    return not any(excluded in text for excluded in texts)


def exact_counts(text: str, counts: dict[str, int]) -> bool:
    return all(text.count(word) == number for word, number in counts.items())


def kinds_of(text: str, texts: Sequence[str], least: int) -> bool:
    lowered = text.lower()
    return sum(1 for wanted in set(texts) if wanted.lower() in lowered) >= least


def starts_with(text: str, start: str) -> bool:
    return text.startswith(start)


def ends_with(text: str, end: str) -> bool:
    return text.endswith(end)


def ends_with_phrase(text: str, phrase: str) -> bool:
    return text.strip().strip('"」』').lower().endswith(phrase.strip().strip('"」』').lower())


def contains_marks(text: str, marks: Sequence[str]) -> bool:
    return all(mark in text for mark in marks)


def _is_letter(value) -> bool:
    return isinstance(value, str) and len(value) == 1 and not value.isspace()


def _is_counts(value) -> bool:
    return (
        isinstance(value, dict)
        and 1 <= len(value) <= 100
        and all(isinstance(word, str) and word.strip() and len(word) <= 1000 for word in value)
        and all(
            isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 10_000
            for number in value.values()
        )
    )


_LETTER = Parameter(
    "one character that is not white space",
    _is_letter,
    lambda rng, language: rng.choice(
        "あいうえおかきくけこさしたとなにのまもらりるん" if language == "ja" else "abcdefghilmnoprstuwy"
    ),
    lambda value, language: f"「{value}」" if language == "ja" else value,
)
_COUNTS = Parameter(
    'an object of texts and whole numbers, such as {"東京": 2}',
    _is_counts,
    lambda rng, language: {word: rng.randint(1, 4) for word in WORDS.draw(rng, language)},
    lambda value, language: (
        "、".join(f"「{word}」{number}回" for word, number in value.items())
        if language == "ja"
        else ", ".join(f'"{word}" {number} times' for word, number in value.items())
    ),
)
_START = ("結論から言うと、", "はじめに", "<開始>", "# 回答")
_END = ("以上です。", "<終了>", "（おわり）", "お試しください。")
_NAMES = Parameter(
    WORDS.allowed,
    WORDS.fits,
    lambda rng, language: rng.sample(
        _PERSON_NAMES if language == "ja" else ("Alice", "Bob", "Carol", "Dave", "Erin", "Frank"), 5
    ),
    WORDS.words,
)
_MARKS = Parameter(
    WORDS.allowed,
    WORDS.fits,
    lambda rng, language: rng.sample(
        ("！", "？", "：", "；", "（", "…") if language == "ja" else ("!", "?", ":", ";", "(", "..."), 3
    ),
    WORDS.words,
)
_NEVER = texts(optional=True)

CHECKERS = (
    Checker(
        "words_en",
        "The text has every word of a list, in any case, also inside other words.",
        words_en,
        {"words": WORDS},
        {
            "en": Wordings(
                ("Use these words: {words}.", "Your answer must contain {words}."),
                ("Make sure that each of the following appears in the answer: {words}.",),
            ),
        },
    ),
    Checker(
        "word_frequency_en",
        "A word occurs at least, or less than, a number of times, in any case, also inside other words.",
        word_frequency_en,
        {"word": WORD, "relation": RELATION, "count": count(1, 5)},
        {
            "en": Wordings(
                (
                    "Use the word {word} {relation} {count} times.",
                    "The word {word} must occur {relation} {count} times.",
                ),
                ("Let {word} appear in the answer {relation} {count} times.",),
            ),
        },
    ),
    Checker(
        "forbidden_words_en",
        "The text has no word of a list, in any case.",
        forbidden_words_en,
        {"words": WORDS},
        {
            "en": Wordings(
                ("Do not use these words: {words}.", "Avoid {words} in your answer."),
                ("The answer must be free of the following: {words}.",),
            ),
        },
    ),
    Checker(
        "words_ja",
        "The text has every word of a list, as a word. `never`: words that count as absent.",
        words_ja,
        {"words": WORDS, "never": _NEVER},
        {
            "ja": Wordings(
                ("次の言葉を使ってください: {words}。", "{words}という語を必ず入れてください。"),
                ("回答のどこかに{words}がすべて出てくるようにしてください。",),
            ),
        },
    ),
    Checker(
        "word_frequency_ja",
        "A word occurs at least, or less than, a number of times, as a word. `never`: words that count as absent.",
        word_frequency_ja,
        {"word": WORD, "relation": RELATION, "count": count(1, 5), "never": _NEVER},
        {
            "ja": Wordings(
                (
                    "{word}という言葉を{count}回{relation}使ってください。",
                    "{word}の出現回数は{count}回{relation}とします。",
                ),
                ("回答に{word}が{count}回{relation}出てくるように書いてください。",),
            ),
        },
    ),
    Checker(
        "forbidden_words_ja",
        "The text has no word of a list.",
        forbidden_words_ja,
        {"words": WORDS},
        {
            "ja": Wordings(
                ("次の言葉は使わないでください: {words}。", "{words}という語を避けて書いてください。"),
                ("回答に{words}が出てこないようにしてください。",),
            ),
        },
    ),
    Checker(
        "letter_frequency",
        "A letter occurs at least, or less than, a number of times. Case does not matter, and katakana counts as hiragana.",
        letter_frequency,
        {"letter": _LETTER, "relation": RELATION, "count": count(1, 20)},
        {
            "ja": Wordings(
                (
                    "文字{letter}を{count}回{relation}使ってください。",
                    "{letter}という文字の数は{count}個{relation}とします。",
                ),
                ("回答に{letter}の字が{count}回{relation}現れるようにしてください。",),
            ),
            "en": Wordings(
                (
                    "Use the letter {letter} {relation} {count} times.",
                    "The letter {letter} must occur {relation} {count} times.",
                ),
                ("Write so that {letter} appears as a letter {relation} {count} times.",),
            ),
        },
    ),
    Checker(
        "excluded_texts",
        "The text has no text of a list, not even inside words.",
        excluded_texts,
        {"texts": WORDS},
        {
            "ja": Wordings(
                ("{texts}の文字列を一切含めないでください。", "禁止語: {texts}。他の語の一部としても使えません。"),
                ("どの位置にも{texts}が現れない回答にしてください。",),
            ),
            "en": Wordings(
                ("Do not write {texts} anywhere, not even inside other words.", "The strings {texts} are forbidden."),
                ("None of {texts} may occur at any place in the answer.",),
            ),
        },
    ),
    Checker(
        "exact_counts",
        "Each text of a list occurs an exact number of times.",
        exact_counts,
        {"counts": _COUNTS},
        {
            "ja": Wordings(
                ("次の語を指定の回数だけ使ってください: {counts}。", "使う回数を守ってください: {counts}。"),
                ("回答全体での出現回数がちょうど{counts}になるように書いてください。",),
            ),
            "en": Wordings(
                (
                    "Use these words exactly as often as stated: {counts}.",
                    "The answer must contain {counts}, no more and no fewer.",
                ),
                ("Write so that the exact numbers of occurrences are: {counts}.",),
            ),
        },
    ),
    Checker(
        "kinds_of",
        "At least a number of different texts of a list occur, in any case.",
        kinds_of,
        {"texts": _NAMES, "least": count(2, 4)},
        {
            "ja": Wordings(
                (
                    "次のうち{least}種類以上を使ってください: {texts}。",
                    "{texts}の中から少なくとも{least}つを登場させてください。",
                ),
                ("候補は{texts}です。異なるものが{least}個以上出てくるように書いてください。",),
            ),
            "en": Wordings(
                ("Use {least} or more of these: {texts}.", "Mention at least {least} different ones out of {texts}."),
                ("From the list {texts}, no fewer than {least} must appear.",),
            ),
        },
    ),
    Checker(
        "contains_marks",
        "Each punctuation mark of a list occurs.",
        contains_marks,
        {"marks": _MARKS},
        {
            "ja": Wordings(
                ("次の記号をそれぞれ1回以上使ってください: {marks}。", "{marks}をすべて含めてください。"),
                ("記号{marks}のどれもが少なくとも一度は現れるようにしてください。",),
            ),
            "en": Wordings(
                ("Use each of these marks at least once: {marks}.", "Include all of {marks}."),
                ("Every mark of the list {marks} has to occur in the answer.",),
            ),
        },
    ),
    Checker(
        "starts_with",
        "The text starts with a text.",
        starts_with,
        {
            "start": Parameter(
                WORD.allowed,
                WORD.fits,
                lambda rng, language: rng.choice(_START if language == "ja" else ("In short, ", "<begin>", "# Answer")),
                WORD.words,
            )
        },
        {
            "ja": Wordings(
                ("{start}から書き始めてください。", "回答の先頭は{start}としてください。"),
                ("何より先に{start}と書いてください。",),
            ),
            "en": Wordings(
                ("Start with {start}.", "The first characters of your answer must be {start}."),
                ("Let the answer begin with exactly {start}.",),
            ),
        },
    ),
    Checker(
        "ends_with",
        "The text ends with a text, with nothing after it.",
        ends_with,
        {
            "end": Parameter(
                WORD.allowed,
                WORD.fits,
                lambda rng, language: rng.choice(_END if language == "ja" else ("<end>", "(The end)", "END")),
                WORD.words,
            )
        },
        {
            "ja": Wordings(
                ("{end}で終えてください。", "回答の末尾は{end}としてください。"),
                ("一番最後に{end}と書き、その後には何も書かないでください。",),
            ),
            "en": Wordings(
                ("End with {end}.", "The last characters of your answer must be {end}."),
                ("Let the answer stop right after {end}.",),
            ),
        },
    ),
    Checker(
        "ends_with_phrase",
        "The text ends with a phrase. Case, white space and quotation marks at the end do not matter.",
        ends_with_phrase,
        {
            "phrase": Parameter(
                WORD.allowed,
                WORD.fits,
                lambda rng, language: rng.choice(
                    ("以上で説明を終わります。", "ご質問はありますか？")
                    if language == "ja"
                    else ("Let me know what you think.", "Is there anything else?")
                ),
                WORD.words,
            )
        },
        {
            "ja": Wordings(
                ("最後の一文は{phrase}にしてください。", "{phrase}という言葉で締めくくってください。"),
                ("回答の結びとして{phrase}をそのまま置いてください。",),
            ),
            "en": Wordings(
                ("Close with the phrase {phrase}", "The final words must be {phrase}"),
                ("Finish the response with the exact sentence {phrase}",),
            ),
        },
    ),
)
