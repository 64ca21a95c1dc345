"""`plamo2 evaluate MODEL --heldout ja=DIR en=DIR`: held-out bits per byte, beside those of xz."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Bits per byte of a model on held-out text, and those of `xz -9e` on the same text.

    The figure is the sum of -log2 p over all tokens, end-of-document tokens included, divided by the UTF-8 bytes of the text. It does not
    depend on the vocabulary. Lower is better.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Run folder, or folder of the public layout (config.json and safetensors)."""
    heldout: tuple[str, ...]
    """Held-out shards as LANGUAGE=FOLDER, for instance ja=runs/demo/data/ja/heldout en=runs/demo/data/en/heldout."""
    output: Path | None = None
    """JSON file to write all figures to."""
    step: int | None = None
    """Which checkpoint of a run folder; left out, the newest."""
    tokenizer: Path | None = None
    """tokenizer.jsonl for a model that comes without one."""
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

    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.convert.load import load_model
    from plamo2_jax.eval.heldout import compare, table
    from plamo2_jax.model.plamo2 import Plamo2
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    loaded = load_model(options.model, step=options.step)
    tokenizer = loaded.tokenizer if options.tokenizer is None else Tokenizer.load(options.tokenizer)
    if tokenizer is None:
        raise ValueError(f"{options.model} has no tokenizer.jsonl; name one with --tokenizer")
    length = training_length(options.model) if options.sequence_length is None else options.sequence_length
    model = Plamo2(loaded.config, dtype=jnp.dtype(options.dtype))
    results = compare(model, loaded.params, tokenizer, folders, sequence_length=length, batch_size=options.batch_size)
    print(table(results))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        languages = {language: result.figures() for language, result in results.items()}
        write_json(options.output, {"model": str(options.model), "sequence_length": length, "languages": languages})
    return 0


def parse_heldout(arguments: tuple[str, ...]) -> dict[str, Path]:
    """`("ja=DIR", ...)` as a mapping.

    Raises:
        ValueError: an argument has no "=", or a language comes twice.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        language, equals, folder = argument.partition("=")
        if not (language and equals and folder):
            raise ValueError(f"--heldout {argument!r} is not allowed: it must be LANGUAGE=FOLDER")
        if language in folders:
            raise ValueError(f"--heldout names {language!r} twice; each language must come once")
        folders[language] = Path(folder)
    if not folders:
        raise ValueError("--heldout must name at least one LANGUAGE=FOLDER")
    return folders


def training_length(model: Path, default: int = 2048) -> int:
    """Length of the rows a run was trained on; `default` for a model that does not say."""
    from plamo2_jax.checkpoint import read_config

    data = read_config(model).get("data")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    return length if isinstance(length, int) else default
