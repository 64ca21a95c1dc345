"""`plamo2 sft CONFIG.py [--field value ...]`: fine-tune a model on conversations."""

from __future__ import annotations

from pathlib import Path

from plamo2_jax.align.sft import Sft
from plamo2_jax.cli import pretrain
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Fine-tune a model on conversations, or resume its training.

usage: plamo2 sft CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = RunConfig(..., task=Sft(...))`. Its data.mixture and heldout name conversations as JSON
lines, Parquet or ArrayRecord (each a file, a folder or a pattern); its init_from is a run folder or a folder in Hugging Face format.
docs/post_training.md lists all forms of a record: messages, ShareGPT, Alpaca, prompt and completion, and others. Bad records are skipped
and counted; a larger share than --chat.max-bad-rate is an error. The loss covers only the assistant's tokens. At every evaluation the model
answers the messages of --samples.prompts and writes the answers to samples.jsonl. Any field below can be replaced on the command line.

Exit status and resuming are as in plamo2 pretrain. The run folder also has chat_template.jinja. With --lora.rank the checkpoints hold
adapters, which are also written to OUTPUT/NAME/adapter in PEFT's layout at the end; plamo2 lora merges them into a model."""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""

    def report(config: RunConfig, result: TrainResult) -> None:
        for name, heldout in result.heldout.items():
            print(f"held-out {name}: {heldout.loss:.4f} nats per token, {heldout.bits_per_byte:.4f} bits per byte")
        write_adapter(config)

    return pretrain.run("sft", argv, example(), (Sft,), DESCRIPTION, "configs/sft.py", report)


def write_adapter(config: RunConfig) -> None:
    """Write the adapters of a complete run in PEFT's layout, if it trained adapters."""
    import jax

    if config.task.lora is not None and jax.process_index() == 0:
        from plamo2_jax.adapters.peft import write_run_adapter

        print(write_run_adapter(config.folder))


def example() -> RunConfig:
    """Return the values that the help shows if no config file is given."""
    return pretrain.example(Sft(), "conversations.jsonl", Path("runs/demo"))
