"""`plamo2 sft CONFIG.py [--field value ...]`: fine-tune a model on conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plamo2_jax.train.config import RunConfig
    from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Fine-tune a model on conversations, or resume a run.

usage: plamo2 sft CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = RunConfig(..., task=Sft(...))`. Its data.mixture and heldout name conversations as JSON
lines, Parquet or ArrayRecord (a file, a folder or a pattern each); its init_from is a run folder or a folder of the public layout.
docs/post_training.md lists all forms of a record: messages, ShareGPT, Alpaca, prompt and completion, and others. Bad records are left
out and counted; more than --chat.max-bad-rate of them end the run. Only what the assistant says is trained on. At every evaluation the
model answers --samples.prompts TEXT TEXT ..., into samples.jsonl. Any field below can be replaced on the command line.

Exit status and resuming are as in plamo2 pretrain. The run folder holds chat_template.jinja too. With --lora.rank the checkpoints hold
adapters, which are also written to OUTPUT/NAME/adapter in PEFT's layout at the end; plamo2 lora adds them to a model."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status."""
    from plamo2_jax.align.sft import Sft
    from plamo2_jax.cli.pretrain import run

    def report(config: RunConfig, result: TrainResult) -> None:
        for name, heldout in result.heldout.items():
            print(f"held-out {name}: {heldout.loss:.4f} nats per token, {heldout.bits_per_byte:.4f} bits per byte")
        write_adapter(config)

    return run("sft", argv, example(), (Sft,), DESCRIPTION, "configs/sft.py", report)


def write_adapter(config: RunConfig) -> None:
    """Write the adapters of a complete run in PEFT's layout, if it trained some."""
    import jax

    if config.task.lora is not None and jax.process_index() == 0:
        from plamo2_jax.adapters.peft import write_run_adapter

        print(write_run_adapter(config.folder))


def example() -> RunConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.align.sft import Sft
    from plamo2_jax.config import preset
    from plamo2_jax.data.pipeline import DataConfig, MixtureItem
    from plamo2_jax.train.config import RunConfig

    return RunConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path("conversations.jsonl")),), sequence_length=256, batch_size=16),
        steps=1000,
        init_from=Path("runs/demo"),
        task=Sft(),
    )
