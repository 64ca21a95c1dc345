# Copyright 2026 the plamo2-jax authors. SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the License.
# You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by applicable law or agreed to in
# writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either
# express or implied. See the License for the specific language governing permissions and limitations under the License.
"""The PLaMo 2 tokenizer for transformers in plain Python: exact unigram segmentation with integer costs and byte fallback.

There is no normalizer, no pre-tokenizer and no space prefix. As in all tokenizers of transformers, control strings in text become control
tokens, unless `split_special_tokens=True` is given.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from transformers import PreTrainedTokenizer

UNKNOWN_COST = 10_000_000
"""Cost of a character that is spelled in bytes."""
INVALID_COST = 20_000_000
"""A token of this cost or a higher one is never used."""
FILE_NAME = "tokenizer.jsonl"


class Plamo2Tokenizer(PreTrainedTokenizer):
    """Encoder and decoder between text and ids.

    Args:
        vocab_file: A tokenizer.jsonl. Its rows are `[token, score, type, ...]`; the line number is the id.
        add_bos_token: Add the beginning-of-text token to encoded texts.
        add_eos_token: Add the end-of-text token to encoded texts.
    """

    vocab_files_names = {"vocab_file": FILE_NAME}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        bos_token: str = "<|plamo:bos|>",
        eos_token: str = "<|plamo:eos|>",
        unk_token: str = "<|plamo:unk|>",
        pad_token: str = "<|plamo:pad|>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        """Read the vocabulary."""
        self.vocab_file = vocab_file
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        with open(vocab_file, encoding="utf-8", newline="\n") as file:
            rows = [json.loads(line) for line in file]
        self._tokens = [row[0] for row in rows]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._byte_tokens = [""] * 256
        self._byte_values = {}
        # Cost of each token, and None for each beginning of a token that is not a token.
        self._costs: dict[str, int | None] = {}
        control = []
        for token, score, kind, *_ in rows:
            if kind == "BYTE":
                value = int(token[3:5], 16)
                self._byte_tokens[value], self._byte_values[token] = token, value
            elif kind in ("CONTROL", "UNKNOWN"):
                control.append(token)
            elif (cost := -round(1e4 * score)) < INVALID_COST:
                for end in range(1, len(token)):
                    self._costs.setdefault(token[:end], None)
                self._costs[token] = cost
        named = {str(token) for token in (bos_token, eos_token, unk_token, pad_token) if token is not None}
        if not {"additional_special_tokens", "extra_special_tokens"} & kwargs.keys():
            kwargs["additional_special_tokens"] = [token for token in control if token not in named]
        kwargs["spaces_between_special_tokens"] = False
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of rows of the vocabulary file."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens, added tokens included."""
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the cheapest segmentation of a text.

        The recursion runs from the end. Of equal costs the longest token wins, and a character in bytes comes last.
        """
        count = len(text)
        best = [0] * (count + 1)
        choice = [0] * count  # end of the token that begins there; 0: the character is spelled in bytes
        costs = self._costs
        for start in range(count - 1, -1, -1):
            lowest, chosen = best[start + 1] + UNKNOWN_COST, 0
            for end in range(start + 1, count + 1):
                piece = text[start:end]
                if piece not in costs:
                    break
                cost = costs[piece]
                if cost is not None and cost + best[end] <= lowest:
                    lowest, chosen = cost + best[end], end
            best[start], choice[start] = lowest, chosen
        tokens, start = [], 0
        while start < count:
            end = choice[start]
            if end:
                tokens.append(text[start:end])
            else:
                end = start + 1
                tokens += [self._byte_tokens[value] for value in text[start].encode()]
            start = end
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids[str(self.unk_token)])

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens. Bytes that are not UTF-8 become U+FFFD."""
        values = self._byte_values
        pieces = (bytes([values[token]]) if token in values else token.encode() for token in tokens)
        return b"".join(pieces).decode(errors="replace")

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Add bos and eos, as the settings say, to one text or to two."""
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        return [*bos, *token_ids_0, *(token_ids_1 or []), *eos]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy tokenizer.jsonl into a folder."""
        path = os.path.join(save_directory, f"{filename_prefix}-{FILE_NAME}" if filename_prefix else FILE_NAME)
        if os.path.abspath(path) != os.path.abspath(self.vocab_file):
            shutil.copyfile(self.vocab_file, path)
        return (path,)
