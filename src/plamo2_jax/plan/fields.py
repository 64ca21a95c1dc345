"""Which fields of a run decide its train step. A plan refuses a run that sets any other field that it does not know to be harmless."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plamo2_jax.train.config import PretrainConfig

PRICED = frozenset(
    {
        "model",
        "data.sequence_length",
        "data.batch_size",
        "steps",
        "optimizer",
        "schedule",
        "accumulation",
        "z_loss",
        "dtype",
        "mesh",
        "sharding",
        "remat",
        "loss_chunk",
        "neftune_alpha",
        "pairs.max_pairs",
        "preference",
        "reference_log_probs",
    }
)
"""Fields that `plan.program.train_program` compiles in. A name stands for all fields below it."""

FREE = frozenset(
    {
        # Where things lie, what they are called, and how often the loop looks up from its steps.
        "name",
        "output",
        "tokenizer",
        "init_from",
        "fork",
        "fork_data",
        "reference",
        "checkpoint_every",
        "keep",
        "evaluate_every",
        "log_every",
        "stall_seconds",
        # Which tokens and random numbers come, not how many.
        "seed",
        "data.mixture",
        "data.seed",
        "data.packing_bins",
        "data.long_document_tokens",
        "data.long_document_repeats",
        "data.shuffle",
        "data.prefetch_batches",
        "data.read_threads",
        "data.worker_processes",
        "chat",
        "pairs.template",
        "pairs.truncate",
        "pairs.max_bad_rate",
        # Decisions of the host between two steps.
        "max_skipped",
        "spike",
        # Programs beside the train step: see `not_counted`.
        "heldout",
        "samples",
    }
)
"""Fields that leave the train step as it is."""


def refuse_unpriced(config: PretrainConfig) -> None:
    """Refuse a run whose train step is not the one that a plan compiles.

    Raises:
        ValueError: a field that is neither in PRICED nor in FREE has another value than its default.
    """
    for name, value, default in unpriced(config):
        if value != default:
            shown = f"={value!r}" if isinstance(value, int | float | str) else ""
            raise ValueError(
                f"{name}{shown} is not allowed in a plan, which counts neither its memory nor its time: it must be {default!r}. "
                f"Plan the run without {name}"
            )


def unpriced(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields of a configuration that a plan knows nothing of, as (dotted name, value, default)."""
    known = PRICED | FREE
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if name in known:
            continue
        if any(other.startswith(f"{name}.") for other in known):
            yield from unpriced(value, f"{name}.")
            continue
        made = field.default_factory is not dataclasses.MISSING
        yield name, value, field.default_factory() if made else field.default


def not_counted(config: PretrainConfig) -> list[str]:
    """What a run computes beside its train step, by the fields that ask for it."""
    samples = getattr(config, "samples", None)
    asked = {"heldout": config.heldout, "samples.prompts": samples and samples.prompts}
    return [name for name, value in asked.items() if value]
