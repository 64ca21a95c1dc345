"""Seeds: segments of documents, records with fields, and numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from plamo2_jax.data.clean import guess_language
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.readers import read_records
from plamo2_jax.data.sources import read_documents
from plamo2_jax.synth.config import SeedsConfig
from plamo2_jax.synth.record import Seed, Source


def document_seeds(config: SeedsConfig, report: ReadReport | None = None) -> Iterator[Seed]:
    """Yield the segments of all documents."""
    documents = read_documents(
        config.inputs, text_field=config.text_field, id_field=config.id_field, report=report or ReadReport()
    )
    for document in documents:
        source = source_of(document, config.license)
        language = document.language if document.language != "unknown" else guess_language(document.text)
        generation = document.meta.get("generation", 0)
        for number, text in enumerate(segments(document.text, config.max_characters)):
            if len(text) >= config.min_characters:
                yield Seed(
                    f"{document.id}#{number}" if len(text) < len(document.text.strip()) else document.id,
                    language,
                    text,
                    {"title": document.meta["title"]} if isinstance(document.meta.get("title"), str) else {},
                    (source,),
                    generation if isinstance(generation, int) else 0,
                )


def source_of(document: Document, license: str) -> Source:
    """Return the provenance of a document. `license` is used if the document declares none."""
    declared, url = document.meta.get("license"), document.meta.get("url")
    return Source(
        document.id,
        hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest(),
        declared if isinstance(declared, str) and declared else license,
        url if isinstance(url, str) else None,
    )


def segments(text: str, longest: int) -> Iterator[str]:
    """Yield pieces of at most `longest` characters that end where paragraphs end, or lines if a paragraph is longer."""
    piece = ""
    for line in text.strip().split("\n"):
        while len(line) > longest:
            if piece.strip():
                yield piece.strip()
            piece, line = "", line
            yield line[:longest]
            line = line[longest:]
        if len(piece) + 1 + len(line) > longest and piece.strip():
            yield piece.strip()
            piece = ""
        piece = f"{piece}\n{line}" if piece else line
    if piece.strip():
        yield piece.strip()


def field_seeds(config: SeedsConfig, report: ReadReport | None = None) -> Iterator[Seed]:
    """Yield a seed for each JSON line of `fields`."""
    report = report or ReadReport()
    for spec in config.fields:
        for where, record in read_records(spec, report=report):
            values = {name: value for name, value in record.items() if name not in ("id", "language", "license")}
            id, language, license = (record.get(name) for name in ("id", "language", "license"))
            text = values.get("text")
            name = id if isinstance(id, str) and id else where
            source = Source(
                name,
                hashlib.sha256(repr(sorted(values.items())).encode("utf-8", "surrogatepass")).hexdigest(),
                license if isinstance(license, str) and license else config.license,
            )
            yield Seed(
                name,
                language if isinstance(language, str) and language else "unknown",
                text if isinstance(text, str) else "",
                values,
                (source,),
            )


def numbered_seeds(count: int, language: str) -> Iterator[Seed]:
    """Yield seeds without content, for recipes that need none."""
    for number in range(count):
        yield Seed(f"number/{number}", language)
