"""LoraConfig: the size of low-rank adapters, and the matrices that have them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.pattern import PatternError, require_pattern
from plamo2_jax.public_config import is_integer, is_number
from plamo2_jax.validation import require

LARGEST_RANK = 2**16


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get adapters, and of what size.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    rank: int = 16
    """r, inner width of an adapter."""
    alpha: float = 32.0
    """Adapters are multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply by alpha / √rank instead (rsLoRA, arXiv:2312.03732)."""
    dropout: float = 0.0
    """Share of an adapter's input features that are left out in training, drawn anew for each token."""
    targets: tuple[str, ...] = ("/mixer/", "/mlp/")
    """Regular expressions; a matrix gets an adapter when one of them is found in its description, such as "run_0/layer_1/mixer/o_proj
    axes=layers,heads,head_dim,embed model.layers.layers.1.mixer.o_proj.weight". Norms, per-head scales, filters, embedding and
    lm_head have none."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the base's matrices in memory. bfloat16 halves them; the products are the same where activations are bfloat16."""

    def __post_init__(self) -> None:
        require(self, "rank", is_integer(self.rank) and 1 <= self.rank <= LARGEST_RANK, f"from 1 to {LARGEST_RANK:,}")
        require(self, "alpha", is_number(self.alpha) and self.alpha > 0, "positive and finite")
        require(self, "rank_stabilized", isinstance(self.rank_stabilized, bool), "true or false")
        require(self, "dropout", is_number(self.dropout) and 0 <= self.dropout < 1, "in [0, 1)")
        require(self, "base_dtype", self.base_dtype in ("float32", "bfloat16"), "float32 or bfloat16")
        listed = bool(self.targets) and all(isinstance(target, str) for target in self.targets)
        require(self, "targets", listed, "one or several regular expressions")
        for target in self.targets:
            try:
                require_pattern(target)
            except PatternError as error:
                raise PlamoError(f"LoraConfig.targets: {error}") from error

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
