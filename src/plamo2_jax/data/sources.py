"""Text sources: files, folders, patterns, TensorFlow Datasets and the bundled corpus, read as one stream of documents.

An input is one of
    a file      .jsonl or .ndjson (an object per line), .txt (the file is one document), each also .gz, .xz, .bz2 or .zst;
                .parquet (an object per row); .arrayrecord (JSON records)
    a folder    every such file below it, by name; other files and hidden ones are skipped, links are followed
    a pattern   "news/**/*.jsonl.gz"
    tfds:NAME:SPLIT           a prepared data set: "tfds:plamo2_corpus/ja:train[:10%]"
    bundled:LANGUAGE:SPLIT    the corpus in the package: "bundled:ja:train", "bundled:all:heldout"
A file that several inputs, patterns or links name is read once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plamo2_jax.data import corpus, readers
from plamo2_jax.data.documents import Document, ReadReport, UnreadableRecord
from plamo2_jax.data.files import each_once, find_files
from plamo2_jax.errors import PlamoError

_SPLIT = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_TFDS = re.compile(rf"tfds:(?P<name>[^:].*?):(?P<split>{_SPLIT}(?:\+{_SPLIT})*)")
_BUNDLED = re.compile(r"bundled:(?P<language>ja|en|all):(?P<split>train|heldout|all)")


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields of a record that are used: the arguments of `read_documents` that end in `_field`."""

    text: str = "text"
    id: str = "id"
    language: str = "language"
    pair: str | None = None

    def used(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(dict.fromkeys(name for name in (self.text, self.id, self.language, self.pair) if name is not None))


def read_documents(
    inputs: Iterable[str | Path],
    *,
    text_field: str = "text",
    id_field: str = "id",
    language_field: str = "language",
    pair_field: str | None = None,
    language: str | None = None,
    data_dir: str | Path | None = None,
    report: ReadReport | None = None,
    max_record_bytes: int = readers.MAX_RECORD_BYTES,
    keep_fields: bool = True,
) -> Iterator[Document]:
    """Yield the documents of all inputs in order.

    A record that is not a document is counted in `report` with its file and line, and omitted.

    Args:
        inputs: Inputs of the kinds listed at the top of this module. They are checked before the first document is read.
        text_field: Field or column with the text, which is str or UTF-8 bytes.
        id_field: Field with the id. Without one, file and line name the document.
        language_field: Field with the language.
        pair_field: Field with the pair key. Documents with the same key are on the same side of a held-out split.
        language: Language of documents that declare none.
        data_dir: Folder of TFDS data sets; None: the default of TFDS.
        report: Report that counts records and limits the share of bad ones.
        max_record_bytes: Largest size of a line, text file, row or record, in bytes. A larger one is a bad record.
        keep_fields: Put the other fields of a record into `meta`. If false, only the used columns are read from Parquet.

    Raises:
        PlamoError: An input does not exist, or is damaged.
        TooManyBadRecordsError: The share of bad records exceeds the limit of `report`.
    """
    report = ReadReport() if report is None else report
    names = FieldNames(text_field, id_field, language_field, pair_field)
    streams = open_streams(
        inputs,
        names,
        data_dir=data_dir,
        report=report,
        max_record_bytes=max_record_bytes,
        columns=None if keep_fields else names.used(),
    )
    return _read(streams, language, report, keep_fields)


def open_streams(
    inputs: Iterable[str | Path],
    names: FieldNames,
    *,
    data_dir: str | Path | None = None,
    report: ReadReport,
    max_record_bytes: int = readers.MAX_RECORD_BYTES,
    columns: tuple[str, ...] | None = None,
) -> list[tuple[readers.Records, FieldNames]]:
    """Return the records of all files of the inputs in order, with the names of their fields. They are read later, by `to_documents`.

    Args:
        inputs, data_dir, max_record_bytes: See `read_documents`.
        names: Names of the fields. The bundled corpus has its own.
        report: Report that notes files that are skipped.
        columns: Columns of Parquet files to read; None: all.

    Raises:
        PlamoError: An input does not exist.
    """
    if max_record_bytes < 1:
        raise PlamoError(f"max_record_bytes={max_record_bytes} is not allowed: it must be at least 1")
    seen: dict[str | tuple[int, int], Path] = {}
    streams = []
    for spec in map(str, inputs):
        found = _named_stream(spec, None if data_dir is None else Path(data_dir), max_record_bytes)
        if found is not None:
            streams.append((found, FieldNames(pair="pair") if spec.startswith("bundled:") else names))
            continue
        for file in each_once(find_files(spec, report), report, seen):
            records = readers.open_records(file, limit=max_record_bytes, columns=columns, text_field=names.text)
            streams.append((records, names))
    return streams


def side_of(document: Document, fraction: float = 0.01) -> str:
    """Return the side of a document in the held-out split, "train" or "heldout". It depends only on the document.

    Documents with the same `pair`, and documents with the same text, are on the same side.

    Args:
        document: Document to assign.
        fraction: Share of held-out documents, between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise PlamoError(f"the held-out fraction is {fraction}: it must be between 0 and 1")
    key = document.pair or document.text
    # The hash is salted: the bundled corpus is split by the same rule, and splitting one of its sides again must not give an empty side.
    digest = int.from_bytes(hashlib.sha256(b"split:" + key.encode("utf-8")).digest()[:8], "big")
    return "heldout" if digest < fraction * 2**64 else "train"


def split_documents(documents: Iterable[Document], split: str, fraction: float = 0.01) -> Iterator[Document]:
    """Yield the documents of one side of the split, "train" or "heldout", or "all". `fraction` is the share of held-out documents."""
    if split not in ("all", "train", "heldout"):
        raise PlamoError(f"split={split!r} is not allowed: it must be all, train or heldout")
    for document in documents:
        if split == "all" or side_of(document, fraction) == split:
            yield document


def to_documents(
    records: readers.Records,
    names: FieldNames,
    report: ReadReport,
    language: str | None = None,
    keep_fields: bool = True,
) -> Iterator[Document]:
    """Yield the documents of the records of a file, and count in `report`. The arguments are the same as for `read_documents`."""
    for where, fields in readers.good_records(records, report, (names.text,), count_changes=keep_fields):
        try:
            document = _to_document(fields, where, names, language, report.changes if keep_fields else None)
        except UnreadableRecord as error:
            report.count_bad(where, error)
            continue
        report.records += 1
        yield document


def _read(
    streams: list[tuple[readers.Records, FieldNames]], language: str | None, report: ReadReport, keep_fields: bool
) -> Iterator[Document]:
    for records, names in streams:
        yield from to_documents(records, names, report, language, keep_fields)
    report.judge()


def _to_document(
    fields: Mapping[str, Any], where: str, names: FieldNames, language: str | None, changes: Counter[str] | None
) -> Document:
    """Return the document of a record, or raise UnreadableRecord if it has no text.

    Unused fields named "text", "id" or "language" are counted in `changes` and omitted; without `changes`, all unused fields are.
    """
    text = fields.get(names.text)
    if text is None:
        raise UnreadableRecord("text missing", _missing_text(fields, names))
    if not isinstance(text, str):
        raise UnreadableRecord("text not a string", f"{type(text).__name__} in the field {names.text!r}")
    if not text.strip():
        raise UnreadableRecord("empty text", f"nothing but white space in the field {names.text!r}")
    others = {}
    if changes is not None:
        others = {name: value for name, value in fields.items() if name not in (names.text, names.id, names.language)}
        for name in sorted({"text", "id", "language"} & others.keys()):
            # These fields have another meaning here, and would overwrite the fields of the same name in the output.
            del others[name]
            changes[f"omitted: the field {name!r}, which was not selected as the {name}"] += 1
    declared = fields.get(names.language) or language
    name = fields.get(names.id)
    pair = None if names.pair is None else fields.get(names.pair)
    return Document(
        text=text,
        id=where if name is None or name == "" else str(name),
        meta=others if declared is None else {"language": declared, **others},
        pair="" if pair is None else str(pair),
    )


def _named_stream(spec: str, data_dir: Path | None, limit: int) -> readers.Records | None:
    """Return the records of a tfds: or bundled: input, which are read later, or None for other inputs."""
    if spec.startswith("tfds:"):
        match = _TFDS.fullmatch(spec)
        if not match:
            raise PlamoError(f"{spec} is not allowed: it must be tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
        return readers.read_tfds(match["name"], match["split"], data_dir, limit)
    if spec.startswith("bundled:"):
        match = _BUNDLED.fullmatch(spec)
        if not match:
            raise PlamoError(
                f"{spec} is not allowed: it must be bundled:LANGUAGE:SPLIT with ja, en or all, and train, heldout or all"
            )
        language = None if match["language"] == "all" else match["language"]
        return ((document["id"], document) for document in corpus.documents(language, match["split"]))
    return None


def _missing_text(fields: Mapping[str, Any], names: FieldNames) -> str:
    """Describe which fields the record has, and which option selects the field that looks like the text."""
    texts = {name: len(value) for name, value in fields.items() if isinstance(value, str) and name not in names.used()}
    shown = ", ".join(name[:40] for name in list(fields)[:8]) + (", ..." if len(fields) > 8 else "")
    found = f"the fields are {shown}" if fields else "the record has no fields"
    advice = f". Name another one: --text-field {max(texts, key=texts.__getitem__)[:40]}" if texts else ""
    return f"no value in the field {names.text!r}; {found}{advice}"
