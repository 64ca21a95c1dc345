"""The tokenizer of an export in the files of the Hugging Face libraries: tokenizer.json and tokenizer_config.json.

`tokenizers` loads tokenizer.json without our code. Its Unigram model with byte fallback finds a segmentation of the same cost as
`Tokenizer.encode`, but between segmentations of equal cost it chooses another one. It walks from left to right and prefers a long last
token; PLaMo's encoder walks from right to left and prefers a long first token. Such segmentations often consist of the same tokens in
another order ("\\n" before or after "\\n\\n"), so no choice of scores can make the two equal. experiments/tokenizer_json counts the
differences.
"""

from __future__ import annotations

from typing import Any

from plamo2_jax.config import ModelConfig
from plamo2_jax.tokenizer.rows import BYTE, CONTROL, UNKNOWN
from plamo2_jax.tokenizer.tokenizer import BOS, PAD, UNK, Tokenizer

# The library's score of an unknown character is 10 below the lowest score, which makes it PLaMo's cost of 10,000,000.
_LOWEST_SCORE = -9_999_990


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return the JSON object of a tokenizer.json, as `tokenizers` 0.22 and later read it, or None if the vocabulary has no row
    `<|plamo:unk|>`, which the library needs for byte fallback.

    Rows of type BYTE, CONTROL and UNKNOWN have the lowest score, so text that spells them is not encoded as them by the Unigram model.
    CONTROL and UNKNOWN rows are also special tokens, which the library matches in text before the model runs.
    Scores are `Tokenizer`'s integer costs with the opposite sign. Costs above 9,999,990 are written as 9,999,990.
    """
    if UNK not in tokenizer.tokens:
        return None
    vocab, special, rows = [], [], tokenizer.vocabulary
    for id, (token, kind, cost) in enumerate(zip(rows.tokens, rows.types, rows.costs.tolist(), strict=True)):
        plain = kind not in (BYTE, CONTROL, UNKNOWN)
        # The library looks bytes up by capital digits.
        name = f"<0x{token[3:5].upper()}>" if kind == BYTE else token
        vocab.append([name, max(-cost, _LOWEST_SCORE) if plain else _LOWEST_SCORE])
        if kind in (CONTROL, UNKNOWN):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            special.append({"id": id, "content": token, **flags})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _add_bos(tokenizer) if BOS in tokenizer.tokens else None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocab, "byte_fallback": True},
    }


def _add_bos(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a post-processor that puts bos before a text, or before the first of two."""
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.bos_id], "tokens": [BOS]}},
    }


def tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the JSON object of a tokenizer_config.json for `transformers.PreTrainedTokenizerFast`."""

    def token(id: int | None) -> str | None:
        return tokenizer.tokens[id] if id is not None and id < tokenizer.vocab_size else None

    present = {name: name if name in tokenizer.tokens else None for name in (PAD, UNK)}
    named = {
        "bos_token": token(config.bos_token_id),
        "eos_token": token(next(iter(config.eos_token_ids), None)),
        "pad_token": token(config.pad_token_id) or present[PAD],
        "unk_token": present[UNK],
    }
    special = [token for id, token in enumerate(tokenizer.tokens) if tokenizer.is_special(id)]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        **named,
        "cls_token": None,
        "sep_token": None,
        "mask_token": None,
        "additional_special_tokens": [token for token in special if token not in named.values()],
        "clean_up_tokenization_spaces": False,
    }
