"""The part of `plamo2 evaluate` that measures held-out bits per byte and perplexity, and compares them with xz."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.cli.evaluate_options import EvaluateOptions

_ROWS = 8


def measure(options: EvaluateOptions, output: Path | None) -> None:
    """Measure the model on the held-out sets, print a table, and write all metrics to the JSON file `output`.

    Raises:
        PlamoError: the model or a held-out set cannot be read.
    """
    folders = parse_heldout(options.heldout)

    from plamo2_jax.align.heldout import measure_heldout, training_length
    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.eval.heldout import table

    results = measure_heldout(
        options.model,
        folders,
        step=options.step,
        tokenizer=options.tokenizer,
        template=options.template,
        sequence_length=options.sequence_length,
        batch_size=_ROWS if options.batch_size is None else options.batch_size,
        dtype=options.dtype,
    )
    print(table(results))
    if output is not None:
        length = options.sequence_length
        if length is None:
            length = training_length(ModelName.parse(options.model).folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        languages = {language: result.metrics for language, result in results.items()}
        write_json(output, {"model": options.model, "sequence_length": length, "languages": languages})


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
