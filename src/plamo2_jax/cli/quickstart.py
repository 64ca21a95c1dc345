"""`plamo2 quickstart`: train a tiny model on the bundled text and talk to it."""

from __future__ import annotations

import sys
import time

from plamo2_jax.cli.arguments import call

QUESTIONS = ("表計算ドキュメントとは何ですか。", "What is a spreadsheet?")
"""Questions that the model answers if there is no terminal to chat in."""
_SAMPLING = ["--temperature", "0.5", "--max-new-tokens", "80"]


def quickstart(*, chat: bool = True) -> int:
    """Train a tiny Japanese and English model on the text that comes with the package, and open a chat with it.

    Writes a tokenizer, conversations and a model with 0.6 million parameters to runs/quickstart in the working folder. This takes about a
    minute on two CPU cores. If the model already exists, the command opens the chat without training. Without a terminal, it prints two
    answers of the model and the command for the chat.

    Args:
        chat: Open a chat at the end. Otherwise print two answers.
    """
    from plamo2_jax.cli.pipeline import pipeline
    from plamo2_jax.config_file import load_config
    from plamo2_jax.project.templates import TEMPLATES, config_folder

    begun = time.monotonic()
    status = pipeline(config_folder() / "pipeline_quickstart.py")
    if status:
        return status
    run = TEMPLATES["quickstart"].run
    steps = load_config(config_folder() / "quickstart.py").steps
    print(
        f"\n{run} is ready after {time.monotonic() - begun:.0f} s. After only {steps} steps, the quality is "
        "low: the model has learnt words and the form of answers, but hardly any facts.\nNext step: `plamo2 "
        "init my-model` writes a project folder to train on your own text.\n",
        file=sys.stderr,
    )
    if chat and sys.stdin.isatty() and sys.stdout.isatty():
        from plamo2_jax.cli import chat as chat_verb

        return chat_verb.main([run, *_SAMPLING])
    from plamo2_jax.cli import generate

    generate.main([run, *(word for question in QUESTIONS for word in ("--chat", question)), *_SAMPLING])
    print(f"Talk to the model: plamo2 chat {run} {' '.join(_SAMPLING)}")
    return 0


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""
    return call(quickstart, argv, "plamo2 quickstart")
