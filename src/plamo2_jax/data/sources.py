"""Where text comes from: files, folders, patterns, TensorFlow Datasets and the bundled corpus, all as one stream of documents.

An input is one of
    a file      .jsonl or .ndjson (an object a line), .txt (a document a file), each also .gz, .xz, .bz2 or .zst;
                .parquet (an object a row); .arrayrecord (JSON records)
    a folder    every such file below it, by name; others are passed over, and so are hidden ones
    a pattern   "news/**/*.jsonl.gz"
    tfds:NAME:SPLIT           a prepared data set: "tfds:plamo2_corpus/ja:train[:10%]"
    bundled:LANGUAGE:SPLIT    the corpus in the package: "bundled:ja:train", "bundled:all:heldout"
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.data import readers
from plamo2_jax.data.documents import BadRecord, Document, ReadReport, UnreadableRecord

_SPLIT = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_TFDS = re.compile(rf"tfds:(?P<name>[^:].*?):(?P<split>{_SPLIT}(?:\+{_SPLIT})*)")
_BUNDLED = re.compile(r"bundled:(?P<language>ja|en|all):(?P<split>train|heldout|all)")


def read_documents(
    inputs: Iterable[str | Path],
    *,
    text_field: str = "text",
    id_field: str = "id",
    language_field: str = "language",
    language: str | None = None,
    data_dir: str | Path | None = None,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """The documents of all inputs, in order, as a stream.

    A record that is not a document is counted in `report` with its file and line, and left out.

    Args:
        inputs: see the module's description. They are looked up before the first document comes.
        text_field: field or column with the text; texts are str, or bytes of UTF-8.
        id_field: field with an id; where there is none, file and line name the document.
        language_field: field with the language.
        language: of documents that declare none.
        data_dir: where TFDS data sets lie; None for the default of TFDS.
        report: what was found is put here; it also says how many bad records are too many.

    Raises:
        ValueError: an input does not exist, or is damaged as a whole.
        TooManyBadRecordsError: more records are bad than `report` allows.
    """
    report = ReadReport() if report is None else report
    fields = (text_field, id_field, language_field)
    streams = [
        stream
        for spec in map(str, inputs)
        for stream in _streams(spec, fields, None if data_dir is None else Path(data_dir))
    ]
    return _read(streams, fields, language, report)


def find_files(spec: str) -> list[Path]:
    """The files that a file, a folder or a pattern names, sorted.

    Raises:
        ValueError: there is none, or a file is of no format that can be read.
    """
    path = Path(spec)
    allowed = f"{', '.join(readers.SUFFIXES)} (text and JSON lines also with {', '.join(readers.COMPRESSIONS)})"
    if path.is_dir():
        found = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and readers.format_of(file) and not _hidden(file.relative_to(path))
        ]
        if not found:
            raise ValueError(f"the folder {spec} holds no file that can be read; the suffixes are {allowed}")
        return found
    if path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(spec, recursive=True)) if Path(name).is_file()]
        if not found:
            raise ValueError(f"{spec} is neither a file, a folder, nor a pattern that matches a file")
    for file in found:
        if readers.format_of(file) is None:
            raise ValueError(f"{file} is of no format that can be read; the suffixes are {allowed}")
    return found


def split_documents(documents: Iterable[Document], split: str, fraction: float = 0.01) -> Iterator[Document]:
    """One side of a document-level held-out split that depends on the documents alone, not on their order.

    Documents that share a "pair" in their meta fall on the same side, and so do those of the same text.

    Args:
        documents: both sides.
        split: "all", "train" or "heldout".
        fraction: share of the documents that is held out.

    Raises:
        ValueError: an unknown split, or a fraction outside (0, 1).
    """
    if split not in ("all", "train", "heldout"):
        raise ValueError(f"split is {split!r}; it must be all, train or heldout")
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction is {fraction}; it must lie between 0 and 1")
    for document in documents:
        key = str(document.meta.get("pair") or document.text)
        # Salted: the bundled corpus is split by the same rule, and splitting a side of it again must not find it empty.
        digest = int.from_bytes(hashlib.sha256(b"split:" + key.encode("utf-8")).digest()[:8], "big")
        if split in ("all", "heldout" if digest < fraction * 2**64 else "train"):
            yield document


def to_document(
    fields: Mapping[str, Any], where: str, names: tuple[str, str, str], language: str | None = None
) -> Document:
    """The document of a record.

    Args:
        fields: its values; bytes are taken as UTF-8.
        where: names the document if it has no id.
        names: of the text, the id and the language field.
        language: where the record declares none.

    Raises:
        UnreadableRecord: it has no text that could be used.
    """
    text_field, id_field, language_field = names
    text = fields.get(text_field)
    if text is None:
        raise UnreadableRecord("text missing", f"no value in the field {text_field!r}")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableRecord("invalid UTF-8", f"byte {error.start} of the field {text_field!r}") from None
    if not isinstance(text, str):
        raise UnreadableRecord("text not a string", f"{type(text).__name__} in the field {text_field!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a character, "\ud800", which no encoding can carry.
        raise UnreadableRecord("lone surrogate", f"character {error.start} of the field {text_field!r}") from None
    if not text.strip():
        raise UnreadableRecord("empty text", f"nothing but white space in the field {text_field!r}")
    meta = {name: _plain(value) for name, value in fields.items() if name not in names}
    declared = _plain(fields.get(language_field)) or language
    name = _plain(fields.get(id_field))
    return Document(
        text=text,
        id=where if name is None or name == "" else str(name),
        meta=meta if declared is None else {"language": declared, **meta},
    )


def _read(
    streams: list[readers.Records], names: tuple[str, str, str], language: str | None, report: ReadReport
) -> Iterator[Document]:
    for stream in streams:
        for where, fields in stream:
            try:
                if isinstance(fields, UnreadableRecord):
                    raise fields
                document = to_document(fields, where, names, language)
            except UnreadableRecord as error:
                report.count_bad(BadRecord(where, error.reason, error.detail))
                continue
            report.count_good()
            yield document
        report.files += 1
    report.judge()


def _streams(spec: str, names: tuple[str, str, str], data_dir: Path | None) -> list[readers.Records]:
    """The readers of one input, not yet started."""
    if spec.startswith("tfds:"):
        match = _TFDS.fullmatch(spec)
        if not match:
            raise ValueError(f"{spec} is not allowed; write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
        return [readers.read_tfds(match["name"], match["split"], data_dir)]
    if spec.startswith("bundled:"):
        match = _BUNDLED.fullmatch(spec)
        if not match:
            raise ValueError(
                f"{spec} is not allowed; write bundled:LANGUAGE:SPLIT, of ja, en or all, and train, heldout or all"
            )
        return [readers.read_bundled(match["language"], match["split"])]
    return [_open(file, names) for file in find_files(spec)]


def _open(file: Path, names: tuple[str, str, str]) -> readers.Records:
    match readers.format_of(file):
        case "jsonl":
            return readers.read_jsonl(file)
        case "text":
            return readers.read_text(file, names[0])
        case "parquet":
            return readers.read_parquet(file, names)
        case _:
            return readers.read_array_record(file)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: bytes as text, numpy scalars as numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
