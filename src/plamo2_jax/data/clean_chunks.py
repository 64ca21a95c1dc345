"""Clean the chunks of an input in worker processes: parse, find boilerplate, clean, write JSON lines, hash for deduplication."""

from __future__ import annotations

import dataclasses
import functools

from plamo2_jax.data.boilerplate import Boilerplate, Where, line_hashes, text_hash
from plamo2_jax.data.chunks import Chunk
from plamo2_jax.data.clean import CleanConfig, CleanReport, clean_documents, normalize_text
from plamo2_jax.data.documents import PartReport, json_line
from plamo2_jax.data.duplicates import Hashes, hash_texts
from plamo2_jax.data.minhash import DedupConfig, Signer


@dataclasses.dataclass(frozen=True)
class FoundLines:
    """Hashes of the documents of a chunk and of their lines, for `boilerplate.LineCounter`."""

    reading: PartReport
    documents: list[tuple[int, set[int]]]


@dataclasses.dataclass(frozen=True)
class FindLines:
    """Function from a chunk to the hashes of its lines. Lines are compared in their cleaned form."""

    unicode_form: str
    where: Where

    def __call__(self, chunk: Chunk) -> FoundLines:
        report, found = PartReport(), []
        for document in chunk.documents(report):
            text = normalize_text(document.text, self.unicode_form)
            found.append((text_hash(text), line_hashes(text, self.where)))
        return FoundLines(report, found)


@dataclasses.dataclass(frozen=True)
class CleanedChunk:
    """The cleaned documents of a chunk."""

    reading: PartReport
    cleaning: CleanReport
    lines: bytes
    """A JSON object and a newline for each document."""
    hashes: Hashes | None
    """Hashes of the texts; None without deduplication."""


@dataclasses.dataclass(frozen=True)
class CleanChunk:
    """Function from a chunk to its cleaned documents."""

    criteria: CleanConfig
    boilerplate: Boilerplate | None
    dedup: DedupConfig | None
    """Settings of the hashes; None: make none."""

    def __call__(self, chunk: Chunk) -> CleanedChunk:
        reading, cleaning = PartReport(), CleanReport()
        records = (document.to_json() for document in chunk.documents(reading))
        documents = list(clean_documents(records, self.criteria, cleaning, self.boilerplate))
        lines = b"".join(json_line(document) for document in documents)
        hashes = None
        if self.dedup is not None:
            hashes = hash_texts((document["text"] for document in documents), _signer(self.dedup))
        return CleanedChunk(reading, cleaning, lines, hashes)


@functools.cache
def _signer(config: DedupConfig) -> Signer:
    return Signer(config)
