"""The part of `plamo2 evaluate` that scores stored answers. It does not import JAX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.cli.evaluate_options import EvaluateOptions


def score_stored(options: EvaluateOptions) -> None:
    """Score the answers of a file, write the scores to `output`, and print their means.

    Raises:
        PlamoError: the options are incomplete, the task cannot score stored answers, or a file is missing or malformed.
    """
    if len(options.tasks) != 1 or options.output is None:
        raise PlamoError("--answers needs one task and an output file: add --tasks pfgen --output FILE")
    if options.tasks != ("pfgen",):
        raise PlamoError(f"the task {options.tasks[0]} cannot score stored answers: --answers is for pfgen")

    from plamo2_jax.eval.pfgen.benchmark import LICENCE, SOURCE
    from plamo2_jax.eval.pfgen.stored import score_file

    paths = [Path(text.removeprefix("pfgen=")) for text in options.path]
    if options.pfgen is not None:
        paths.append(options.pfgen)
    if not paths:
        raise PlamoError(
            f"--pfgen is missing: get the benchmark from {SOURCE} (licence: {LICENCE}) and add --pfgen DIR"
        )
    if len(paths) > 1:
        raise PlamoError(f"the task pfgen has {len(paths)} paths: give one --pfgen DIR")
    print(score_file(paths[0], options.answers, options.output, processes=options.processes))
