"""Keys of a GGUF file of the architecture plamo2: the shape of the network, the tokenizer and the chat template."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.gguf_layout import FileType
from plamo2_jax.tokenizer.rows import BYTE, CONTROL, NORMAL, UNKNOWN
from plamo2_jax.tokenizer.tokenizer import OP, PAD, UNK, Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_UNUSED = 5
_TOKEN_TYPES = {NORMAL: 1, UNKNOWN: 2, CONTROL: 3, BYTE: 6}
_NEVER_MATCHED = -2000.0
"""Score of rows that the tokenizer of llama.cpp never matches in text. It takes control tokens from special strings before that."""
_QK_EPSILON = 1e-6


def rope_base(config: ModelConfig) -> float:
    """Return the RoPE base of all attention layers.

    Raises:
        ConvertError: llama.cpp cannot run the model: its layers have different bases, or it has no Mamba layer.
    """
    kinds = set(config.layer_kinds)
    if LayerKind.MAMBA not in kinds:
        raise ConvertError(
            "the model has no Mamba layer, and llama.cpp cannot load such a PLaMo 2 model. Export it with "
            "plamo2 convert to-hf instead"
        )
    bases = {config.rope_theta if kind is LayerKind.FULL else config.local_theta for kind in kinds - {LayerKind.MAMBA}}
    if len(bases) > 1:
        raise ConvertError(
            f"rope_theta={config.rope_theta:g} and rope_local_theta={config.local_theta:g} are both used, but "
            "a GGUF file of PLaMo 2 has one RoPE base for all layers. Export it with plamo2 convert to-hf "
            "instead, for example for vLLM"
        )
    return float(bases.pop())


def exact_context(config: ModelConfig) -> int:
    """Return the number of tokens up to which llama.cpp computes what this model computes: it has no attention window for PLaMo 2."""
    if LayerKind.WINDOW not in config.layer_kinds:
        return config.max_position_embeddings
    return min(config.attention_window_size + 1, config.max_position_embeddings)


def describe_differences(config: ModelConfig, context: int) -> list[str]:
    """Return one sentence for each way in which llama.cpp computes something else than this model."""
    notes = []
    if (exact := exact_context(config)) < config.max_position_embeddings:
        notes.append(
            f"llama.cpp has no attention window for PLaMo 2, so its results are wrong beyond {exact:,} tokens "
            f"(attention_window_size + 1); the context length in the file is {context:,}"
        )
    if config.rms_norm_eps != _QK_EPSILON:
        notes.append(
            f"llama.cpp normalizes queries and keys with rms_norm_eps={config.rms_norm_eps:g}, but this model "
            f"uses {_QK_EPSILON:g}, so the results differ slightly"
        )
    return notes


def add_network(writer: GGUFWriter, config: ModelConfig, kind: FileType, context: int, name: str) -> None:
    """Add the keys of the network.

    Args:
        writer: Writer of the file, before its header is written.
        config: Shape of the model.
        kind: Type of most matrices.
        context: Context length in tokens.
        name: Name of the model for users.
    """
    layers = config.num_hidden_layers
    mamba = [layer is LayerKind.MAMBA for layer in config.layer_kinds]
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind in ("q8_0", "q4_0"):
        writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(layers)
    # head_count_kv alone tells Mamba layers. With head_count 0 on a Mamba layer, llama.cpp takes 0 as the size of RoPE and never returns
    # from loading the file.
    writer.add_head_count([config.num_attention_heads] * layers)
    writer.add_head_count_kv([0 if is_mamba else config.num_key_value_heads for is_mamba in mamba])
    writer.add_key_length(config.hidden_size_per_head)
    writer.add_value_length(config.hidden_size_per_head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope_base(config))
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)  # llama.cpp keeps the number of heads in this key.
    writer.add_ssm_inner_size(config.mamba_num_heads * config.hidden_size_per_head)
    writer.add_ssm_group_count(0)


def add_tokenizer(writer: GGUFWriter, config: ModelConfig, tokenizer: Tokenizer, template: str | None) -> None:
    """Add the keys of the tokenizer, with a row for every row of the embedding, and the chat template.

    Scores are multiples of 1/10,000, as the encoder rounds them. CONTROL and UNKNOWN rows get a score with which they do not match in
    text, so llama.cpp treats control strings in text as text unless it is asked to parse special tokens.

    Raises:
        ConvertError: The vocabulary is one that llama.cpp refuses.
    """
    vocabulary = tokenizer.vocabulary
    if int(np.min(vocabulary.byte_ids)) == 0:
        raise ConvertError(
            "the first row of tokenizer.jsonl is a BYTE row: llama.cpp takes id 0 for a missing byte. Put another row first"
        )
    missing = config.vocab_size - tokenizer.vocab_size
    taken = set(vocabulary.tokens)
    names = (name for i in itertools.count() if (name := f"[PAD{i}]") not in taken)
    matched = [kind not in (CONTROL, UNKNOWN) for kind in vocabulary.types]
    scores = np.where(matched, -vocabulary.costs / 1e4, _NEVER_MATCHED).tolist()
    writer.add_tokenizer_model("plamo2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*vocabulary.tokens, *itertools.islice(names, missing)])
    writer.add_token_scores(scores + [_NEVER_MATCHED] * missing)
    writer.add_token_types([_TOKEN_TYPES[kind] for kind in vocabulary.types] + [_UNUSED] * missing)
    bos = tokenizer.bos_id if config.bos_token_id is None else config.bos_token_id
    writer.add_bos_token_id(bos)
    for add, id in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        stop_ids(config, tokenizer),
        strict=False,
    ):
        add(id)
    pad = tokenizer.id_of(PAD) if PAD in taken else None
    if (pad := pad if config.pad_token_id is None else config.pad_token_id) is not None:
        writer.add_pad_token_id(pad)
    if UNK in taken:
        writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if template is not None:
        writer.add_chat_template(template)


def stop_ids(config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end a text, as generation in this project uses them: the ids in the config, then eos, op and bos.

    llama.cpp has three keys for such ids: end of text, of a turn and of a message.
    """
    ids = [*config.eos_token_ids, tokenizer.eos_id]
    if OP in tokenizer.tokens:
        ids.append(tokenizer.op_id)
    ids += [id for id in (config.bos_token_id, tokenizer.bos_id) if id is not None]
    return list(dict.fromkeys(ids))
