"""What is to be planned."""

from __future__ import annotations

import dataclasses
from typing import Literal

from plamo2_jax.train.config import PretrainConfig

Kind = Literal["train", "prefill", "decode"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One program of a run on a slice."""

    config: PretrainConfig
    topology: str
    """Such as v5p:4x4x4; of each slice if config.mesh.slices is more than one."""
    kind: Kind = "train"
    kernels: Literal["pallas", "xla"] = "pallas"
    rows: int = 8
    """Of every copy of the model, in prefill and decode."""
    context: int = 8192
    """Tokens of a prompt, or tokens in the cache of a decoding step."""
    gpus: int = 0
    """Instead of a slice: so many GPUs, of which only argument bytes are known."""


def not_counted(config: PretrainConfig) -> list[str]:
    """Return the fields of a run that ask for programs beside its train step, which no plan of the step counts."""
    samples = getattr(config, "samples", None)
    asked = {"heldout": config.heldout, "samples.prompts": samples and samples.prompts}
    return [name for name, value in asked.items() if value]
