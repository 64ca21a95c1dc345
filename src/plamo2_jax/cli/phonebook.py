"""`plamo2 phonebook OUT.jsonl`: write phonebooks as training text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class PhonebookOptions:
    """Write phonebooks with answered queries as JSON lines, for `plamo2 data prepare`.

    Train a small model on such texts before you measure it with `plamo2 probe`.
    """

    output: Annotated[Path, tyro.conf.Positional]
    """File to write: .jsonl, or compressed as .jsonl.gz, .jsonl.xz or .jsonl.bz2."""
    documents: int = 1000
    """Number of phonebooks."""
    entries: tuple[int, int] = (4, 40)
    """Smallest and largest number of entries per phonebook."""
    queries: int = 4
    """Number of queries at the end of each phonebook."""
    language: str = "ja,en"
    """ja, en, or both separated by a comma; they then alternate."""
    digits: int | None = None
    """Number of digits of each number. Default: telephone numbers."""
    separator: str = ": "
    """Text between name and number. Tokenizers rarely merge a tab, $'\\t', with its neighbours."""
    seed: int = 0
    """Random seed."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(PhonebookOptions, argv, "plamo2 phonebook")
    from plamo2_jax.cli.data_files import write_jsonl
    from plamo2_jax.eval.phonebook import documents

    found = documents(
        count=options.documents,
        entries=options.entries,
        languages=tuple(part.strip() for part in options.language.split(",")),
        queries=options.queries,
        digits=options.digits,
        separator=options.separator,
        seed=options.seed,
    )
    with write_jsonl(options.output) as write:
        count = sum(map(write, found))
    print(f"{options.output}: {count} documents")
    return 0
