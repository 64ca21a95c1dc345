"""The models that are compared: a hybrid, and models of attention layers alone that match it in parameters or in training FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from plamo2_jax.config import ModelConfig

COMPARISONS = ("parameters", "flops")
KINDS = ("hybrid", "full attention", "window")
# The width of the MLP is a multiple of this.
MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model of a comparison."""

    kind: str
    """One of KINDS."""
    comparison: str | None
    """What it has in common with the hybrid; None: it is the hybrid."""
    model: ModelConfig

    @property
    def name(self) -> str:
        """Name of the model in files. Arms of both comparisons may have the same model."""
        return f"{self.kind.replace(' ', '-')}-mlp{self.model.intermediate_size}"


def arms(hybrid: ModelConfig, length: int, comparisons: Sequence[str] = COMPARISONS) -> list[Arm]:
    """Return the hybrid and the models that are compared with it.

    The others have the width, depth, head size and window of the hybrid, and attention in every layer. Their MLPs have the width at which
    the number of parameters, or the training FLOPs per token, equal those of the hybrid.

    Args:
        hybrid: the hybrid.
        length: tokens of a training row.
        comparisons: some of COMPARISONS.
    """
    measures: dict[str, Callable[[ModelConfig], float]] = {
        "parameters": ModelConfig.parameter_count,
        "flops": lambda config: config.flops_per_token(length),
    }
    found = [Arm("hybrid", None, hybrid)]
    for comparison in comparisons:
        for kind in KINDS[1:]:
            layers = tuple(range(hybrid.num_hidden_layers)) if kind == "full attention" else ()
            attention = dataclasses.replace(hybrid, mamba_enabled=False, full_attention_idx=layers)
            found.append(Arm(kind, comparison, match(attention, hybrid, measures[comparison])))
    return found


def match(config: ModelConfig, target: ModelConfig, measure: Callable[[ModelConfig], float]) -> ModelConfig:
    """Return the config with the MLP width whose measure is nearest to that of the target. The measure must be linear in the width.

    Raises:
        ValueError: The MLP would have no width.
    """
    with_width = [measure(dataclasses.replace(config, intermediate_size=width)) for width in (MULTIPLE, 2 * MULTIPLE)]
    units = 1 + round((measure(target) - with_width[0]) / (with_width[1] - with_width[0]))
    if units < 1:
        raise ValueError("the mixers alone have more parameters or FLOPs than the target")
    return dataclasses.replace(config, intermediate_size=units * MULTIPLE)
