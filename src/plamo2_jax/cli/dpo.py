"""`plamo2 dpo CONFIG.py [--field value ...]`: train a model on pairs of answers, or on single ones with a label."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plamo2_jax.align.preferences import DpoConfig
    from plamo2_jax.train.loop import TrainResult
    from plamo2_jax.train.task import TaskContext, TrainTask

DESCRIPTION = """Train a model on pairs of answers, one of which is preferred, or on single answers, liked or disliked, or go on doing it.

usage: plamo2 dpo CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = DpoConfig(...)`, a PretrainConfig whose data.mixture and heldout name records of
{"prompt", "chosen", "rejected"} or {"prompt", "completion", "label"} (true or false) as JSON lines, Parquet or ArrayRecord, and whose
init_from is a run folder or a folder of the public layout. docs/post_training.md lists all forms that are read. Bad records are left out
and counted; above --pairs.max-bad-rate of them the run ends. --preference.losses takes one or several of the family of DPO, added up by
--preference.weights; with single answers they must be such as kto and bco, which count each answer by itself. Any field below can be
replaced on the command line.

The reference runs beside the policy; with --reference-log-probs FOLDER what it says of the pairs is computed once and kept there. With
--lora it is the model without the adapters. The run, its exit status and how it is resumed are those of plamo2 pretrain."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status."""
    from plamo2_jax.cli.pretrain import train
    from plamo2_jax.cli.sft import write_adapter

    def hooks(config: DpoConfig) -> dict[str, Any]:
        from plamo2_jax.align.preferences import PairSource, preference_task
        from plamo2_jax.align.samples import sample_writer

        def prepare_and_make(config: DpoConfig, context: TaskContext) -> TrainTask:
            # Here and not before: now the run's folder is locked, and nobody else prepares the same.
            if config.reference_log_probs is not None:
                prepare(config)
            return preference_task(config, context)

        return {
            "make_task": prepare_and_make,
            "make_source": PairSource,
            "on_evaluate": sample_writer(config, config.pairs.template),
        }

    def report(config: DpoConfig, outcome: TrainResult) -> None:
        for name, heldout in outcome.heldout.items():
            print(f"held-out {name}: {in_words(heldout.metrics)}")
        write_adapter(config)

    return train("dpo", argv, example, DESCRIPTION, "configs/dpo.py", hooks, report)


def in_words(figures: Mapping[str, float]) -> str:
    """The chief figures of a measurement: accuracy and margin of its pairs; rewards of its answers where some are single."""
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


def prepare(config: DpoConfig) -> None:
    """Write the reference's log-probabilities, unless they are there.

    Raises:
        ValueError: the folder is occupied by something else, or several processes would have to write it.
    """
    import jax
    import jax.numpy as jnp

    from plamo2_jax.align.preferences import read_elements
    from plamo2_jax.align.reference import MANIFEST, write_reference
    from plamo2_jax.model.plamo2 import Plamo2
    from plamo2_jax.tokenizer.chat_template import ChatTemplate
    from plamo2_jax.tokenizer.tokenizer import Tokenizer
    from plamo2_jax.train.trainable import load_params

    folder = config.reference_log_probs
    if (folder / MANIFEST).is_file():
        return
    if jax.process_count() > 1:
        raise ValueError(f"{folder} holds no log-probabilities yet; write them with a job of one process first")
    print(f"writing the reference's log-probabilities to {folder}", file=sys.stderr)
    tokenizer, template = Tokenizer.load(config.tokenizer), ChatTemplate.load(config.pairs.template)
    paths = [*(item.path for item in config.data.mixture), *config.heldout.values()]
    parts = [read_elements(path, config, template, tokenizer) for path in dict.fromkeys(paths)]
    model = Plamo2(config.model, dtype=jnp.dtype(config.dtype), remat=config.remat)
    params = load_params(config.reference_folder, config.model, None)
    rows = max(1, config.data.batch_size // config.accumulation)
    write_reference(
        folder, model, params, tokenizer.fingerprint, parts, config.data.sequence_length, rows, config.loss_chunk
    )


def example() -> DpoConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.align.preferences import DpoConfig
    from plamo2_jax.config import preset
    from plamo2_jax.data.pipeline import DataConfig, MixtureItem

    return DpoConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path("pairs.jsonl")),), sequence_length=256, batch_size=16),
        steps=1000,
        init_from=Path("runs/sft"),
    )
