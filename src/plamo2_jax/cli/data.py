"""`plamo2 data`: clean text, export the bundled corpus or instructions made from it, write tokenized shards and look into them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro

from plamo2_jax.cli.arguments import call_subcommand

if TYPE_CHECKING:
    from plamo2_jax.data.documents import ReadReport
    from plamo2_jax.data.shards import Shards
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

Split = Literal["all", "train", "heldout"]


def prepare(
    input: tuple[str, ...],
    tokenizer: Path,
    output: Path,
    *,
    split: Split = "all",
    heldout_fraction: float = 0.01,
    text_field: str = "text",
    id_field: str = "id",
    language_field: str = "language",
    language: str | None = None,
    data_dir: Path | None = None,
    max_bad_rate: float = 0.01,
    tokens_per_shard: int = 1 << 26,
    processes: int = 0,
    overwrite: bool = False,
) -> None:
    """Tokenize text into a folder of shards, which training and evaluation read.

    Args:
        input: Files (.jsonl, .txt, also .gz, .xz, .bz2, .zst; .parquet; .arrayrecord), folders, "patterns/*.jsonl",
            tfds:NAME:SPLIT, or the corpus in the package: bundled:ja:train, bundled:all:heldout.
        tokenizer: A tokenizer.jsonl, or the folder that holds it.
        output: Folder to create; it appears complete or not at all.
        split: Write only one side of a document-level held-out split. (Inputs named bundled: are split already.)
        heldout_fraction: Share of the documents on the held-out side of --split.
        text_field: Field or column that holds the text.
        id_field: Field or column that holds an id, for messages.
        language_field: Field or column that holds the language; documents are counted by it.
        language: Language of documents that declare none.
        data_dir: Where TensorFlow Datasets were prepared; left out, its default.
        max_bad_rate: Share of records that may be bad (not UTF-8, not JSON, without text) before reading fails.
        tokens_per_shard: Start a new shard after this many tokens.
        processes: Worker processes that tokenize; 0 for none. The result is the same.
        overwrite: Replace the output folder if it holds shards.
    """
    from plamo2_jax.data.shard_writer import write_shards
    from plamo2_jax.data.sources import read_documents, split_documents
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    report = _report(max_bad_rate)
    documents = read_documents(
        input,
        text_field=text_field,
        id_field=id_field,
        language_field=language_field,
        language=language,
        data_dir=data_dir,
        report=report,
    )
    manifest = write_shards(
        split_documents(documents, split, heldout_fraction),
        Tokenizer.load(tokenizer),
        output,
        report=report,
        tokens_per_shard=tokens_per_shard,
        processes=processes,
        overwrite=overwrite,
    )
    _print_bad(report)
    for line in _statistics(manifest):
        print(line)
    print(output)


def inspect(
    shards: Annotated[Path, tyro.conf.Positional],
    *,
    tokenizer: Path | None = None,
    documents: int = 3,
    characters: int = 200,
    sequence_length: int = 2048,
    packing_bins: int = 256,
) -> None:
    """Print what a folder of shards holds: statistics, packing efficiency and, with a tokenizer, some documents.

    Args:
        shards: A folder that `plamo2 data prepare` wrote.
        tokenizer: The tokenizer.jsonl it was made with, or the folder that holds it; without it no text is shown.
        documents: Documents to show, evenly spaced.
        characters: Characters to show of each.
        sequence_length: Length of the rows in which packing is measured.
        packing_bins: Rows that are filled side by side.
    """
    for name, value, least in (
        ("--sequence-length", sequence_length, 2),
        ("--packing-bins", packing_bins, 1),
        ("--documents", documents, 0),
        ("--characters", characters, 0),
    ):
        if value < least:
            raise ValueError(f"{name} {value} is not allowed: it must be at least {least}")

    from plamo2_jax.data.packing import measure_packing
    from plamo2_jax.data.shards import open_shards
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    loaded = None if tokenizer is None else Tokenizer.load(tokenizer)
    opened = open_shards(shards, loaded)
    for line in _statistics(opened.manifest):
        print(line)
    print(f"tokenizer: {opened.manifest['tokenizer']['fingerprint']}")
    print(_length_line(opened))
    efficiency = measure_packing(opened, sequence_length, packing_bins)
    print(f"packing: {efficiency:.2%} of positions used at length {sequence_length} with {packing_bins} bins")
    if loaded is not None:
        _print_documents(opened, loaded, documents, characters)


def corpus(
    output: Path,
    *,
    language: Literal["ja", "en"] | None = None,
    split: Split = "train",
) -> None:
    """Write the bundled corpus as JSON lines.

    Args:
        output: File to write; .jsonl, or compressed .jsonl.gz, .jsonl.xz, .jsonl.bz2.
        language: One language; left out, both.
        split: The side of the corpus's held-out split.
    """
    from plamo2_jax.data.corpus import documents

    with write_jsonl(output) as write:
        count = sum(map(write, documents(language, split)))
    print(f"{output}: {count} documents")


def clean(
    input: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    text_field: str = "text",
    id_field: str = "id",
    language_field: str = "language",
    languages: tuple[Literal["ja", "en", "other"], ...] = ("ja", "en"),
    unicode_form: Literal["none", "NFC", "NFKC"] = "none",
    min_chars: int = 50,
    max_duplicate_lines: float = 0.3,
    max_top_ngram: float = 0.2,
    boilerplate_documents: int = 20,
    duplicates: Literal["near", "keep"] = "near",
    similarity: float = 0.8,
    data_dir: Path | None = None,
    max_bad_rate: float = 0.01,
) -> None:
    """Clean text and remove duplicates: any input in, JSON lines out.

    Args:
        input: A file, folder, "pattern", tfds:NAME:SPLIT or bundled:LANGUAGE:SPLIT.
        output: File to write; .jsonl, or compressed .jsonl.gz, .jsonl.xz, .jsonl.bz2.
        text_field: Field or column that holds the text.
        id_field: Field or column that holds an id.
        language_field: Field or column that holds the language; a text that looks like another one is dropped.
        languages: Languages that pass, recognised by script and common words.
        unicode_form: Normal form to bring the text into; "none" leaves it as its author wrote it.
        min_chars: Shorter documents are dropped.
        max_duplicate_lines: Drop documents with a larger share of characters in lines seen before in the document.
        max_top_ngram: Drop documents of which one repeated run of 10 characters makes up a larger share.
        boilerplate_documents: Remove lines that occur in this many documents; 0 keeps them and reads the input only once.
        duplicates: near: remove exact and near-duplicates. keep: remove none.
        similarity: Jaccard similarity of 5-character sets from which two documents are near-duplicates.
        data_dir: Where TensorFlow Datasets were prepared; left out, its default.
        max_bad_rate: Share of records that may be bad before reading fails.
    """
    from plamo2_jax.data.clean import CleanConfig, CleanReport, boilerplate_lines, clean_documents, normalize_text
    from plamo2_jax.data.dedup import DedupConfig, DedupReport, deduplicate
    from plamo2_jax.data.sources import read_documents

    if output.exists() and Path(input).exists() and output.samefile(input):
        raise ValueError(f"{output} is the input too; give another file, so that the text as it was is not lost")
    config = CleanConfig(unicode_form, languages, min_chars, max_duplicate_lines, max_top_ngram)
    dedup_config = DedupConfig(threshold=similarity)

    def records(report: ReadReport, note: str) -> Iterator[dict[str, Any]]:
        from plamo2_jax.progress import tqdm

        documents = read_documents(
            [input],
            text_field=text_field,
            id_field=id_field,
            language_field=language_field,
            data_dir=data_dir,
            report=report,
        )
        for document in tqdm(documents, note, unit="doc"):
            yield document.to_json()

    boilerplate: frozenset[str] = frozenset()
    if boilerplate_documents:
        # Lines are compared as they will be once cleaned.
        normal = (
            {"text": normalize_text(record["text"], unicode_form)}
            for record in records(_report(max_bad_rate), "find boilerplate")
        )
        boilerplate = boilerplate_lines(normal, boilerplate_documents)
    report, cleaning, deduplication = _report(max_bad_rate), CleanReport(), DedupReport()
    documents: Iterable[dict] = clean_documents(records(report, "clean"), config, cleaning, boilerplate)
    if duplicates == "near":
        documents = deduplicate(documents, dedup_config, deduplication, progress=False)
    with write_jsonl(output) as write:
        count = sum(map(write, documents))
    _print_bad(report)
    print(cleaning.summary())
    if duplicates == "near":
        print(deduplication.summary())
    print(f"{output}: {count} documents")


def instructions(output: Path, *, per_page: int = 6, limit: int | None = None, seed: int = 0) -> None:
    """Write conversations made from the bundled corpus, with rules to check answers by: train.jsonl and heldout.jsonl.

    Questions, summaries, titles, headings, JSON records and translations between Japanese and English, all in the words of the corpus
    and under its licences. `plamo2 sft` and `plamo2 prefer` read them. No page is on both sides.

    Args:
        output: Folder to write into; it may exist, as long as neither file does.
        per_page: Conversations made from a page and its translation, at most.
        limit: Conversations in a file, at most; evenly chosen.
        seed: Of the choice among what a page offers, and of the wording.
    """
    from plamo2_jax.data.instructions import count_tasks
    from plamo2_jax.data.instructions import instructions as lines_of

    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} is not allowed: it must be at least 1")
    for split in ("train", "heldout"):
        if (output / f"{split}.jsonl").exists():
            raise ValueError(f"{output / f'{split}.jsonl'} exists; remove it or give another folder")
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        lines = list(lines_of(split, per_page=per_page, seed=seed))
        count = len(lines) if limit is None else min(limit, len(lines))
        lines = [lines[i * len(lines) // count] for i in range(count)]
        path = output / f"{split}.jsonl"
        with write_jsonl(path) as write:
            count = sum(map(write, lines))
        tasks = ", ".join(f"{name} {number}" for name, number in count_tasks(lines).items())
        print(f"{path}: {count} conversations ({tasks})")


SUBCOMMANDS = {
    "prepare": prepare,
    "inspect": inspect,
    "corpus": corpus,
    "clean": clean,
    "instructions": instructions,
}


def main(argv: list[str]) -> int | None:
    """Runs `plamo2 data prepare|inspect|corpus|clean|instructions`."""
    return call_subcommand(SUBCOMMANDS, argv, "plamo2 data")


def _report(max_bad_rate: float) -> ReadReport:
    from plamo2_jax.data.documents import ReadReport

    return ReadReport(max_bad_rate=max_bad_rate)


def _print_bad(report: ReadReport) -> None:
    """The account of bad records, on stderr: the counts, and the first ones verbatim."""
    print(report.summary(), file=sys.stderr)
    for record in report.first:
        print(f"  {record}", file=sys.stderr)
    if report.bad > len(report.first):
        print(f"  and {report.bad - len(report.first)} more", file=sys.stderr)


def _statistics(manifest: dict[str, Any]) -> Iterator[str]:
    rows = {**manifest["languages"], "all": manifest} if len(manifest["languages"]) > 1 else manifest["languages"]
    for language, counts in rows.items():
        yield (
            f"{language}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes, "
            f"{counts['bytes'] / max(counts['tokens'], 1):.2f} bytes a token"
        )
    size = sum(shard["size"] for shard in manifest["shards"])
    yield f"shards: {len(manifest['shards'])}, {size:,} bytes on disk"
    if manifest.get("reading"):
        yield f"bad records when read: {manifest['reading']['bad']} of {manifest['reading']['records']}"


def _length_line(shards: Shards) -> str:
    import numpy as np

    least, median, p95, most = np.percentile(shards.lengths, [0, 50, 95, 100])
    return f"tokens a document: least {least:,.0f}, median {median:,.0f}, 95 % below {p95:,.0f}, most {most:,.0f}"


def _print_documents(shards: Shards, tokenizer: Tokenizer, count: int, characters: int) -> None:
    for position in range(min(count, len(shards))):
        index = position * len(shards) // min(count, len(shards))
        document = shards[index]
        text = tokenizer.decode(document.ids)
        shown = text if len(text) <= characters else text[:characters] + "…"
        print(f"\n--- document {index}: {len(document.ids):,} tokens, {document.bytes:,} bytes\n{shown}")


@contextlib.contextmanager
def write_jsonl(path: Path) -> Iterator[Any]:
    """A function that appends one object to the file and returns 1; the file appears when all went well."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2")):
        raise ValueError(f"{path} must end in .jsonl, .jsonl.gz, .jsonl.xz or .jsonl.bz2")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _open_to_write(partial, path.suffix) as file:

            def write(record: dict[str, Any]) -> int:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                return 1

            yield write
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open_to_write(path: Path, suffix: str) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix, open)(path, "wb")
