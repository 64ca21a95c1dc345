"""The configuration class: reads the public config.json and what this project's `plamo2 convert to-hf` writes.

Keys that affect the computation are read, or raise an error that names the key. Field names follow the public config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 13312,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_size_per_head": 128,
    "mamba_num_heads": 64,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_step": 2,
    "mamba_chunk_size": 256,
    "attention_window_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 10485760,
}
"""Sizes, with the defaults of the public configuration class."""

_OFF = (
    *(
        "attention_bias",
        "bias",
        "conv_bias",
        "lm_head_bias",
        "mamba_conv_bias",
        "mamba_proj_bias",
        "mlp_bias",
        "use_bias",
    ),
    *("n_expert", "num_experts", "use_predefined_initial_state", "image_feature_size", "final_logit_softcapping"),
    *("attn_logit_softcapping", "eval_attention_n_bit", "eval_mlp_n_bit"),
)
"""Keys for features that this model class does not compute."""

_WINDOWED, _FULL, _MAMBA = "sliding_attention", "full_attention", ("mamba", "linear_attention")
_BASES = {
    "attention": ("rope_theta", "rope_local_theta"),
    _FULL: ("rope_theta",),
    _WINDOWED: ("rope_local_theta",),
}
"""RoPE bases that an entry of rope_parameters for one kind of layer sets."""


class Plamo2Config(PretrainedConfig):
    """Configuration of a PLaMo 2 model.

    Attributes:
        attention_window_size: Number of past tokens that a windowed layer sees, besides the token itself (W).
        full_attention_idx: Attention layers without a window.
        layers_block_type: "mamba" or "attention" for each layer, in the form that vLLM reads.
        rope_theta: RoPE base of the layers in `full_attention_idx`.
        rope_local_theta: RoPE base of windowed layers.
        sliding_window: Always None, since vLLM applies it to all layers. `window_of` has the window of a layer.
    """

    model_type = "plamo2"

    def __init__(self, **kwargs: Any) -> None:
        """Read the keys of a config.json.

        Raises:
            ValueError: A size is no positive integer, two keys contradict each other, or a key requests a feature that this model class
                does not compute.
        """
        for key in _OFF:
            if kwargs.get(key):
                raise ValueError(f"{key}={kwargs[key]!r} is not supported by plamo2-vllm: it must be absent or off")
        if (act := kwargs.pop("hidden_act", None)) not in (None, "silu", "swish"):
            raise ValueError(f"hidden_act={act!r} is not supported by plamo2-vllm: it must be 'silu'")
        window = kwargs.pop("sliding_window", None) or None
        head_dim = kwargs.pop("head_dim", None)
        aliases = {"attention_window_size": window, "hidden_size_per_head": head_dim}
        for name, default in _SIZES.items():
            given = [kwargs.pop(name, None), aliases.get(name), default]
            value = next(value for value in given if value is not None)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not allowed: it must be a positive integer")
            setattr(self, name, value)
        if head_dim not in (None, self.hidden_size_per_head):
            raise ValueError(
                f"head_dim={head_dim} and hidden_size_per_head={self.hidden_size_per_head} contradict each other"
            )
        if window not in (None, self.attention_window_size, self.attention_window_size + 1):
            raise ValueError(
                f"sliding_window={window} and attention_window_size={self.attention_window_size} contradict each other: sliding_window "
                "must be the same number, or one more if it counts the token itself"
            )
        if self.mamba_step < 2:
            raise ValueError("mamba_step=1 is not allowed: it must be at least 2")
        self.head_dim = self.hidden_size_per_head
        self.sliding_window = None
        self.rms_norm_eps = kwargs.pop("rms_norm_eps", 1e-6)
        self.mamba_enabled = kwargs.pop("mamba_enabled", True)
        kwargs.setdefault("tie_word_embeddings", True)
        self.layers_block_type = ["mamba" if self._is_mamba(i) else "attention" for i in range(self.num_hidden_layers)]
        self.full_attention_idx = self._read_full_layers(kwargs)
        self._read_rope(kwargs)
        if "mamba" not in self.layers_block_type:
            # vLLM then allocates no state.
            self.layer_types = [_FULL] * self.num_hidden_layers
        for key, default in (("bos_token_id", 1), ("eos_token_id", 2)):
            kwargs.setdefault(key, default)
        super().__init__(**kwargs)

    @property
    def dt_rank(self) -> int:
        """Rank of the projection for dt."""
        return max(64, self.hidden_size // 16)

    def window_of(self, layer: int) -> int | None:
        """Return the number of tokens that a query of this attention layer sees, itself included; None: all."""
        # PLaMo counts past tokens, vLLM counts the token itself too.
        return None if layer in self.full_attention_idx else self.attention_window_size + 1

    def rope_theta_of(self, layer: int) -> float:
        """Return the RoPE base of an attention layer."""
        return self.rope_theta if layer in self.full_attention_idx else self.rope_local_theta

    def _is_mamba(self, layer: int) -> bool:
        if not self.mamba_enabled:
            return False
        if self.num_hidden_layers <= self.mamba_step // 2:
            return layer != self.num_hidden_layers - 1
        return layer % self.mamba_step != self.mamba_step // 2

    def _read_full_layers(self, kwargs: dict[str, Any]) -> list[int]:
        """Read the layers without a window, and compare the lists of layer kinds with the layer pattern."""
        attention = [i for i, kind in enumerate(self.layers_block_type) if kind == "attention"]
        full = kwargs.pop("full_attention_idx", None)
        if full is not None and not set(full) <= set(attention):
            raise ValueError(f"full_attention_idx={full} is not allowed: attention layers are {attention}")
        listed = []
        for key in ("layers_block_type", "layer_types"):
            kinds = kwargs.pop(key, None)
            if kinds is None:
                continue
            if len(kinds) != self.num_hidden_layers:
                raise ValueError(f"{key} has {len(kinds)} entries, but the model has {self.num_hidden_layers} layers")
            for i, kind in enumerate(kinds):
                allowed = ("attention", _WINDOWED, _FULL) if i in attention else _MAMBA
                if full is not None and i in attention:
                    allowed = ("attention", _FULL if i in full else _WINDOWED)
                if kind not in allowed:
                    raise ValueError(f"{key}[{i}]={kind!r} contradicts mamba_step, mamba_enabled or full_attention_idx")
                if kind == _FULL:
                    listed.append(i)
        return sorted(set(listed if full is None else full))

    def _read_rope(self, kwargs: dict[str, Any]) -> None:
        """Read the RoPE bases from the top level and from rope_parameters (rope_scaling in older files)."""
        bases = {"rope_theta": kwargs.pop("rope_theta", None), "rope_local_theta": kwargs.pop("rope_local_theta", None)}
        for key in ("rope_parameters", "rope_scaling"):
            rope = kwargs.pop(key, None) or {}
            nested = {kind: inner for kind, inner in rope.items() if isinstance(inner, Mapping)}
            for kind, inner in nested.items() or [("", rope)]:
                for name, value in inner.items():
                    plain = {"rope_type": "default", "type": "default", "factor": 1, "partial_rotary_factor": 1}
                    if name != "rope_theta" and value is not None and (name not in plain or value != plain[name]):
                        raise ValueError(
                            f"{key}: {name}={value!r} is not supported by plamo2-vllm: PLaMo 2 does not use "
                            "RoPE scaling"
                        )
                base = inner.get("rope_theta")
                for name in _BASES.get(kind, ("rope_theta",)) if base is not None else ():
                    if bases[name] not in (None, base):
                        raise ValueError(f"{name}={bases[name]} and {base} in {key} contradict each other")
                    bases[name] = base
        self.rope_theta = float(bases["rope_theta"] or 10000.0)
        self.rope_local_theta = float(bases["rope_local_theta"] or self.rope_theta)
        # vLLM reads the first for its checks; attention layers take `rope_theta_of`.
        self.rope_parameters = {"rope_type": "default", "rope_theta": self.rope_theta}
