"""The parameters that get adapters, and the shapes of their factors A [inputs, rank] and B [rank, outputs]."""

from __future__ import annotations

import dataclasses

import flax.traverse_util

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, declarations
from plamo2_jax.model import axes as axis_names
from plamo2_jax.model.low_rank import factor_axes
from plamo2_jax.pattern import PatternError, search_ends
from plamo2_jax.validation import shown

A, B = "lora_a", "lora_b"
"""Names of the factors in the tree, below the path of the adapted parameter."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The axes of a parameter, divided into inputs and outputs of a linear map."""

    names: axis_names.Axes
    inputs: tuple[int, ...]
    """Axes that are contracted with the input."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """All other axes except `layers`."""
        return tuple(i for i in range(self.stacked, len(self.names)) if i not in self.inputs)

    @property
    def stacked(self) -> bool:
        """Whether the first axis is `layers`."""
        return self.names[0] == axis_names.LAYERS

    @property
    def contracted(self) -> tuple[int, ...]:
        """`inputs` counted from the end."""
        return tuple(i - len(self.names) for i in self.inputs)

    def factors(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[tuple[int, ...], axis_names.Axes]]:
        """Return shape and axis names of A and B for a parameter of this shape."""
        lead = shape[: self.stacked]
        a, b = factor_axes(self.names, self.contracted)
        return {
            A: ((*lead, *(shape[i] for i in self.inputs), rank), a),
            B: ((*lead, rank, *(shape[i] for i in self.outputs)), b),
        }

    def product_spec(self) -> str:
        """Return the einsum specification of A and B whose result has the parameter's shape."""
        letters = "lhijkmnop"[: len(self.names)]
        lead = letters[: self.stacked]
        inputs, outputs = ("".join(letters[i] for i in some) for some in (self.inputs, self.outputs))
        return f"{lead}{inputs}r,{lead}r{outputs}->{letters}"


def find_splits(config: ModelConfig) -> dict[str, Split]:
    """Return all parameters that can have adapters, by path."""
    flat = flax.traverse_util.flatten_dict(declarations(Plamo2(config)), sep="/")
    return {
        path: Split(names, tuple(i for i, name in enumerate(names) if name in declared.contracts))
        for path, declared in flat.items()
        if axis_names.is_matrix(names := declared.names) and axis_names.VOCAB not in names
    }


def find_targets(config: ModelConfig, lora: LoraConfig) -> dict[str, Split]:
    """Return the parameters that get adapters, by path.

    Raises:
        PlamoError: a pattern of `LoraConfig.targets` matches no parameter, or cannot be matched in time.
    """
    public: dict[str, list[str]] = {}
    for tensor in public_tensors(config):
        for part in tensor.parts:
            public.setdefault(part.path, []).append(tensor.name)
    splits, descriptions = find_splits(config), []
    for path, split in splits.items():
        spelled = ",".join(name or "-" for name in split.names)
        descriptions.append(f"/{path} axes={spelled} {' '.join(public[path])}")
    try:
        ends = search_ends(lora.targets, descriptions)
    except PatternError as error:
        raise PlamoError(f"LoraConfig.targets: {error}") from error
    for pattern, found in zip(lora.targets, zip(*ends, strict=True), strict=True):
        if all(end is None for end in found):
            raise PlamoError(
                f"LoraConfig.targets={shown(lora.targets)} is not allowed: no matrix of the layers matches {shown(pattern)}"
            )
    return {
        path: split
        for (path, split), row in zip(splits.items(), ends, strict=True)
        if any(end is not None for end in row)
    }
