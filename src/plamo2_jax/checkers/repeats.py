"""Checkers of answers that repeat a prompt or themselves."""

from __future__ import annotations

from plamo2_jax.checkers.checker import Checker, Wordings, plain
from plamo2_jax.checkers.parameters import FLAG, PHRASE, PROMPT, count


def two_responses(text: str) -> bool:
    parts = text.split("******")
    filled = [part.strip() for part in parts if part.strip()]
    return len(filled) == 2 and all(part.strip() for part in parts[1:-1]) and filled[0] != filled[1]


def repeat_prompt(text: str, prompt: str, ignore_case: bool = False) -> bool:
    text, prompt = text.strip(), prompt.strip()
    return text.lower().startswith(prompt.lower()) if ignore_case else text.startswith(prompt)


def exact_text(text: str, wanted: str) -> bool:
    return text.strip() == wanted.strip()


def copies(text: str, document: str, times: int) -> bool:
    # Copies without a gap are `times` matches in a row: no text of document * times is built.
    document = document.rstrip("\r\n")
    length, start, run, expected = len(document), text.find(document), 0, -1
    while start >= 0:
        run = run + 1 if start == expected else 1
        if run == times:
            return True
        expected = start + length
        start = expected if text.startswith(document, expected) else text.find(document, start + 1)
    return False


CHECKERS = (
    plain(
        "two_responses",
        "Two different answers are separated by ******.",
        two_responses,
        ja=(
            "異なる答えを二つ書き、******で区切ってください。",
            "二通りの回答を示し、間に******を入れてください。",
            "内容の違う二つの答えを、アスタリスク六つで隔てて並べてください。",
        ),
        en=(
            "Give two different answers, separated by ******.",
            "Write two versions with ****** between them.",
            "Offer a pair of distinct responses divided by six asterisks.",
        ),
    ),
    Checker(
        "repeat_prompt",
        "The text starts with a prompt. `ignore_case`: upper and lower case count as equal.",
        repeat_prompt,
        {"prompt": PROMPT, "ignore_case": FLAG},
        {
            "ja": Wordings(
                (
                    "まず{prompt}とそのまま書き、次に答えてください。",
                    "答えの前に{prompt}を一字一句変えずに繰り返してください。",
                ),
                ("最初に質問文{prompt}を写し、その続きとして回答を書いてください。",),
            ),
            "en": Wordings(
                ("First write {prompt} unchanged, then answer.", "Repeat {prompt} word for word before your answer."),
                ("Begin by copying the request {prompt} and continue with the reply.",),
            ),
        },
    ),
    Checker(
        "exact_text",
        "The text is exactly a text, apart from white space around it.",
        exact_text,
        {"wanted": PHRASE},
        {
            "ja": Wordings(
                ("{wanted}とだけ書いてください。", "答えは{wanted}のみとし、ほかには何も書かないでください。"),
                ("ほかの要求にかかわらず、{wanted}だけを出力してください。",),
            ),
            "en": Wordings(
                ("Write only {wanted}", "Your answer is {wanted} and nothing else."),
                ("Regardless of anything else, output exactly {wanted}",),
            ),
        },
    ),
    Checker(
        "copies",
        "A document occurs a number of times in a row, without anything between.",
        copies,
        {"document": PROMPT, "times": count(2, 4, least=1, most=1000)},
        {
            "ja": Wordings(
                (
                    "{document}を{times}回続けて書いてください。",
                    "次の文を間を空けずに{times}回繰り返してください: {document}",
                ),
                ("{document}を{times}回つなげた文字列を入れてください。",),
            ),
            "en": Wordings(
                ("Write {document} {times} times in a row.", "Repeat this {times} times without a gap: {document}"),
                ("Include {document}, joined {times} times.",),
            ),
        },
    ),
)
