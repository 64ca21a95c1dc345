"""Score the chunks of an input with a quality model in worker processes."""

from __future__ import annotations

import dataclasses

import numpy as np

from plamo2_jax.data.chunks import Chunk
from plamo2_jax.data.documents import PartReport, json_line
from plamo2_jax.data.quality import QualityModel


@dataclasses.dataclass(frozen=True)
class ScoredChunk:
    """The scored documents of a chunk."""

    reading: PartReport
    histogram: np.ndarray
    """Number of documents by tenth of the probability, [10] int."""
    lines: bytes
    """A JSON object and a newline for each written document."""
    written: int
    """Number of lines."""


@dataclasses.dataclass(frozen=True)
class ScoreChunk:
    """Function from a chunk to its documents with the probability that they are good.

    Attributes:
        model: Quality model.
        field: Field for the probability.
        at_least: Documents with a lower probability are omitted.
    """

    model: QualityModel
    field: str
    at_least: float

    def __call__(self, chunk: Chunk) -> ScoredChunk:
        reading, histogram, lines = PartReport(), np.zeros(10, int), []
        for document in chunk.documents(reading):
            probability = self.model.probability(document.text)
            histogram[min(9, int(probability * 10))] += 1
            if probability >= self.at_least:
                lines.append(json_line(document.to_json() | {self.field: round(probability, 6)}))
        return ScoredChunk(reading, histogram, b"".join(lines), len(lines))
