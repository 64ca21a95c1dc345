"""ModelConfig: the shape of a PLaMo 2 model, the published presets, and derived quantities.

Fields have the names of the public config.json. The sizes of the presets are public (model cards, configs and file sizes of
pfnet/plamo-2-*), except for `plamo-2-31b`, which is a proposal of this project.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Mapping
from typing import Any

from plamo2_jax import public_config
from plamo2_jax.errors import PlamoError
from plamo2_jax.public_config import LONGEST, is_integer, is_number
from plamo2_jax.validation import require, shown


class LayerKind(enum.Enum):
    """Kind of the layer's token mixer."""

    MAMBA = "mamba"
    WINDOW = "window"  # attention over attention_window_size past tokens and the token itself
    FULL = "full"  # attention over all past tokens


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Consecutive equal periods of the layer stack, executed as one scan.

    Layer `start + i * len(kinds) + j` of the model is position `j` of period `i`.
    """

    start: int
    kinds: tuple[LayerKind, ...]
    count: int

    def layer_index(self, period: int, position: int) -> int:
        """Return the layer number of a position of a period."""
        return self.start + period * len(self.kinds) + position


# Smallest and largest value of every size. They bound the memory that a config can request before its weights are checked.
_SIZES = {
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 1024),
    "intermediate_size": (1, 2**22),
    "num_attention_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "hidden_size_per_head": (2, 2**14),
    "mamba_num_heads": (1, 2**16),
    "mamba_d_state": (1, 2**16),
    "mamba_d_conv": (2, 2**8),
    "mamba_step": (2, 2**30),
    "mamba_chunk_size": (1, 2**30),
    "attention_window_size": (1, LONGEST),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (1, LONGEST),
}
_NUMBERS = {
    "rope_theta": (1.0, 1e12),
    "rope_local_theta": (1.0, 1e12),
    "rms_norm_eps": (1e-30, 1.0),
    "initializer_range": (1e-30, 1e3),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a PLaMo 2 model. The defaults equal the defaults of the public configuration class.

    Raises:
        PlamoError: A field is out of range. The message names the field, its value and what is allowed.
    """

    hidden_size: int = 4096
    """Width of the residual stream (hidden size)."""
    num_hidden_layers: int = 32
    """Number of layers, including Mamba and attention layers."""
    intermediate_size: int = 13312
    """Width of the gated MLP."""
    num_attention_heads: int = 32
    """Number of query heads of an attention layer."""
    num_key_value_heads: int = 4
    """Number of key/value heads (grouped-query attention). It must divide num_attention_heads."""
    hidden_size_per_head: int = 128
    """Size of a head, in attention and Mamba layers."""
    mamba_num_heads: int = 64
    """Number of heads of a Mamba layer."""
    mamba_d_state: int = 64
    """State size of the scan per channel."""
    mamba_d_conv: int = 4
    """Kernel size of the depthwise causal convolution."""
    mamba_step: int = 2
    """Period of the layer pattern: layer i is attention where i mod step == step // 2."""
    mamba_chunk_size: int = 256
    """Chunk length of the scan in published checkpoints. Results do not depend on it."""
    mamba_enabled: bool = True
    """Use Mamba layers. Use Mamba layers. If false, every layer is an attention layer."""
    attention_window_size: int = 2048
    """Number of past tokens that a windowed attention layer attends to, in addition to the token itself."""
    full_attention_idx: tuple[int, ...] = ()
    """Indices of the attention layers with full attention."""
    rope_theta: float = 10000.0
    """RoPE base of the layers in full_attention_idx."""
    rope_local_theta: float | None = None
    """RoPE base of windowed layers; None: rope_theta."""
    vocab_size: int = 32000
    """Number of rows of the embedding."""
    tie_word_embeddings: bool = True
    """Use the embedding matrix also as the output head."""
    rms_norm_eps: float = 1e-6
    """Epsilon of the block norms and of the B/C/dt norms."""
    max_position_embeddings: int = 10485760
    """Kept from the public config.json. RoPE itself has no limit."""
    initializer_range: float = 0.02
    """Standard deviation of linear and embedding weights at initialization."""
    bos_token_id: int | None = 1
    """Id of the token at the beginning of a document."""
    eos_token_id: int | tuple[int, ...] | None = 2
    """Id of the token at the end of a document. With several ids, generation stops at each of them."""
    pad_token_id: int | None = None
    """Id of the padding token."""

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _SIZES.items():
            value = getattr(self, name)
            allowed = "a positive integer" if smallest == 1 else f"an integer of at least {smallest}"
            require(self, name, is_integer(value) and smallest <= value <= largest, f"{allowed}, at most {largest:,}")
        require(
            self,
            "hidden_size_per_head",
            self.hidden_size_per_head % 2 == 0,
            "even, because RoPE rotates pairs of channels",
        )
        heads = self.num_attention_heads
        allowed = f"a divisor of num_attention_heads={heads}"
        require(self, "num_key_value_heads", heads % self.num_key_value_heads == 0, allowed)
        for name, (smallest, largest) in _NUMBERS.items():
            value, optional = getattr(self, name), name == "rope_local_theta"
            allowed = f"a positive number from {smallest:g} to {largest:g}{' or none' if optional else ''}"
            fits = is_number(value) and smallest <= value <= largest
            require(self, name, fits or (value is None and optional), allowed)
        for name in ("mamba_enabled", "tie_word_embeddings"):
            require(self, name, isinstance(getattr(self, name), bool), "true or false")
        self._check_full_attention()
        self._check_ids()

    def _check_full_attention(self) -> None:
        layers = self.full_attention_idx
        listed = isinstance(layers, tuple | list) and all(map(is_integer, layers))
        require(self, "full_attention_idx", listed, "a list of layer numbers")
        attention = [i for i in range(self.num_hidden_layers) if not self._is_mamba(i)]
        allowed = f"a subset of the attention layers {shown(attention)}"
        require(self, "full_attention_idx", set(attention).issuperset(layers), allowed)
        require(self, "full_attention_idx", len(set(layers)) == len(layers), "without repeats")
        object.__setattr__(self, "full_attention_idx", tuple(sorted(layers)))

    def _check_ids(self) -> None:
        if isinstance(self.eos_token_id, list | tuple):
            require(self, "eos_token_id", 0 < len(self.eos_token_id) <= 64, "an id or a list of 1 to 64 ids")
            if all(map(is_integer, self.eos_token_id)):
                ids = tuple(dict.fromkeys(self.eos_token_id))
                object.__setattr__(self, "eos_token_id", ids if len(ids) > 1 else ids[0])
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = self.eos_token_ids if name == "eos_token_id" else (value,)
            allowed = f"none or an id below vocab_size={self.vocab_size}"
            require(
                self, name, value is None or all(is_integer(id) and 0 <= id < self.vocab_size for id in ids), allowed
            )

    def _is_mamba(self, layer: int) -> bool:
        if not self.mamba_enabled:
            return False
        if self.num_hidden_layers <= self.mamba_step // 2:
            return layer != self.num_hidden_layers - 1
        return layer % self.mamba_step != self.mamba_step // 2

    @property
    def dt_rank(self) -> int:
        """Rank of the projection for dt."""
        return max(64, self.hidden_size // 16)

    @property
    def local_theta(self) -> float:
        """RoPE base of windowed layers."""
        return self.rope_theta if self.rope_local_theta is None else self.rope_local_theta

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a document."""
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, tuple | list) else (ids,)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, in order."""
        full = frozenset(self.full_attention_idx)
        return tuple(
            LayerKind.MAMBA if self._is_mamba(i) else LayerKind.FULL if i in full else LayerKind.WINDOW
            for i in range(self.num_hidden_layers)
        )

    @property
    def period(self) -> int:
        """Number of layers in a period of the layer pattern."""
        return self.mamba_step if self.mamba_enabled else 1

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """The layer stack as groups of equal periods; a shorter last period is a separate group."""
        kinds, step, start = self.layer_kinds, self.period, 0
        groups: list[LayerGroup] = []
        for period, equal in itertools.groupby(kinds[i : i + step] for i in range(0, len(kinds), step)):
            groups.append(LayerGroup(start, period, len(list(equal))))
            start += groups[-1].count * step
        return tuple(groups)

    def _matrix_parameters(self) -> dict[LayerKind, int]:
        """Return the number of matrix weights of a layer of each kind, including the MLP."""
        e, p = self.hidden_size, self.hidden_size_per_head
        inner = self.mamba_num_heads * p
        mamba = 3 * e * inner + inner * (2 * self.mamba_d_state + self.dt_rank) + self.dt_rank * self.mamba_num_heads
        attention = 2 * e * p * (self.num_attention_heads + self.num_key_value_heads)
        mlp = 3 * e * self.intermediate_size
        return {kind: mlp + (mamba if kind is LayerKind.MAMBA else attention) for kind in LayerKind}

    def parameter_count(self) -> int:
        """Return the number of parameters of a checkpoint of this shape."""
        e, p, h, n = self.hidden_size, self.hidden_size_per_head, self.mamba_num_heads, self.mamba_d_state
        mamba = h * p * self.mamba_d_conv + 3 * h + 2 * n + self.dt_rank
        attention = p * (self.num_attention_heads + self.num_key_value_heads)
        norms, matrices = 4 * e, self._matrix_parameters()
        layers = sum(
            matrices[kind] + norms + (mamba if kind is LayerKind.MAMBA else attention) for kind in self.layer_kinds
        )
        embeddings = self.vocab_size * e * (1 if self.tie_word_embeddings else 2)
        return embeddings + layers + e

    def flops_per_token(self, sequence_length: int) -> float:
        """Return the forward FLOPs per token, averaged over one document of `sequence_length` tokens. Training takes three times as many.

        A multiply-add is 2 FLOPs. The count includes matrix products, attention scores and values over the visible keys, the scan as a
        recurrence (decay, update and output of h·p·n states: 5 h p n) and the convolution. It leaves out norms and activations.
        """
        t = sequence_length
        w = min(self.attention_window_size, t - 1)
        # Query i sees min(i, W) past keys and itself.
        keys = {LayerKind.FULL: (t + 1) / 2, LayerKind.WINDOW: 1 + w - w * (w + 1) / (2 * t)}
        inner = self.mamba_num_heads * self.hidden_size_per_head
        mixing = {kind: 4 * self.num_attention_heads * self.hidden_size_per_head * seen for kind, seen in keys.items()}
        mixing[LayerKind.MAMBA] = inner * (5 * self.mamba_d_state + 2 * self.mamba_d_conv)
        matrices = self._matrix_parameters()
        layers = sum(2 * matrices[kind] + mixing[kind] for kind in self.layer_kinds)
        return layers + 2 * self.vocab_size * self.hidden_size

    @classmethod
    def from_hf(cls, json: Mapping[str, Any]) -> ModelConfig:
        """Read a public config.json with the keys of the published models, of transformers 5 or of vLLM.

        Raises:
            PlamoError: A value is out of range, two keys contradict each other, or a key requests something this model does not compute.
        """
        config = cls(**public_config.model_fields(json, {field.name for field in dataclasses.fields(cls)}))
        full = public_config.full_layers(json, [kind.value for kind in config.layer_kinds])
        return config if full is None else dataclasses.replace(config, full_attention_idx=full)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def to_hf(self) -> dict[str, Any]:
        """Return the public config.json of this model as a JSON object.

        Besides the keys of the published models it has keys that other programs need: `sliding_window` counts the token itself, as in
        vLLM, or is null if no layer has a window; `layers_block_type`, `head_dim` and `rope_parameters` are read by vLLM. The object has
        no `layer_types`, because vLLM drops the window of models with other entries than "sliding_attention".
        """
        values = self.to_json()
        if self.rope_local_theta is None:
            del values["rope_local_theta"]  # Readers fall back to rope_theta.
        kinds = self.layer_kinds
        return {
            "architectures": ["Plamo2ForCausalLM"],
            "model_type": "plamo2",
            "head_dim": self.hidden_size_per_head,
            "layers_block_type": ["mamba" if kind is LayerKind.MAMBA else "attention" for kind in kinds],
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "sliding_window": self.attention_window_size + 1 if LayerKind.WINDOW in kinds else None,
            **values,
        }


_1B = ModelConfig(
    hidden_size=2048,
    num_hidden_layers=16,
    intermediate_size=8192,
    num_attention_heads=16,
    num_key_value_heads=1,
    mamba_num_heads=32,
    vocab_size=100000,
)
_8B = ModelConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    intermediate_size=16384,
    num_attention_heads=32,
    num_key_value_heads=4,
    mamba_num_heads=64,
    vocab_size=100000,
)
# Full attention at 32K is published as a window of 32768, which hides no key within the context.
_8B_32K = dataclasses.replace(_8B, vocab_size=100032, attention_window_size=32768, rope_theta=1e6)

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size_per_head=32,
        mamba_num_heads=8,
        mamba_d_state=16,
        attention_window_size=64,
        vocab_size=4096,
    ),
    "plamo-2-1b": _1B,
    "plamo-2-8b": _8B,
    "plamo-2-translate": dataclasses.replace(_8B_32K, tie_word_embeddings=False, eos_token_id=1, pad_token_id=3),
    "plamo-2.1-2b": dataclasses.replace(_8B_32K, hidden_size=2048, intermediate_size=5632),
    "plamo-2.1-8b": _8B_32K,
    # A proposal, since the 31B has no public config. It has the 32 layers of the 8B with twice the residual width and twice the heads.
    # So 8B weights can be cloned into it (every axis except `mlp` is an integer multiple), and an 8B can be pruned from it in width only,
    # as the public 2B was from the 8B. The MLP width is a multiple of 1024 (tensor parallelism of 8 with 128 lanes).
    "plamo-2-31b": dataclasses.replace(
        _8B,
        hidden_size=8192,
        intermediate_size=26 * 1024,
        num_attention_heads=64,
        num_key_value_heads=8,
        mamba_num_heads=128,
        vocab_size=100032,
    ),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """Return a preset by name, with fields replaced.

    Raises:
        PlamoError: There is no such preset, or a changed field is out of range.
    """
    if name not in PRESETS:
        raise PlamoError(f"unknown preset {name!r}: it must be one of {', '.join(PRESETS)}")
    if unknown := changes.keys() - {field.name for field in dataclasses.fields(ModelConfig)}:
        raise PlamoError(f"ModelConfig has no field {min(unknown)!r}")
    return dataclasses.replace(PRESETS[name], **changes)
