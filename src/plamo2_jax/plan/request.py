"""The description of a program to plan."""

from __future__ import annotations

import dataclasses
from typing import Literal

from plamo2_jax.train.config import RunConfig

Kind = Literal["train", "prefill", "decode"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One program of a run on a slice."""

    config: RunConfig
    topology: str
    """Name of the slice, such as v5p:4x4x4. If config.mesh.slices is more than one, each of the slices has this shape."""
    kind: Kind = "train"
    kernels: Literal["pallas", "xla"] = "pallas"
    rows: int = 8
    """Rows per copy of the model, in prefill and decode."""
    context: int = 8192
    """Tokens of a prompt, or tokens in the cache of a decoding step."""
    gpus: int = 0
    """Number of GPUs instead of a slice. Only the bytes of their arguments can be planned."""


def not_counted(config: RunConfig) -> list[str]:
    """Return the fields of a run that ask for programs other than the train step. A plan of the step does not count these."""
    asked = {
        "heldout": config.heldout,
        "samples.prompts": config.task.asks_for_samples,
        "evaluation.tasks": config.evaluation.tasks,
    }
    return [name for name, value in asked.items() if value]
