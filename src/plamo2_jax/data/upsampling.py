"""Upsampling of long documents, for training at a new length.

Most documents are shorter than the new length, and short documents do not train attention over long distances. Per-source length
upsampling (Fu et al., arXiv:2402.10171) gives long documents of every source more weight without changing the mixture of sources.
"""

from __future__ import annotations

import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.packing import Pieces
from plamo2_jax.data.shares import Share, even_range


class UpsampledPieces:
    """Pieces with the pieces of long documents repeated: `len(pieces)`, `pieces[i]`, `pieces.targets`.

    Args:
        pieces: Pieces of all documents.
        long_tokens: Smallest number of tokens of a long document.
        repeats: How many times as often long documents are read.
    """

    def __init__(self, pieces: Pieces, long_tokens: int, repeats: int):
        self._pieces = pieces
        self._long_tokens, self._repeats = long_tokens, repeats
        document, times = pieces.documents(), self._times()
        self._indices = np.repeat(np.arange(len(pieces), dtype=np.int64), times[document])
        self.targets = int(np.sum(self._sizes()))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shards."""
        return self._pieces.fingerprint

    def _times(self) -> np.ndarray:
        """[documents] int, how many times each document is read in an epoch."""
        return np.where(self._pieces.document_lengths() >= self._long_tokens, self._repeats, 1)

    def _sizes(self) -> np.ndarray:
        """[documents] int64, targets of each document in an epoch."""
        return (self._pieces.document_lengths().astype(np.int64) + 1) * self._times()

    def share(self, index: int, count: int) -> Share:
        """Return the pieces of share `index` of `count`: consecutive whole documents, with about equally many targets in each share."""
        sizes = self._sizes()
        start, stop = even_range(sizes, index, count)
        first, last = np.searchsorted(self._pieces.documents()[self._indices], (start, stop))
        return Share(self, int(first), int(last), int(sizes[start:stop].sum()))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Batch:
        """Return a piece, as `Pieces` does."""
        return self._pieces[int(self._indices[index])]

    def __repr__(self) -> str:
        return f"UpsampledPieces({self._pieces!r}, {len(self)} pieces)"
