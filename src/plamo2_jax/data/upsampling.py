"""Upsampling of long documents, for training at a new length.

Most documents are shorter than the new length, and short documents do not train attention over long distances. Per-source length
upsampling (Fu et al., arXiv:2402.10171) gives long documents of every source more weight without changing the mixture of sources.
"""

from __future__ import annotations

import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.packing import Pieces


class UpsampledPieces:
    """Pieces with the pieces of long documents repeated: `len(pieces)`, `pieces[i]`, `pieces.targets`.

    Args:
        pieces: Pieces of all documents.
        long_tokens: Smallest number of tokens of a long document.
        repeats: How many times as often long documents are read.
    """

    def __init__(self, pieces: Pieces, long_tokens: int, repeats: int):
        self._pieces = pieces
        document, lengths = pieces.documents(), pieces.document_lengths()
        times = np.where(lengths >= long_tokens, repeats, 1)
        self._indices = np.repeat(np.arange(len(pieces), dtype=np.int64), times[document])
        self.targets = int(np.sum((lengths.astype(np.int64) + 1) * times))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Batch:
        """Return a piece, as `Pieces` does."""
        return self._pieces[int(self._indices[index])]

    def __repr__(self) -> str:
        return f"UpsampledPieces({self._pieces!r}, {len(self)} pieces)"
