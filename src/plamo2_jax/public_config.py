"""The keys of a public config.json: which are read, which do not affect the network, and which are refused.

A key that affects the computation is read, or raises an error that names the key. It is never ignored. `model_fields` returns the arguments
of `ModelConfig`; every other key must be in one of the tables below, or be switched off (null, false or empty).

Sources of the key lists: the configuration class of pfnet/plamo-2-*, `PreTrainedConfig`, `RotaryEmbeddingConfigMixin` and
`GenerationConfig` of transformers 4.57 and 5.24.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import shown

LONGEST = 2**30
"""Length of the longest text in tokens. A larger window or position limit has no further effect."""

_ALIASES = {"head_dim": "hidden_size_per_head", "mamba_head_dim": "hidden_size_per_head"}
"""Other names of fields."""

_READ = {*_ALIASES, "layer_types", "layers_block_type", "rope_parameters", "rope_scaling", "sliding_window"}
"""Keys besides the fields of ModelConfig that are read, or compared with fields."""

# Pairs instead of a dict by values, because (0,) equals (False,) in Python.
_ONLY_BY_VALUES: tuple[tuple[tuple[Any, ...], str], ...] = (
    (("plamo2",), "model_type"),
    (("silu", "swish"), "hidden_act hidden_activation activation_function mlp_hidden_act mamba_hidden_act"),
    (("swiglu", "gated", "silu"), "mlp_type"),
    # No bias in any product or convolution.
    (
        (False,),
        """attention_bias bias conv_bias lm_head_bias mamba_conv_bias mamba_proj_bias mlp_bias qkv_bias use_bias use_conv_bias
        use_predefined_initial_state""",
    ),
    (
        (0,),
        """attn_logit_softcapping final_logit_softcapping logits_soft_cap n_expert num_experts num_local_experts n_routed_experts
        n_shared_experts""",
    ),
    (
        (1,),
        """embedding_multiplier logit_scale logits_scaling lm_head_multiplier partial_rotary_factor residual_multiplier rotary_pct
        mamba_n_groups n_groups pretraining_tp""",
    ),
    ((True,), "causal is_causal qk_norm use_qk_norm use_rope use_sliding_window"),
    ((None,), "eval_attention_n_bit eval_mlp_n_bit image_feature_size quantization_config"),
    # How the weights were trained. They are plain weights: a run chooses its products with RunConfig.linear_type.
    (("normal", "fp8", "fp8-retain"), "linear_type"),
)
_ONLY = {name: values for values, names in _ONLY_BY_VALUES for name in names.split()}
"""Keys that are allowed only with these values, which do not change the network."""

_HARMLESS_BY_REASON = {
    "They name the writer of the file and Python classes. The dtype of a tensor is read from its own file.": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _experts_implementation
        _experts_implementation_internal _flash_attn_2_enabled _name_or_path architectures attn_implementation auto_map dtype
        experts_implementation name_or_path tokenizer_class torch_dtype transformers.js_config transformers_version unsloth_fixed
        unsloth_version""",
    "They choose the precision of training, or of caches in other programs.": """
        fp8_accum_dtype mamba_ssm_cache_dtype mamba_ssm_dtype use_bfloat16""",
    "They have an effect in training only.": """
        attention_dropout attn_pdrop classifier_dropout dropout embd_pdrop gradient_checkpointing hidden_dropout
        hidden_dropout_prob resid_pdrop""",
    "They choose outputs, heads and labels of other tasks, and chunk sizes of the computation.": """
        chunk_size_feed_forward finetuning_task id2label is_decoder label2id num_labels output_attentions output_hidden_states
        prefix problem_type return_dict task_specific_params tf_legacy_loss tie_last_hidden_states torchscript use_cache""",
    "They are token ids of the tokenizer.": """
        cls_token_id decoder_start_token_id mask_token_id sep_token_id unk_token_id""",
    "They configure experts and images, and have no effect unless n_expert or image_feature_size is set.": """
        capacity_factor expert_dropout group_size image_proj_type image_token_id k_expert shared_intermediate_size
        sparse_intermediate_size sparse_step""",
    "They are generation settings, which older files store in config.json.": """
        assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
        begin_suppress_tokens cache_config cache_implementation compile_config constraints continuous_batching_config
        disable_compile diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
        encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids
        forced_bos_token_id forced_eos_token_id guidance_scale is_assistant length_penalty low_memory max_cache_len max_length
        max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p model_max_length no_repeat_ngram_size
        num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
        output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
        repetition_penalty return_dict_in_generate sequence_bias speculation_type stop_strings suppress_tokens target_lookbehind
        temperature token_healing top_h top_k top_p typical_p use_mtp watermarking_config""",
}
_HARMLESS = frozenset(name for names in _HARMLESS_BY_REASON.values() for name in names.split())
"""Keys that do not affect the computation."""

_LAYERS = {
    "mamba": ("mamba",),
    "mamba2": ("mamba",),
    "linear_attention": ("mamba",),
    "attention": ("window", "full"),
    "sliding_attention": ("window",),
    "full_attention": ("full",),
}
"""Names of the layer kinds in layer_types and layers_block_type."""


def model_fields(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` for the JSON object of a public config.json.

    Args:
        names: Names of the fields of `ModelConfig`.

    Raises:
        PlamoError: A key requests something that the model does not compute, or two keys contradict each other.
    """
    for key, value in values.items():
        if key in _ONLY and (not _is_off(value) or any(allowed is True for allowed in _ONLY[key])):
            _require_only(key, value)
        elif not (key in names or key in _READ or key in _HARMLESS or key in _ONLY or _is_off(value)):
            raise PlamoError(
                f"{_shown_key(key)}={shown(value)} is not supported: the key is unknown. Remove it if it does "
                "not change the results of the network"
            )
    fields = {key: value for key, value in values.items() if key in names}
    for name in ("full_attention_idx", "rope_theta", "rope_local_theta"):
        if fields.get(name, 0) is None:
            del fields[name]
    for other, name in _ALIASES.items():
        if values.get(other) is not None and fields.setdefault(name, values[other]) != values[other]:
            raise PlamoError(f"{name}={shown(fields[name])} and {other}={shown(values[other])} contradict each other")
    _read_window(values, fields)
    fields |= _read_rope(values)
    for name in ("attention_window_size", "max_position_embeddings"):
        if is_integer(fields.get(name)):
            fields[name] = min(fields[name], LONGEST)
    return fields


def full_layers(values: Mapping[str, Any], kinds: Sequence[str]) -> tuple[int, ...] | None:
    """Compare the layer kinds listed in config.json with the layer pattern from the other keys.

    Args:
        values: The JSON object.
        kinds: "mamba", "window" or "full" for every layer.

    Returns:
        Numbers of the layers with full attention if only layer_types lists them, else None.

    Raises:
        PlamoError: A layer has another kind, or an attention layer has no RoPE base.
    """
    listed = None
    kinds = list(kinds)
    for key in ("layer_types", "layers_block_type"):
        types = values.get(key)
        if types is None:
            continue
        if not isinstance(types, list) or len(types) != len(kinds):
            raise PlamoError(
                f"{key}={shown(types)} is not allowed: it must be a list with one name for each of {len(kinds)} layers"
            )
        for i, (name, kind) in enumerate(zip(types, kinds, strict=True)):
            allowed = _LAYERS.get(name, ()) if isinstance(name, str) else ()
            if name == "full_attention" and kind == "window" and values.get("full_attention_idx") is None:
                kinds[i] = "full"
                listed = (*(listed or ()), i)
            elif kind not in allowed:
                raise PlamoError(
                    f"{key}[{i}]={shown(name)} contradicts the other keys (mamba_step, mamba_enabled, full_attention_idx): layer {i} "
                    f"has kind {kind!r}"
                )
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    bases = (("full", "full_attention", "rope_theta"), ("window", "sliding_attention", "rope_local_theta"))
    for kind, name, top in bases:
        if kind in kinds and _is_nested(rope) and values.get(top) is None:
            entries = [rope.get(key) or {} for key in (name, "attention")]
            # Programs use different default bases for an entry without one, so the base must be explicit.
            if all(entry.get("rope_theta") is None for entry in entries):
                raise PlamoError(f"rope_parameters has no rope_theta for {name!r}, but the model has such layers")
    return listed


def is_integer(value: Any) -> bool:
    """Return whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that is finite in float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1023


def _read_window(values: Mapping[str, Any], fields: dict[str, Any]) -> None:
    """Read the window. In vLLM's files sliding_window counts the token itself; in public files it equals attention_window_size."""
    window = values.get("sliding_window")
    if window is None or window is False:
        return
    if not is_integer(window) or window < 1:
        raise PlamoError(f"sliding_window={shown(window)} is not allowed: it must be a positive integer or null")
    own = fields.setdefault("attention_window_size", window)
    if window not in (own, own + 1 if is_integer(own) else own):
        raise PlamoError(
            f"attention_window_size={shown(own)} and sliding_window={shown(window)} contradict each other: sliding_window must be "
            "the same number, or one more if it counts the token itself"
        )


def _read_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the RoPE bases from the top level and from rope_parameters (rope_scaling in older files)."""
    bases = [(key, key, values[key]) for key in ("rope_theta", "rope_local_theta") if values.get(key) is not None]
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.get(key)
        if _is_off(rope):
            continue
        if not isinstance(rope, Mapping):
            raise PlamoError(f"{key}={shown(rope)} is not allowed: it must be an object or null")
        if not _is_nested(rope):
            bases += _plain_rope(key, "rope_theta", rope)
            continue
        for layers, inner in rope.items():
            where = f"{key}.{_shown_key(layers)}"
            if layers not in _LAYERS or not (inner is None or isinstance(inner, Mapping)):
                raise PlamoError(f"{where}={shown(inner)} is not supported: it must be an object for one kind of layer")
            if inner and "mamba" not in _LAYERS[layers]:
                names = ["rope_theta"] if layers in ("attention", "full_attention") else []
                names += ["rope_local_theta"] if layers != "full_attention" else []
                bases += [base for name in names for base in _plain_rope(where, name, inner)]
    found: dict[str, tuple[str, Any]] = {}
    for where, name, base in bases:
        first = found.setdefault(name, (where, base))
        if first[1] != base:
            raise PlamoError(
                f"{first[0]}={shown(first[1])} and {where}={shown(base)} contradict each other: give one RoPE base"
            )
    return {name: base for name, (_, base) in found.items()}


def _plain_rope(where: str, name: str, rope: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Read the base from an object of RoPE parameters, and refuse entries that would change the rotation."""
    allowed = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1, "factor": 1}
    for key, value in rope.items():
        if key != "rope_theta" and value is not None and not (key in allowed and _same(value, allowed[key])):
            only = f"it must be {allowed[key]!r}" if key in allowed else "only rope_theta is read there"
            raise PlamoError(f"{where}.{_shown_key(key)}={shown(value)} is not supported: {only}, without scaling")
    base = rope.get("rope_theta")
    return [] if base is None else [(f"{where}.rope_theta", name, base)]


def _is_nested(rope: Any) -> bool:
    return isinstance(rope, Mapping) and any(key in _LAYERS or key.endswith("_attention") for key in rope)


def _require_only(key: str, value: Any) -> None:
    if value is not None and not any(_same(value, allowed) for allowed in _ONLY[key]):
        allowed = " or ".join(map(json.dumps, _ONLY[key]))
        raise PlamoError(f"{key}={shown(value)} is not supported: it must be {allowed}, or the key must be absent")


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | Mapping) and not value)


def _same(value: Any, allowed: Any) -> bool:
    # In Python True equals 1, but in JSON true and 1 differ.
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _shown_key(key: str) -> str:
    return key if len(key) <= 60 and key.isprintable() and key else shown(key)
