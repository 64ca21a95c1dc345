"""`plamo2 tokenizer`: train a vocabulary, encode, decode."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import call_subcommand
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.tokenizer.train import VocabularyOptions, train_tokenizer


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a vocabulary on text and write tokenizer.jsonl. The result is reproducible: the same input and options give the same file."""

    input: tuple[str, ...]
    """Files (.jsonl, one object per line; .txt, one document per file; both also .gz, .xz, .bz2, .zst; .parquet; .arrayrecord), folders,
    "patterns/*.jsonl", tfds:NAME:SPLIT, or the bundled corpus, bundled:ja:train or bundled:all:train. A file that is given several times is
    read once. A line, text file, row or record above 64 MiB is a bad record."""
    output: Path
    """Folder for tokenizer.jsonl, created if needed; or a file name that ends in .jsonl."""
    text_field: str = "text"
    """Field or column that holds the text."""
    vocabulary: tyro.conf.OmitArgPrefixes[VocabularyOptions] = dataclasses.field(default_factory=VocabularyOptions)
    """Settings of the training."""


def train(options: TrainOptions) -> None:
    """Train a vocabulary on text and write tokenizer.jsonl. The same input and options give the same file."""
    from plamo2_jax.data.documents import ReadReport
    from plamo2_jax.data.sources import read_documents
    from plamo2_jax.storage import new_parents

    report = ReadReport()
    documents = read_documents(options.input, text_field=options.text_field, report=report, keep_fields=False)
    folder = options.output.parent if options.output.suffix == ".jsonl" else options.output
    if folder.exists() and not folder.is_dir():
        raise PlamoError(
            f"--output {options.output}: {folder} is a file: it must be a folder, or a file name that ends in .jsonl"
        )
    if options.output.suffix != ".jsonl" and all(
        (folder / name).exists() for name in ("config.json", "tokenizer.jsonl")
    ):
        raise PlamoError(
            f"--output {folder} has a model with a tokenizer, which would not fit each other any more: choose another folder"
        )
    tokenizer = train_tokenizer((document.text for document in documents), options.vocabulary)
    if report.bad:
        print(report.summary(), file=sys.stderr)
    with new_parents(folder / "tokenizer.jsonl"):
        path = tokenizer.save(options.output)
    print(f"{path}: {tokenizer.vocab_size} rows, sha256 {tokenizer.fingerprint}")


def encode(
    tokenizer: Annotated[Path, tyro.conf.Positional],
    text: Annotated[str, tyro.conf.Positional] = "-",
    *,
    allow_control: bool = False,
    bos: bool = False,
    eos: bool = False,
) -> None:
    """Print the token ids of a text on one line.

    Args:
        tokenizer: A tokenizer.jsonl, or the folder that contains it.
        text: The text; "-" reads standard input, including a final newline.
        allow_control: Encode control strings such as <|plamo:op|> as control tokens. Use this only for trusted text.
        bos: Add <|plamo:bos|> at the start.
        eos: Add <|plamo:eos|> at the end.
    """
    loaded = Tokenizer.load(tokenizer)
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise PlamoError(f"standard input is not UTF-8 (byte {error.start}): it must be UTF-8 text") from None
    if not allow_control and (found := dict.fromkeys(loaded.control_strings_in(text))):
        print(
            f"warning: {', '.join(found)} is encoded as text, not as a control token; use --allow-control to "
            "encode control tokens",
            file=sys.stderr,
        )
    print(*loaded.encode(text, allow_control=allow_control, bos=bos, eos=eos).tolist())


def decode(
    tokenizer: Annotated[Path, tyro.conf.Positional],
    ids: Annotated[tuple[int, ...], tyro.conf.Positional] = (),
    *,
    skip_control: bool = False,
) -> None:
    """Write the text of token ids, and nothing else: `encode | decode` returns its input.

    Args:
        tokenizer: A tokenizer.jsonl, or the folder that contains it.
        ids: The ids. Default: read from standard input, separated by spaces or newlines.
        skip_control: Omit control tokens.
    """
    loaded = Tokenizer.load(tokenizer)
    words = ids or sys.stdin.read().split()
    try:
        numbers = [int(word) for word in words]
    except ValueError as error:
        raise PlamoError(f"token ids must be integers: {error}") from None
    sys.stdout.flush()
    sys.stdout.buffer.write(loaded.decode(numbers, skip_control=skip_control).encode())
    sys.stdout.buffer.flush()


SUBCOMMANDS = {"train": train, "encode": encode, "decode": decode}


def main(argv: list[str]) -> int | None:
    """Run the command."""
    return call_subcommand(SUBCOMMANDS, argv, "plamo2 tokenizer")
