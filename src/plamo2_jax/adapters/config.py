"""LoraConfig: size of the low-rank adapters, and the matrices that get them."""

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
    """Low-rank adapters (LoRA, arXiv:2106.09685). A field that is out of range raises PlamoError."""

    rank: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """Scale of the adapters: they are multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply by alpha / √rank instead (rsLoRA, arXiv:2312.03732)."""
    dropout: float = 0.0
    """Dropout rate of the adapters' inputs in training."""
    targets: tuple[str, ...] = ("/mixer/", "/mlp/")
    """Regular expressions. A matrix gets an adapter if one of them matches part of its description, such as "run_0/layer_1/mixer/o_proj
    axes=layers,heads,head_dim,embed model.layers.layers.1.mixer.o_proj.weight". Norms, per-head scales, convolutions, embedding and lm_head
    get none."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the frozen base matrices. bfloat16 halves their memory, and with bfloat16 activations the products are the same."""

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
        """Factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
