"""`plamo2 evaluate MODEL --heldout ja=DIR en=FILE`: held-out bits per byte and perplexity, beside xz."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.eval.heldout import HeldOutSet
    from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure bits per byte and perplexity of a model on held-out data, and the bits per byte of `xz -9e` on the same text.

    Text: one pass over all documents, including their end-of-document tokens. Conversations: only the assistant's tokens are measured,
    given everything before them. Bits per byte are the sum of -log2 p divided by the number of UTF-8 bytes, which does not depend on
    the vocabulary. Lower is better.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, RUN@STEP or RUN@ema, folder of the public layout, or folder of adapters."""
    heldout: tuple[str, ...]
    """Held-out data as NAME=PATH, for instance ja=runs/demo/data/ja/heldout news=news.txt chat=conversations.jsonl. PATH is a folder of
    shards, or text or conversations in any format that data prepare or sft reads; files are tokenized on the fly. A file whose first
    record has a field `text` is text."""
    output: Path | None = None
    """JSON file for all metrics."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP; left out, the newest."""
    tokenizer: Path | None = None
    """tokenizer.jsonl for a model without one."""
    template: str | None = None
    """Chat template for conversations: chat, translate, a Jinja file or a folder; left out, the model's own, else chat."""
    sequence_length: int | None = None
    """Positions per row; longer documents are cut. Left out, the training length of a run folder, else 2048."""
    batch_size: int = 8
    """Rows per batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(EvaluateOptions, argv, "plamo2 evaluate")
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
    sets = {name: open_set(path, options, tokenizer, length) for name, path in folders.items()}
    results = compare(model, loaded.params, tokenizer, sets, sequence_length=length, batch_size=options.batch_size)
    print(table(results))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        languages = {language: result.metrics for language, result in results.items()}
        write_json(options.output, {"model": options.model, "sequence_length": length, "languages": languages})
    return 0


def open_set(path: Path, options: EvaluateOptions, tokenizer: Tokenizer, length: int) -> HeldOutSet:
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

    shape = {"sequence_length": length, "batch_size": options.batch_size}
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
