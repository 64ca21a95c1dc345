"""config.json: every key is read, says nothing about the network, or is refused by name; numbers are bounded before anything is built."""

import json
import time
from pathlib import Path

import pytest

from plamo2_jax.config import PRESETS, LayerKind, ModelConfig
from plamo2_jax.public_config import LONGEST

GOLDEN = Path(__file__).parent / "golden"
FULL = json.loads((GOLDEN / "full" / "config.json").read_text())
WINDOW = json.loads((GOLDEN / "window" / "config.json").read_text())
BOTH_KINDS = {**FULL, "full_attention_idx": [3]}

# pfnet/plamo-2-1b as published: keys of its configuration class and of transformers.
PLAMO_2_1B = {
    "architectures": ["Plamo2ForCausalLM"],
    "attention_window_size": 2048,
    "auto_map": {
        "AutoConfig": "modeling_plamo.Plamo2Config",
        "AutoModelForCausalLM": "modeling_plamo.Plamo2ForCausalLM",
    },
    "bos_token_id": 1,
    "capacity_factor": 1.0,
    "eos_token_id": 2,
    "eval_attention_n_bit": None,
    "eval_mlp_n_bit": None,
    "expert_dropout": 0.0,
    "fp8_accum_dtype": "bfloat16",
    "full_attention_idx": None,
    "group_size": 1024,
    "hidden_size": 2048,
    "hidden_size_per_head": 128,
    "image_feature_size": None,
    "image_proj_type": "linear",
    "image_token_id": None,
    "intermediate_size": 8192,
    "k_expert": None,
    "linear_type": "fp8",
    "mamba_chunk_size": 256,
    "mamba_d_conv": 4,
    "mamba_d_state": 64,
    "mamba_enabled": True,
    "mamba_num_heads": 32,
    "mamba_step": 2,
    "max_position_embeddings": 10485760,
    "model_type": "plamo2",
    "n_expert": None,
    "num_attention_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "shared_intermediate_size": None,
    "sliding_window": 2048,
    "sparse_intermediate_size": None,
    "sparse_step": None,
    "tokenizer_class": "PlamoTokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_predefined_initial_state": False,
    "vocab_size": 100000,
}


def test_the_published_files_are_read():
    assert ModelConfig.from_hf(PLAMO_2_1B) == PRESETS["plamo-2-1b"]


def read(values, **changes):
    """Read a config.json with some keys changed, and those taken out whose value is `...`."""
    changed = {key: value for key, value in {**values, **changes}.items() if value is not ...}
    return ModelConfig.from_hf(json.loads(json.dumps(changed)))


NESTED = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_theta": 1e4},
    "linear_attention": None,
}
SAME = {
    "transformers 5": {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "both, and they agree": {"rope_parameters": {"rope_theta": 1000000, "partial_rotary_factor": 1.0}},
    "one base for each kind of layer": {"rope_theta": ..., "rope_local_theta": ..., "rope_parameters": NESTED},
    "the older spelling of that": {"rope_theta": ..., "rope_scaling": {"type": "default", "rope_theta": 1e6}},
    "no scaling": {"rope_scaling": None, "rope_parameters": {}},
    "kinds of layers": {"layer_types": ["linear_attention", "sliding_attention", "mamba", "full_attention"]},
    "kinds of layers instead of their numbers": {
        "full_attention_idx": ...,
        "layer_types": ["linear_attention", "sliding_attention", "linear_attention", "full_attention"],
    },
    "vLLM's kinds of layers": {"layers_block_type": ["mamba", "attention"] * 2},
    "vLLM's window": {"sliding_window": 9, "head_dim": 32, "mamba_head_dim": 32, "n_groups": 1},
    "the same window": {"sliding_window": 8},
    "a window under the other name": {"attention_window_size": ..., "sliding_window": 8},
    "no window for vLLM": {"sliding_window": None},
    "features that are off": {
        "attention_bias": False,
        "quantization_config": None,
        "hidden_act": "silu",
        "num_experts": 0,
    },
    "a dtype": {"dtype": "bfloat16"},
    "generation and labels": {
        "temperature": 0.5,
        "id2label": {"0": "x"},
        "output_attentions": True,
        "attention_dropout": 0.1,
    },
    "an unknown key that is off": {"of_the_future": None, "and_another": False, "and": []},
}


@pytest.mark.parametrize("case", SAME)
def test_other_spellings_of_the_same_model(case):
    assert read(BOTH_KINDS, **SAME[case]) == ModelConfig.from_hf(BOTH_KINDS)


REFUSED = {
    "two bases": (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        r"rope_theta=10000\.0 and rope_parameters\.rope_theta=1000000\.0 contradict",
    ),
    "two bases of windowed layers": (
        {"rope_local_theta": 5e3, "rope_parameters": NESTED},
        "rope_local_theta=5000.0 and .*sliding",
    ),
    "scaling": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4}},
        "rope_parameters.rope_type='yarn'",
    ),
    "scaling of one kind": (
        {
            "rope_theta": ...,
            "rope_parameters": {**NESTED, "full_attention": {"rope_type": "linear", "rope_theta": 1e6}},
        },
        r"rope_parameters\.full_attention\.rope_type='linear'",
    ),
    "scaling as older files write it": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling.type='dynamic'",
    ),
    "half of a head is rotated": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    "half of a head, at the top": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "a kind without a base": (
        {"rope_local_theta": ..., "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "no rope_theta for 'sliding_attention'",
    ),
    "an entry without a base": (
        {"rope_local_theta": ..., "rope_parameters": {**NESTED, "sliding_attention": {"rope_type": "default"}}},
        "no rope_theta for 'sliding_attention'",
    ),
    "no object": ({"rope_parameters": [1]}, r"rope_parameters=\[1\]"),
    "kinds of layers in another order": (
        {"layer_types": ["full_attention", "mamba"] * 2},
        r"layer_types\[0\]='full_attention'",
    ),
    "too few kinds": ({"layer_types": ["mamba", "full_attention"]}, "one name for each of 4 layers"),
    "an unknown kind": ({"layers_block_type": ["mamba", "attention", "mamba", "moe"]}, r"layers_block_type\[3\]='moe'"),
    "another window": ({"sliding_window": 16}, "attention_window_size=8 and sliding_window=16 contradict"),
    "a window that is not used": ({"use_sliding_window": False}, "use_sliding_window=False"),
    "another head size": ({"head_dim": 64}, "hidden_size_per_head=32 and head_dim=64 contradict"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act='gelu'.*silu"),
    "biases": ({"attention_bias": True}, "attention_bias=True.* must be false"),
    "a soft cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    "a multiplier": ({"attention_multiplier": 0.5}, "attention_multiplier=0.5"),
    "no rotation": ({"use_rope": False}, "use_rope=False"),
    "experts": ({"n_expert": 8}, "n_expert=8"),
    "quantized weights": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config="),
    "images": ({"image_feature_size": 1152}, "image_feature_size=1152"),
    "an unknown key": ({"of_the_future": 3}, "of_the_future=3 is not supported: the key is unknown"),
    "another architecture": ({"model_type": "llama"}, "model_type='llama' is not supported"),
    "true is no number": ({"hidden_size": True}, "hidden_size=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_does_not_compute_is_refused_by_name(case):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refusal:
        read(BOTH_KINDS, **changes)
    assert len(str(refusal.value)) < 400


def test_several_ids_that_end_a_document(tmp_path):
    config = read(WINDOW, eos_token_id=[2, 1, 4, 2])
    assert config.eos_token_id == config.eos_token_ids == (2, 1, 4)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    assert read(WINDOW, eos_token_id=[2]).eos_token_id == 2
    assert read(WINDOW, eos_token_id=None).eos_token_ids == ()
    for wrong in ([], [2, "x"], [256], "2", list(range(100))):
        with pytest.raises(ValueError, match="eos_token_id="):
            read(WINDOW, eos_token_id=wrong)


TOO_LARGE = {
    "layers_1e9": {"num_hidden_layers": 10**9},
    "layers_3e6": {"num_hidden_layers": 3 * 10**6},
    "full_attention_2e5": {"num_hidden_layers": 400_000, "full_attention_idx": list(range(1, 400_000, 2))},
    "full_attention_alone": {"full_attention_idx": list(range(1, 400_000, 2))},
    "eps_integer": {"rms_norm_eps": 2**40},
    "theta_integer": {"rope_theta": 10**400},
    "local_theta_integer": {"rope_local_theta": 10**400},
    "nested_theta": {"rope_theta": None, "rope_parameters": {"rope_theta": 10**400}},
    "hidden_size": {"hidden_size": 10**12},
    "vocab_size": {"vocab_size": 2**62},
    "heads": {"num_attention_heads": 2**40, "num_key_value_heads": 1},
    "range": {"initializer_range": 10**400},
    "long_text": {"model_type": "A" * 70_000},
    "long_key": {"A" * 70_000: 1},
    "long_id": {"bos_token_id": 10**4000},
    "long_list": {"layer_types": ["mamba"] * 1_000_000},
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_numbers_that_are_too_large(case):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"not (allowed|supported)") as refusal:
        ModelConfig.from_hf({**WINDOW, **TOO_LARGE[case]})
    assert len(str(refusal.value)) < 400
    assert next(iter(TOO_LARGE[case]))[:30] in str(refusal.value) or case in (
        "nested_theta",
        "full_attention_2e5",
        "heads",
    )
    assert time.process_time() - start < 20


def test_a_window_wider_than_any_text_is_the_widest():
    config = read(WINDOW, attention_window_size=2**70, sliding_window=2**70, max_position_embeddings=2**65)
    assert config.attention_window_size == config.max_position_embeddings == LONGEST
    assert set(config.layer_kinds) == {LayerKind.MAMBA, LayerKind.WINDOW}


def test_the_deepest_model_takes_no_time():
    """Alternating kinds of attention, the most layer groups that a configuration can ask for."""
    start = time.process_time()
    config = read(WINDOW, num_hidden_layers=1024, full_attention_idx=list(range(1, 1024, 4)))
    assert len(config.layer_groups) == 512
    assert config.parameter_count() > 0
    assert time.process_time() - start < 20
