"""Tokenized text in memory with the interface of shards on disk, for held-out files that are small enough to tokenize on the fly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from plamo2_jax.data.documents import Document
from plamo2_jax.data.shards import TokenizedDocument
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class TokenizedText:
    """Random access to tokenized documents, like `data.shards.Shards`.

    Args:
        documents: At least one document.
        tokenizer: Tokenizer that encodes the documents.
        name: Name of the source, for messages.

    Attributes:
        lengths: [documents] uint32, number of tokens of each document.
        documents, tokens, bytes: Total numbers.
    """

    def __init__(self, documents: Iterable[Document], tokenizer: Tokenizer, name: str):
        self._name = name
        self._documents = [
            TokenizedDocument(np.asarray(tokenizer.encode(document.text), np.int32), len(document.text.encode()))
            for document in documents
        ]
        if not self._documents:
            raise PlamoError(f"{name} holds no document: at least one is needed")
        self.lengths = np.array([len(document.ids) for document in self._documents], np.uint32)
        self.documents = len(self._documents)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        self.bytes = sum(document.bytes for document in self._documents)

    def __len__(self) -> int:
        return self.documents

    def __getitem__(self, index: int) -> TokenizedDocument:
        return self._documents[index]

    def __repr__(self) -> str:
        return f"TokenizedText({self._name!r}, documents={self.documents})"
