"""The configuration class reads public files and our own, and refuses what it does not compute."""

import copy
import json

import pytest

from plamo2_vllm.config import Plamo2Config

PUBLIC = {"model_type": "plamo2", "num_hidden_layers": 8, "attention_window_size": 2048, "sliding_window": 2048}


def test_public_config():
    config = Plamo2Config(**PUBLIC)
    assert config.layers_block_type == ["mamba", "attention"] * 4
    assert [config.window_of(i) for i in (1, 3, 5, 7)] == [2049] * 4
    assert config.rope_theta_of(1) == 10000.0
    assert config.sliding_window is None  # vLLM would apply it to every layer
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.head_dim == config.hidden_size_per_head == 128


@pytest.mark.parametrize(
    ("keys", "windows", "bases"),
    [
        ({"sliding_window": 2049}, [2049] * 4, [1e4] * 4),
        ({"attention_window_size": None, "sliding_window": 100}, [101] * 4, [1e4] * 4),
        ({"sliding_window": None, "full_attention_idx": [1, 3, 5, 7], "rope_theta": 1e6}, [None] * 4, [1e6] * 4),
        (
            {"full_attention_idx": [3], "rope_theta": 1e6, "rope_local_theta": 1e4},
            [2049, None, 2049, 2049],
            [1e4, 1e6, 1e4, 1e4],
        ),
        (
            {
                "layer_types": ["mamba", "full_attention", *["mamba", "sliding_attention"] * 3],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
                },
            },
            [None, 2049, 2049, 2049],
            [1e6, 5e4, 5e4, 5e4],
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, [2049] * 4, [1e6] * 4),
    ],
)
def test_windows_and_rope_bases(keys, windows, bases):
    config = Plamo2Config(**(PUBLIC | keys))
    layers = [i for i, kind in enumerate(config.layers_block_type) if kind == "attention"]
    assert [config.window_of(i) for i in layers] == windows
    assert [config.rope_theta_of(i) for i in layers] == bases


def test_written_config_is_read_as_the_same(tmp_path):
    from transformers import AutoConfig

    from plamo2_vllm import register

    register()
    register()
    keys = {"full_attention_idx": [3], "rope_theta": 1e6, "rope_local_theta": 1e4, "quantization_config": {"a": 1}}
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC | keys))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, Plamo2Config)
    config.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    for one in (again, copy.deepcopy(config)):
        assert [one.window_of(i) for i in (1, 3)] == [2049, None]
        assert [one.rope_theta_of(i) for i in (1, 3)] == [1e4, 1e6]
        assert one.quantization_config == {"a": 1}


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"sliding_window": 2000}, "sliding_window=2000"),
        ({"n_expert": 8}, "n_expert=8"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 64, "hidden_size_per_head": 128}, "head_dim=64"),
        ({"full_attention_idx": [2]}, "full_attention_idx"),
        ({"layers_block_type": ["mamba"] * 8}, r"layers_block_type\[1\]"),
        ({"layers_block_type": ["mamba"]}, "8 layers"),
        ({"mamba_step": 1}, "mamba_step"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "contradict"),
    ],
)
def test_refuses(keys, names):
    with pytest.raises(ValueError, match=names):
        Plamo2Config(**(PUBLIC | keys))


def test_models_without_mamba_layers_have_no_states():
    config = Plamo2Config(**PUBLIC, mamba_enabled=False)
    assert set(config.layers_block_type) == {"attention"}
    assert set(config.layer_types) == {"full_attention"}
    assert config.window_of(0) == 2049
