"""`plamo2 data clean`: clean text and remove duplicates."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.data_files import WorkerOptions, check_jsonl, open_jsonl, print_bad
from plamo2_jax.data.boilerplate import LineCounter
from plamo2_jax.data.clean import CleanConfig, CleanReport
from plamo2_jax.data.clean_chunks import CleanChunk, CleanedChunk, FindLines, FoundLines
from plamo2_jax.data.dedup import DedupReport, LineDeduplicator
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.files import find_files
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import write_whole

_LINES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class CleanOptions(WorkerOptions):
    """Clean text, remove duplicates and write JSON lines.

    The output has the fields id, text and language (if known), and all other fields of the record. If --text-field, --id-field or
    --language-field selects another field, an input field named text, id or language is omitted, and the command prints how many. NaN and
    infinity become null.
    """

    input: Annotated[str, tyro.conf.Positional]
    """A file (.jsonl, one object per line; .txt, one document per file; both also .gz, .xz, .bz2, .zst; .parquet; .arrayrecord), a
    folder, a "pattern", tfds:NAME:SPLIT or bundled:LANGUAGE:SPLIT."""
    output: Annotated[Path, tyro.conf.Positional]
    """File to write: .jsonl, or compressed as .jsonl.gz, .jsonl.xz or .jsonl.bz2."""
    criteria: tyro.conf.OmitArgPrefixes[CleanConfig] = dataclasses.field(default_factory=CleanConfig)
    """Criteria for keeping a document."""
    boilerplate: Literal["edges", "anywhere"] = "edges"
    """Where to remove repeated lines. edges: consecutive or long ones at the beginning and end of documents, such as navigation and
    footers. anywhere: all of them, including headings and statements of programs."""
    boilerplate_documents: int = 20
    """A line that occurs in at least this many documents is boilerplate. 0 keeps all lines and reads the input only once."""
    duplicates: Literal["near", "keep"] = "near"
    """near: remove exact and near-duplicates. keep: remove none."""
    similarity: float = 0.8
    """Smallest Jaccard similarity of the 5-character sets of near-duplicates."""
    report: Path | None = None
    """JSON file for a report: the amount of removed text by cause, and the lines that were removed most often."""


def clean(options: CleanOptions) -> None:
    """Clean text, remove duplicates and write JSON lines."""
    near = DedupConfig(threshold=options.similarity) if options.duplicates == "near" else None
    check_jsonl(options.output)
    _check_paths(options.input, options.output, options.report)
    counter = LineCounter(options.boilerplate_documents, options.boilerplate) if options.boilerplate_documents else None
    repeated = None
    if counter is not None:
        find = FindLines(options.criteria.unicode_form, options.boilerplate)
        found: FoundLines
        for found in options.map_chunks(
            [options.input], find, ReadReport(options.max_bad_rate, quiet=True), "find boilerplate"
        ):
            for document, hashes in found.documents:
                counter.add(document, hashes)
        repeated = counter.boilerplate()
    reading, cleaning, deduplication = ReadReport(options.max_bad_rate), CleanReport(), DedupReport()

    def cleaned() -> Iterator[CleanedChunk]:
        for chunk in options.map_chunks(
            [options.input], CleanChunk(options.criteria, repeated, near), reading, "clean"
        ):
            cleaning.add(chunk.cleaning)
            yield chunk

    with open_jsonl(options.output) as file:
        if near is None:
            for chunk in cleaned():
                file.write(chunk.lines)
            count = cleaning.documents_out
        else:
            with LineDeduplicator(near, options.output.parent) as lines:
                for chunk in cleaned():
                    lines.add(chunk.lines, chunk.hashes)
                count = 0
                for line in lines.kept(deduplication, lambda i, line: str(json.loads(line)["id"])):
                    file.write(line)
                    count += 1
    print_bad(reading)
    print(cleaning.summary())
    if near:
        print(deduplication.summary())
    for line in _losses(cleaning, deduplication):
        print(line)
    print(f"{options.output}: {count} documents")
    if options.report is not None:
        content = {"reading": reading.to_json(), "cleaning": cleaning.to_json()}
        if near:
            content["deduplication"] = deduplication.to_json()
        write_whole(options.report, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def _check_paths(input: str, output: Path, report: Path | None) -> None:
    """Check that no output path is also an input."""
    if report is not None and not report.parent.is_dir():
        raise PlamoError(
            f"--report {report}: the folder {report.parent} does not exist. Create it, or choose another file"
        )
    targets = {os.path.realpath(path): path for path in (output, report) if path is not None}
    if report is not None and len(targets) == 1:
        raise PlamoError(f"--report {report} is also the output file. Choose another file")
    if input.startswith(("tfds:", "bundled:")):
        return
    for file in find_files(input, ReadReport(0.0, quiet=True)):
        if os.path.realpath(file) in targets:
            raise PlamoError(
                f"{targets[os.path.realpath(file)]} is also an input file and would be overwritten. Choose another file"
            )


def _losses(cleaning: CleanReport, deduplication: DedupReport) -> Iterator[str]:
    """Yield report lines: the share of characters removed for each reason, and the most frequently removed lines."""
    total = max(cleaning.chars_in, 1)
    causes = cleaning.lost() | {
        "exact duplicates": deduplication.chars_exact,
        "near-duplicates": deduplication.chars_near,
    }
    shares = ", ".join(f"{cause} {chars / total:.2%}" for cause, chars in causes.items() if chars)
    yield f"characters removed: {sum(causes.values()) / total:.2%} of {cleaning.chars_in:,}" + (
        f" ({shares})" if shares else ""
    )
    if cleaning.removed:
        yield "lines removed most often (--boilerplate-documents 0 keeps them):"
        for line, times in cleaning.most_removed(_LINES_SHOWN):
            yield f"  {times:,} x {line}"
