"""`plamo2 sft CONFIG.py [--field value ...]`: fine-tune a model on conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plamo2_jax.align.sft import SftConfig
    from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Fine-tune a model on conversations, or go on doing it.

usage: plamo2 sft CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = SftConfig(...)`, a PretrainConfig whose data.mixture and heldout name conversations as JSON
lines, Parquet or ArrayRecord (a file, a folder or a pattern each) and whose init_from is a run folder or a folder of the public layout.
docs/post_training.md lists the forms that are read: messages, ShareGPT, Alpaca, prompt and completion, and others. Bad records are left
out and counted; above --chat.max-bad-rate of them the run ends. Only what the assistant says is trained on. --samples.prompts TEXT TEXT
... are answered at every evaluation, into samples.jsonl. Any field below can be replaced on the command line.

The run, its exit status and how it is resumed are those of plamo2 pretrain; chat_template.jinja lies in its folder too. With --lora the
checkpoints hold adapters, which are also written to OUTPUT/NAME/adapter in PEFT's layout at the end: plamo2 lora adds them to a model."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status."""
    from plamo2_jax.cli.pretrain import train

    def hooks(config: SftConfig) -> dict[str, Any]:
        from plamo2_jax.align.samples import sample_writer
        from plamo2_jax.align.sft import ChatSource, sft_task

        return {
            "make_task": sft_task,
            "make_source": ChatSource,
            "on_evaluate": sample_writer(config, config.chat.template),
        }

    def report(config: SftConfig, outcome: TrainResult) -> None:
        for name, heldout in outcome.heldout.items():
            print(f"held-out {name}: {heldout.loss:.4f} nats per token, {heldout.bits_per_byte:.4f} bits per byte")
        write_adapter(config)

    return train("sft", argv, example, DESCRIPTION, "configs/sft.py", hooks, report)


def write_adapter(config: Any) -> None:
    """The adapters of a run that is complete in PEFT's layout, where it trained some."""
    import jax

    if config.lora is not None and jax.process_index() == 0:
        from plamo2_jax.adapters.peft import write_run_adapter

        print(write_run_adapter(config.folder))


def example() -> SftConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.align.sft import SftConfig
    from plamo2_jax.config import preset
    from plamo2_jax.data.pipeline import DataConfig, MixtureItem

    return SftConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path("conversations.jsonl")),), sequence_length=256, batch_size=16),
        steps=1000,
    )
