"""`plamo2 dpo CONFIG.py [--field value ...]`: train a model on pairs of answers, or on single answers with a label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plamo2_jax.align.preferences import Dpo
from plamo2_jax.cli import pretrain
from plamo2_jax.cli.sft import write_adapter
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Train a model on preference data, or resume its training.

A record is a chosen and a rejected answer, or one answer with a label.

usage: plamo2 dpo CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = RunConfig(..., task=Dpo(...))`. Its data.mixture and heldout name records of {"prompt",
"chosen", "rejected"} or {"prompt", "completion", "label"} (true or false) as JSON lines, Parquet or ArrayRecord; its init_from is a run
folder or a folder in Hugging Face format. docs/post_training.md lists all forms of a record. Bad records are skipped and counted; a larger
share than --pairs.max-bad-rate is an error. --preference.losses takes one or several losses of the DPO family, which are added with
--preference.weights. Single answers need a loss for unpaired answers, such as kto or bco. Any field below can be replaced on the command
line.

The reference model runs together with the policy. With --reference-log-probs FOLDER, its log-probabilities are computed once and stored in
FOLDER. With --lora.rank, the reference is the model without the adapters. Exit status and resuming are as in plamo2 pretrain."""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""

    def report(config: RunConfig, result: TrainResult) -> None:
        for name, heldout in result.heldout.items():
            print(f"held-out {name}: {in_words(heldout.metrics)}")
        write_adapter(config)

    return pretrain.run("dpo", argv, example(), (Dpo,), DESCRIPTION, "configs/dpo.py", report)


def in_words(figures: Mapping[str, float]) -> str:
    """Return the main metrics of an evaluation: accuracy and margin of the pairs, and rewards of single answers if there are any."""
    words, pairs = f"loss {figures['loss']:.4f}", figures["pairs"]
    if pairs:
        words += (
            f", {figures['reward_accuracy']:.1%} of {pairs:,.0f} pairs right, margin {figures['reward_margin']:.4f}"
        )
    counts = {side: figures[f"count_{side}"] for side in ("chosen", "rejected")}
    if sum(counts.values()) > 2 * pairs:
        for side, count in counts.items():
            words += f", reward {figures[f'reward_{side}']:.4f} of {count:,.0f} {side} answers" if count else ""
    return words


def example() -> RunConfig:
    """Return the values that the help shows if no config file is given."""
    return pretrain.example(Dpo(), "pairs.jsonl", Path("runs/sft"))
