"""Answers for the comparison with JFBench: answers that follow a constraint, changed answers, and answers to other constraints."""

from __future__ import annotations

import ast
import itertools
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.data.corpus import documents

PER_CONSTRAINT = 400
"""Most answers to a constraint. At most half of them are answers to other constraints and plain text."""
EDGES = (
    "",
    " ",
    "\n",
    "\r\n",
    "　",
    "。",
    "、",
    ".",
    "-",
    "1",
    "１",
    "一",
    "a",
    "A",
    "あ",
    "ア",
    "猫",
    "\ufeff猫",
    "猫\x00",
    "😀",
    "e\u0301",
    "ﾊﾟ",
)
_WIDE = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)} | {" ": "　"})
_SENTENCE = "猫は庭で静かに眠っています。"


def changed(text: str, rng: random.Random) -> Iterator[str]:
    """Yield changed versions of an answer."""
    yield from (
        text + "\n",
        "\n" + text,
        text + " ",
        "  " + text,
        text.strip(),
        text.replace("\n", "\r\n"),
        text.replace("\n", "\n\n"),
    )
    yield from (unicodedata.normalize("NFKC", text), text.translate(_WIDE), unicodedata.normalize("NFD", text))
    yield from (
        f"はい、こちらです。\n\n{text}",
        f"{text}\n\n以上です。",
        f"```\n{text}\n```",
        f"> {text}",
        f"**{text}**",
        f"- {text}",
    )
    yield from (
        text.replace("。", "．").replace("、", "，"),
        text.replace("。", ""),
        text.upper(),
        text.lower(),
        text + text,
        text + "。",
    )
    if text:
        place = rng.randrange(len(text))
        yield from (
            text[:place] + text[place + 1 :],
            text[:place] + rng.choice("、。.,1Ａ漢\n　") + text[place:],
            text[: place + 1],
        )
        lines = text.split("\n")
        rng.shuffle(lines)
        yield "\n".join(lines)


def literals(checkout: Path) -> dict[str, list[str]]:
    """Return the string literals of each file of JFBench's tests of constraints, by its text."""
    found = {}
    for path in sorted((checkout / "tests" / "constraints_tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        nodes = (
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        found[source] = list(dict.fromkeys(node.value for node in nodes if len(node.value) < 4000))
    return found


def sentences(count: int) -> list[str]:
    """Return Japanese and English lines of the bundled corpus."""
    found: list[str] = []
    for language in ("ja", "en"):
        lines = (
            line
            for document in documents(language, "heldout")
            for line in document["text"].split("\n")
            if len(line) > 20
        )
        found += [line for line, _ in zip(lines, range(count), strict=False)]
    return found


def examples(number: int, parameters: dict[str, Any], document: str) -> list[str]:
    """Return answers that are near the bounds of a constraint with parameters."""
    made: dict[int, Callable[[], Sequence[str]]] = {
        14: lambda: ["日本" + "東京" * n + "です。" for n in (9, 10, 11)],
        15: lambda: ["*_* 猫\n*_* 犬", "*_*猫\n*_* 犬", " *_* 猫\n\n*_* 犬", "*_* 猫\n犬"],
        41: lambda: ["親\n    子\n        孫", "親\n  子", "\t子", "親\n     子", "    子"],
        46: lambda: [
            f"猫{mark}犬{mark}".replace("\\n", end)
            for mark in ("(これは文末です)", "。", "(これは文末です)\\n")
            for end in ("\n", "\r\n")
        ],
        47: lambda: [
            unit * n for unit in ("猫", "a", "猫\n", "　") for n in (49, 50, 99, 100, 101, 150, 199, 200, 201)
        ],
        48: lambda: [
            sep.join(["段落です。"] * n)
            for sep in ("\n\n", "\n", "\n \n", "\n\n\n", "\r\n\r\n")
            for n in (6, 7, 8, 10, 11)
        ],
        49: lambda: [
            sep.join(["節です。"] * n) for sep in ("\n\n", "\n", "\n \n", "\n\n\n") for n in (9, 10, 11, 12, 13)
        ],
        50: lambda: [
            end.join(["猫です"] * n) + end
            for end in ("。", "！", "？", "。\n", ". ", "．", "\n", "。」")
            for n in (2, 3, 4, 5)
        ],
        52: lambda: [end.join("猫犬鳥魚虫"[:n]) for end in ("\n", "\r\n", "\n\n", "\r") for n in (2, 3, 4, 5)],
        53: lambda: [
            end.join("猫犬鳥魚虫"[:n]) for end in ("\n\n", "\n \n", "\r\n\r\n", "\n\n\n") for n in (2, 3, 4, 5)
        ],
        64: lambda: [
            "値は1.23456です。",
            "１．２３４５６",
            "1.2345",
            "1.234567 と 0.00000",
            "1,234.56789",
            "v1.2.34567",
            "-0.12345%",
            "1.23456e5",
        ],
        77: lambda: ["1.25", "値は1.25と0.10です。", "1.2", "1.255", "１．２５", "10", "1,234.50円", "1.25.3", "0.00%"],
        66: lambda: [
            "1,234",
            "1,234,567円",
            "1234",
            "12,34",
            "123",
            "１，２３４",
            "1,234.5678",
            "0,123",
            "2024年1月",
            "1,2345",
            "999と1,000",
        ],
        82: lambda: ["00012", "00012と12345", "123456", "12", "０００１２", "00012.5", "-00012", "A00012B"],
        94: lambda: [
            "そして猫。しかし犬。だから鳥。さらに魚。",
            "そして、しかし、だから",
            "また、また、また、また",
            "したがってすると つまりなお",
        ],
        95: lambda: [sep.join(map(str, range(n))) for sep in (" ", "、", ".", ",", "-", "個") for n in (12, 13, 14)],
        96: lambda: ["、".join(parameters["texts"][:n]) for n in (9, 10, 11)] + ["太郎" * 10],
        98: lambda: ["。、；：？！？！（）", "。、；：？！（）", "。、;:?!?!()", "。、；：？！‽（）"],
        103: lambda: (
            [f"私の回答{c} 猫\n私の結論{c} 犬\n今後の展望{c} 鳥" for c in (":", "：", " ", "")]
            + ["私の回答: 猫 私の結論: 犬 今後の展望: 鳥"]
        ),
        104: lambda: [
            "".join(a for a, _ in use) + "猫" + "".join(b for _, b in use[::-1])
            for use in (
                ["()"] * 5,
                ["[]"] * 4,
                ["()", "[]", "{}", "()", "[]"],
                ["（）", "「」", "『』", "【】", "（）"],
                ["()"] * 6,
            )
        ],
        106: lambda: ["「『「猫」』」", '"\'"猫"\'"', "「『猫』」", "“‘“猫”’”", "「「「猫」」」", '『「"猫"」』'],
        115: lambda: [parameters["wanted"]],
        118: lambda: [
            "。".join(["猫です"] * n + [f"{word}です"] + ["犬です"] * 3) + "。"
            for n in (5, 6, 7)
            for word in ("AI", "ＡＩ", "ai", "AIM")
        ],
    }
    same = {58: 64, 63: 77, 56: 15, 57: 47, 61: 41, 62: 46}
    found = list(made.get(same.get(number, number), list)())
    if number in (59, 83):
        found += ["<これは文頭です>" + gap + _SENTENCE for gap in ("", " ", "\n")] + [
            "＜これは文頭です＞猫",
            " <これは文頭です>猫",
        ]
    if number == 84:
        found += [_SENTENCE + gap + "<これは文末です>" for gap in ("", " ", "\n")] + [
            "猫＜これは文末です＞",
            "猫<これは文末です>。",
        ]
    return found + (_of_document(document) if document else [])


def _of_document(document: str) -> list[str]:
    """Return copies, parts, orders and replacements of a document."""
    found = [gap.join([document] * n) for n in (1, 2, 3) for gap in ("", "\n", " ", "\n\n")]
    for n in range(1, 6):
        found += [document[:n], document[-n:], document[n:], document[1 : n + 1], document[: n + 1]]
        found += [document[:s] + "###" + document[e:] for s in (0, 1, 2) for e in (n, n + 1)]
        size = -(-len(document) // n)
        cut = [document[i : i + size] for i in range(0, len(document), size)]
        even, more = divmod(len(document), n)
        places = [i * even + min(i, more) for i in range(n + 1)]
        found += [
            gap.join(parts)
            for parts in (cut, [document[a:b] for a, b in itertools.pairwise(places)])
            for gap in ("\n", "\n\n", " ", ",")
        ]
    for pattern in (r"(?<=[。．.!?！？])", r"\n", r"(?<=[。．.!?！？\n])"):
        parts = [part.strip() for part in re.split(pattern, document) if part.strip()]
        for key in (None, len, lambda part: sum(map(int, re.findall(r"\d+", part)))):
            for back in (False, True):
                found += [gap.join(sorted(parts, key=key, reverse=back)) for gap in ("", "\n", " ")]
    return found
