"""The files beside the weights of an export: keys that other programs read."""

import dataclasses
import json

import numpy as np
import pytest

from plamo2_jax.config import PRESETS, ModelConfig, preset
from plamo2_jax.convert.small_files import generation_config, write_small_files
from plamo2_jax.convert.tokenizer_files import tokenizer_config, tokenizer_json
from plamo2_jax.tokenizer.rows import format_rows
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.checkpoints import CONFIG


@pytest.fixture
def tokenizer(golden_tokenizer):
    return Tokenizer.load(golden_tokenizer)


def test_config_json_has_the_keys_of_other_programs():
    values = CONFIG.to_hf()
    assert (values["model_type"], values["architectures"]) == ("plamo2", ["Plamo2ForCausalLM"])
    assert values["sliding_window"] == CONFIG.attention_window_size + 1 == 7
    assert values["layers_block_type"] == ["mamba", "attention"] * 3 + ["mamba"]
    assert values["head_dim"] == 8
    assert values["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e5}
    assert values["rope_local_theta"] == 1e3
    # Either key would make transformers look for Python files, or for a tokenizer class, that the folder does not have.
    assert not {"auto_map", "tokenizer_class", "layer_types"} & values.keys()


def test_a_model_without_windows_has_no_sliding_window():
    full = dataclasses.replace(CONFIG, full_attention_idx=(1, 3, 5))
    assert full.to_hf()["sliding_window"] is None
    assert ModelConfig.from_hf(full.to_hf()) == full


@pytest.mark.parametrize("name", PRESETS)
def test_config_json_is_read_back(name):
    config = preset(name)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_generation_stops_where_plamo2_generate_stops(tokenizer):
    assert generation_config(CONFIG, tokenizer) == {"bos_token_id": 1, "eos_token_id": [2, 1, 4]}
    translate = preset("plamo-2-translate")
    assert generation_config(translate, None) == {"bos_token_id": 1, "eos_token_id": [1], "pad_token_id": 3}
    assert generation_config(translate, tokenizer)["eos_token_id"] == [1, 2, 4]
    silent = preset("tiny", bos_token_id=None, eos_token_id=None)
    assert generation_config(silent, None) == {}


def test_tokenizer_json_has_every_row(tokenizer):
    values = tokenizer_json(tokenizer)
    vocab = values["model"]["vocab"]
    rows = tokenizer.vocabulary
    assert [token for token, _ in vocab] == list(tokenizer.tokens)
    for (token, score), cost, kind in zip(vocab, rows.costs, rows.types, strict=True):
        assert score == (-cost if kind == "NORMAL" else -9_999_990), token
    # The library gives an unknown character the lowest score minus 10, which must be PLaMo's.
    assert min(score for _, score in vocab) - 10 == -10_000_000
    control = [token for token, kind in zip(rows.tokens, rows.types, strict=True) if kind in ("CONTROL", "UNKNOWN")]
    assert [entry["content"] for entry in values["added_tokens"]] == control
    assert all(vocab[entry["id"]][0] == entry["content"] for entry in values["added_tokens"])
    assert values["model"]["unk_id"] == tokenizer.unk_id
    assert values["post_processor"]["special_tokens"]["<|plamo:bos|>"]["ids"] == [tokenizer.bos_id]
    assert (values["normalizer"], values["pre_tokenizer"]) == (None, None)


def test_rare_rows_of_a_vocabulary():
    """Costs that would lower the score of unknown characters, small digits of bytes, no control rows but unk."""
    bytes_ = [[f"<0x{value:02x}>", -20.0, "BYTE"] for value in range(256)]
    rows = [["<|plamo:unk|>", 0.0, "UNKNOWN"], *bytes_, ["rare", -5000.0, "NORMAL"], ["a", -0.00004, "NORMAL"]]
    values = tokenizer_json(Tokenizer(format_rows(rows)))
    assert values["model"]["vocab"][1 + 0xAB][0] == "<0xAB>"
    assert values["model"]["vocab"][-2:] == [["rare", -9_999_990], ["a", 0]]
    assert values["post_processor"] is None
    assert tokenizer_json(Tokenizer(format_rows(rows[1:]))) is None


def test_tokenizer_config_needs_no_remote_code(tokenizer):
    values = tokenizer_config(CONFIG, tokenizer)
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in values
    assert values["additional_special_tokens"] == ["<|plamo:op|>"]


def test_a_model_without_a_tokenizer_has_no_tokenizer_files(tmp_path):
    write_small_files(tmp_path, CONFIG, None, np.dtype(np.float32), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json"]
