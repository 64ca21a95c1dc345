"""`plamo2 data`: clean text, remove duplicates, export the bundled corpus, write and inspect tokenized shards."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from plamo2_jax.cli.arguments import call_subcommand
from plamo2_jax.cli.data_beam import beam
from plamo2_jax.cli.data_clean import clean
from plamo2_jax.cli.data_deduplicate import deduplicate
from plamo2_jax.cli.data_files import ReadOptions, print_bad, write_jsonl
from plamo2_jax.cli.data_quality import quality, score
from plamo2_jax.data.clean import guess_language
from plamo2_jax.data.corpus import documents as corpus_documents
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.instructions import count_tasks
from plamo2_jax.data.instructions import instructions as lines_of
from plamo2_jax.data.shard_writer import write_sides
from plamo2_jax.data.shards import Shards, open_shards
from plamo2_jax.data.sources import side_of, split_documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class PrepareOptions(ReadOptions):
    """Tokenize text into a folder of shards, which training and evaluation read."""

    input: tuple[str, ...]
    """Files (.jsonl, one object per line; .txt, one document per file; both also .gz, .xz, .bz2, .zst; .parquet; .arrayrecord),
    folders, "patterns/*.jsonl", tfds:NAME:SPLIT, or the bundled corpus, bundled:ja:train or bundled:all:heldout. A file that is
    named several times is read once."""
    tokenizer: Path
    """A tokenizer.jsonl, or the folder that contains it."""
    output: Path
    """Folder to create. It appears when it is complete."""
    split: Literal["all", "train", "heldout", "both"] = "all"
    """Part of the documents to write. train, heldout: one side of a split by document. both: write OUTPUT/train and OUTPUT/heldout in one
    pass. The bundled corpus is already split."""
    heldout_fraction: float = 0.01
    """Share of the documents that --split holds out."""
    pair_field: str | None = None
    """Field or column with the pair key. Documents with the same key, such as a page and its translation, are on the same side of
    --split. So are documents with the same text."""
    language: str | None = None
    """Language of documents without a language field. Default: it is detected from the script and common words."""
    against: tuple[str, ...] = ()
    """Evaluation data for decontamination. Documents that contain one of its items are removed, and the manifest counts them. JSON lines,
    Parquet or ArrayRecord files: each record is an item. Text files: each line is an item. task:NAME or task:NAME=PATH: the questions of a
    task of plamo2 evaluate. bundled:LANGUAGE:SPLIT: pages of the bundled corpus."""
    against_fields: tuple[str, ...] = ()
    """Fields of the records of --against that are compared. Default: all fields that hold text."""
    tokens_per_shard: int = 1 << 26
    """Number of tokens after which a new shard starts."""
    processes: int = 0
    """Number of worker processes that tokenize; 0 tokenizes in the main process. The result does not depend on it."""
    overwrite: bool = False
    """Replace the output folder if it holds shards."""


def prepare(options: PrepareOptions) -> None:
    """Tokenize text into a folder of shards, which training and evaluation read."""
    report, both = ReadReport(options.max_bad_rate), options.split == "both"
    documents = options.documents(
        options.input, report, pair_field=options.pair_field, language=options.language, keep_fields=False
    )
    if not 0 < options.heldout_fraction < 1:
        raise PlamoError(f"--heldout-fraction {options.heldout_fraction} is not allowed: it must be between 0 and 1")
    contamination = None
    if options.against:
        from plamo2_jax.cli.against import evaluation_items
        from plamo2_jax.data.contamination import ContaminationIndex, ContaminationReport, decontaminate

        contamination = ContaminationReport()
        index = ContaminationIndex(evaluation_items(options.against, options.against_fields))
        documents = decontaminate(documents, index, contamination)
    if both:
        sides = {side: options.output / side for side in ("train", "heldout")}
    else:
        sides = {options.split: options.output}
        documents = split_documents(documents, options.split, options.heldout_fraction)
    manifests = write_sides(
        _recognised(documents),
        Tokenizer.load(options.tokenizer),
        sides,
        lambda document: side_of(document, options.heldout_fraction) if both else options.split,
        report=report,
        contamination=contamination,
        tokens_per_shard=options.tokens_per_shard,
        processes=options.processes,
        overwrite=options.overwrite,
    )
    print_bad(report)
    if contamination is not None:
        print(contamination.summary(), file=sys.stderr)
        for match in contamination.first:
            print(f"  {match['document']}: {match['item']} ({match['rule']})", file=sys.stderr)
    for side, folder in sides.items():
        for line in _statistics(manifests[side]):
            print(line)
        print(folder)


def _recognised(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents, and recognise the language of documents without a language."""
    for document in documents:
        if document.language == "unknown":
            document = dataclasses.replace(document, meta={**document.meta, "language": guess_language(document.text)})
        yield document


def inspect(
    shards: Annotated[Path, tyro.conf.Positional],
    *,
    tokenizer: Path | None = None,
    documents: int = 3,
    characters: int = 200,
    sequence_length: int = 2048,
    packing_bins: int = 256,
) -> None:
    """Describe a folder of shards: statistics, packing efficiency and, with a tokenizer, some documents.

    Args:
        shards: A folder that `plamo2 data prepare` wrote.
        tokenizer: The tokenizer.jsonl of the shards, or the folder that contains it. Default: no text is shown.
        documents: Number of documents to show, evenly spaced.
        characters: Number of characters to show of each document.
        sequence_length: Row length for which packing is measured.
        packing_bins: Number of rows that packing fills at the same time.
    """
    require_at_least(2, sequence_length=sequence_length)
    require_at_least(1, packing_bins=packing_bins)
    require_at_least(0, documents=documents, characters=characters)
    from plamo2_jax.data.packing import measure_packing

    loaded = None if tokenizer is None else Tokenizer.load(tokenizer)
    opened = open_shards(shards, loaded)
    for line in _statistics(opened.manifest):
        print(line)
    print(f"tokenizer: {opened.manifest['tokenizer']['fingerprint']}")
    least, median, p95, most = np.percentile(opened.lengths, [0, 50, 95, 100])
    lengths = f"minimum {least:,.0f}, median {median:,.0f}, 95 % below {p95:,.0f}, maximum {most:,.0f}"
    print(f"tokens per document: {lengths}")
    efficiency = measure_packing(opened, sequence_length, packing_bins)
    print(
        f"packing: {efficiency:.2%} of the positions used at sequence length {sequence_length} with {packing_bins} bins"
    )
    if loaded is not None:
        _print_documents(opened, loaded, documents, characters)


def corpus(
    output: Path,
    *,
    language: Literal["ja", "en"] | None = None,
    split: Literal["all", "train", "heldout"] = "train",
) -> None:
    """Write the bundled corpus as JSON lines.

    Args:
        output: File to write: .jsonl, or compressed as .jsonl.gz, .jsonl.xz or .jsonl.bz2.
        language: Language to write. Default: both.
        split: Side of the held-out split of the corpus.
    """
    with write_jsonl(output) as write:
        count = sum(map(write, corpus_documents(language, split)))
    print(f"{output}: {count} documents")


def instructions(output: Path, *, per_page: int = 6, limit: int | None = None, seed: int = 0) -> None:
    """Write conversations made from the bundled corpus, with rules to check answers: train.jsonl and heldout.jsonl.

    The conversations are questions, summaries, titles, headings, JSON records and translations between Japanese and English. All texts come
    from the corpus and have its licences. `plamo2 sft` and `plamo2 preference-data` read the files. No page occurs in both files.

    Args:
        output: Folder to write into; it may exist, but neither file may.
        per_page: Largest number of conversations per page and its translation.
        limit: Largest number of conversations per file; they are chosen evenly.
        seed: Random seed of the choice of conversations and of their wording.
    """
    require_at_least(1, limit=limit)
    files = {split: output / f"{split}.jsonl" for split in ("train", "heldout")}
    for path in files.values():
        if path.exists():
            raise PlamoError(f"{path} exists. Remove it or choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    for split, path in files.items():
        lines = list(lines_of(split, per_page=per_page, seed=seed))
        count = len(lines) if limit is None else min(limit, len(lines))
        lines = [lines[i * len(lines) // count] for i in range(count)]
        with write_jsonl(path) as write:
            count = sum(map(write, lines))
        tasks = ", ".join(f"{name} {number}" for name, number in count_tasks(lines).items())
        print(f"{path}: {count} conversations ({tasks})")


SUBCOMMANDS = {
    "prepare": prepare,
    "inspect": inspect,
    "corpus": corpus,
    "clean": clean,
    "deduplicate": deduplicate,
    "quality": quality,
    "score": score,
    "beam": beam,
    "instructions": instructions,
}


def main(argv: list[str]) -> int | None:
    """Run the command."""
    return call_subcommand(SUBCOMMANDS, argv, "plamo2 data")


def _statistics(manifest: dict[str, Any]) -> Iterator[str]:
    rows = {**manifest["languages"], "all": manifest} if len(manifest["languages"]) > 1 else manifest["languages"]
    for language, counts in rows.items():
        yield (
            f"{language}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes, "
            f"{counts['bytes'] / max(counts['tokens'], 1):.2f} bytes per token"
        )
    size = sum(shard["size"] for shard in manifest["shards"])
    yield f"shards: {len(manifest['shards'])}, {size:,} bytes on disk"
    if manifest.get("reading"):
        yield f"bad records in the input: {manifest['reading']['bad']} of {manifest['reading']['records']}"


def _print_documents(shards: Shards, tokenizer: Tokenizer, count: int, characters: int) -> None:
    for position in range(min(count, len(shards))):
        index = position * len(shards) // min(count, len(shards))
        document = shards[index]
        text = tokenizer.decode(document.ids)
        shown = text if len(text) <= characters else text[:characters] + "…"
        print(f"\n--- document {index}: {len(document.ids):,} tokens, {document.bytes:,} bytes\n{shown}")
