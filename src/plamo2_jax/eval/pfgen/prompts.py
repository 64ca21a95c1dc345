"""The prompts and seeds of pfgen-bench, the same as in pfgen.py of the benchmark."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

Mode = Literal["completion", "qa", "chat"]
MODES = get_args(Mode)
EXAMPLES = 20
"""Number of examples in a prompt of the leaderboard."""
_INSTRUCTIONS = {
    "completion": "",
    "qa": "例と同様の文体及び文字数で、質問に1行で答えてください。\n\n",
    "chat": "例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n",
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt. In the mode chat it has a system message."""

    system: str | None
    user: str


def make_prompt(
    question: str, examples: Sequence[tuple[str, str]], mode: Mode, trial: int, shots: int, seed: str
) -> Prompt:
    """Return the prompt of a question.

    Args:
        question: the question.
        examples: questions with their example answers. The question itself is omitted.
        mode: "completion" for base models; "qa" for one user message; "chat" for a system message and a user message.
        trial: number of the trial, from 1. It selects the examples.
        shots: number of examples.
        seed: seed of the selection; "" on the leaderboard.
    """
    others = [example for example in examples if example[0] != question]
    others.sort(key=lambda example: _sha1(f"{seed}::{trial}::{example[0]}"))
    blocks = "\n\n".join(f"Q: {asked}\nA: {answer}" for asked, answer in others[:shots])
    beginning = (_INSTRUCTIONS[mode] + "## 回答例\n" + blocks).strip()
    asked = f"Q: {question}"
    if mode == "chat":
        return Prompt(beginning, asked)
    if mode == "qa":
        return Prompt(None, f"{beginning}\n\n## 質問\n{asked}")
    return Prompt(None, f"{beginning}\n\n{asked}\nA:")


def trial_seed(trial: int, seed: str, attempt: int = 1) -> int:
    """Return the random seed of a trial, from 0 to 2^31 - 1. The benchmark uses the seed of the first attempt."""
    text = f"{seed}::{trial}" if attempt == 1 else f"{seed}::{trial}::{attempt}"
    return int(_sha1(text), 16) % 2**31


def cut_answer(text: str, mode: Mode) -> str:
    """Return the answer in a generated text. In the modes qa and chat, it is the text after the first "A:"."""
    if mode != "completion" and "A:" in text:
        text = text.split("A:", 1)[1]
    return text.strip()


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
