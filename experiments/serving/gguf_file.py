"""Write a model as a GGUF file in float32 or Q8_0, as llama.cpp reads plamo2."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import flax.traverse_util
import gguf
import gguf.quants
import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.tokenizer.tokenizer import Tokenizer

# Offsets that the network adds to the scales of its norms; a GGUF file holds the sums.
OFFSETS = {
    "pre_mixer_norm": 1.0,
    "post_mixer_norm": 1 / 5,
    "pre_mlp_norm": 1.0,
    "post_mlp_norm": 1 / 5**1.5,
    "norm": 1.0,
}
NAMES = {
    "pre_mixer_norm.weight": "attn_norm.weight",
    "post_mixer_norm.weight": "post_attention_norm",
    "pre_mlp_norm.weight": "ffn_norm.weight",
    "post_mlp_norm.weight": "post_ffw_norm",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.bcdt_proj.weight": "ssm_x.weight",
    "mixer.B_norm_weight": "ssm_b_norm",
    "mixer.C_norm_weight": "ssm_c_norm",
    "mixer.dt_norm_weight": "ssm_dt_norm",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.qkv_proj.weight": "attn_qkv.weight",
    "mixer.q_weight": "attn_q_norm.weight",
    "mixer.k_weight": "attn_k_norm.weight",
    "mixer.o_proj.weight": "attn_output.weight",
}
# Matrices that stay in float32.
KEPT = ("ssm_x", "ssm_dt", "ssm_conv1d", "norm")
TOKEN_TYPES = {"NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "UNUSED": 5, "BYTE": 6}


def write_gguf(
    path: Path, config: ModelConfig, params: dict, tokenizer: Tokenizer, context: int, *, q8_0: bool = False
) -> None:
    """Write a GGUF file.

    Args:
        path: File to write.
        config: Shape of the model.
        params: Parameters with stacked layers.
        tokenizer: Vocabulary; the embedding may have more rows.
        context: Context length to write.
        q8_0: Write the matrices in Q8_0, except those of B, C and the step size.
    """
    writer = gguf.GGUFWriter(str(path), "plamo2")
    layers = config.num_hidden_layers
    attention = [kind is not LayerKind.MAMBA for kind in config.layer_kinds]
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(layers)
    # With head_count 0 on Mamba layers, llama.cpp never returns from loading the file.
    writer.add_head_count([config.num_attention_heads] * layers)
    writer.add_head_count_kv([config.num_key_value_heads if one else 0 for one in attention])
    writer.add_key_length(config.hidden_size_per_head)
    writer.add_value_length(config.hidden_size_per_head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.local_theta))
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.hidden_size_per_head)
    writer.add_ssm_group_count(0)
    writer.add_file_type(7 if q8_0 else 0)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    for tensor in public_tensors(config):
        rows = []
        for part in tensor.parts:
            leaf = np.asarray(leaves[part.path], np.float32)
            leaf = leaf if part.period is None else leaf[part.period]
            rows.append(leaf.transpose(part.inverse).reshape(-1, *tensor.shape[1:]))
        array = np.concatenate(rows).reshape(tensor.shape)
        name, array = named(tensor.name, array)
        if q8_0 and array.ndim == 2 and not any(part in name for part in KEPT):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def named(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the name and the values of a public tensor in a GGUF file."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    norm = name.removesuffix(".weight").rsplit(".", 1)[-1]
    array = array + np.float32(OFFSETS.get(norm, 0.0))
    if name in whole:
        return whole[name], array
    index, rest = name.removeprefix("model.layers.layers.").split(".", 1)
    if rest == "mixer.A_log":
        array = -np.exp(array)
    if rest == "mixer.conv1d.weight":
        array = array[:, 0]
    return f"blk.{index}.{NAMES[rest]}", np.ascontiguousarray(array, np.float32)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Write the vocabulary, padded to the rows of the embedding."""
    vocabulary = rows_of(tokenizer)
    missing = rows - len(vocabulary)
    writer.add_tokenizer_model("plamo2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([row[0] for row in vocabulary] + [f"[PAD{i}]" for i in range(missing)])
    writer.add_token_scores([float(row[1]) for row in vocabulary] + [-1000.0] * missing)
    writer.add_token_types([TOKEN_TYPES[row[2]] for row in vocabulary] + [TOKEN_TYPES["UNUSED"]] * missing)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def rows_of(tokenizer: Tokenizer) -> list[list]:
    """Return the rows of the vocabulary's file."""
    with tempfile.TemporaryDirectory() as folder:
        return [json.loads(line) for line in tokenizer.save(folder).read_text().splitlines()]
