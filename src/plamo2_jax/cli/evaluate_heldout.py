"""The part of `plamo2 evaluate` that measures held-out bits per byte and perplexity, beside xz."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.cli.evaluate_options import EvaluateOptions
    from plamo2_jax.eval.heldout import HeldOutSet
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

_ROWS = 8


def measure(options: EvaluateOptions, output: Path | None) -> None:
    """Measure the model on the held-out sets, print a table, and write all metrics to the JSON file `output`.

    Raises:
        PlamoError: the model or a held-out set cannot be read.
    """
    folders = parse_heldout(options.heldout)

    import jax.numpy as jnp

    from plamo2_jax.adapters.open import open_model
    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.eval.heldout import compare, table
    from plamo2_jax.model.plamo2 import Plamo2
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    loaded = open_model(options.model, step=options.step)
    tokenizer = loaded.tokenizer if options.tokenizer is None else Tokenizer.load(options.tokenizer)
    if tokenizer is None:
        raise PlamoError(f"{options.model} has no tokenizer.jsonl; name one with --tokenizer")
    folder = ModelName.parse(options.model).folder
    length = training_length(folder) if options.sequence_length is None else options.sequence_length
    model = Plamo2(loaded.config, dtype=jnp.dtype(options.dtype), scan_layers=loaded.scan_layers)
    rows = _ROWS if options.batch_size is None else options.batch_size
    sets = {name: open_set(path, options, tokenizer, length, rows) for name, path in folders.items()}
    results = compare(model, loaded.params, tokenizer, sets, sequence_length=length, batch_size=rows)
    print(table(results))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        languages = {language: result.metrics for language, result in results.items()}
        write_json(output, {"model": options.model, "sequence_length": length, "languages": languages})


def open_set(path: Path, options: EvaluateOptions, tokenizer: Tokenizer, length: int, rows: int) -> HeldOutSet:
    """Read one held-out set: shards, text, or conversations.

    Raises:
        PlamoError: it cannot be read, is empty, or was tokenized with another tokenizer.
    """
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.data.documents import ReadReport
    from plamo2_jax.data.in_memory import TokenizedText
    from plamo2_jax.data.shards import MANIFEST
    from plamo2_jax.data.sources import read_documents
    from plamo2_jax.eval.heldout import text_set

    shape = {"sequence_length": length, "batch_size": rows}
    if (path / MANIFEST).is_file():
        return text_set(path, tokenizer, **shape)
    from plamo2_jax.align.heldout import chat_set, holds_text

    if holds_text(path):
        report = ReadReport(max_bad_rate=0.0, judge_after=1)
        return text_set(TokenizedText(read_documents([path], report=report), tokenizer, str(path)), tokenizer, **shape)
    from plamo2_jax.tokenizer.chat_template import FILE_NAME

    folder = ModelName.parse(options.model).folder
    template = options.template or (str(folder) if (folder / FILE_NAME).is_file() else "chat")
    return chat_set(path, template, tokenizer, **shape)


def parse_heldout(arguments: tuple[str, ...]) -> dict[str, Path]:
    """Parse `("ja=DIR", ...)` into a mapping; raise PlamoError if an argument has another form or a name occurs twice."""
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not (name and path):
            raise PlamoError(f"--heldout {argument!r} is not allowed: it must be NAME=PATH, such as en=heldout.txt")
        if name in folders:
            raise PlamoError(f"--heldout has {name!r} twice: each name must occur once")
        folders[name] = Path(path)
    if not folders:
        raise PlamoError("--heldout must name at least one NAME=PATH")
    return folders


def training_length(model: Path) -> int:
    """Return the row length with which a run was trained, in tokens; 2048 if its config does not have it."""
    from plamo2_jax.checkpoint import read_config

    data = read_config(model).get("data")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    return length if isinstance(length, int) else 2048
