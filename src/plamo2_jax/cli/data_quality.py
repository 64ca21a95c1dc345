"""`plamo2 data quality` and `plamo2 data score`: train a quality model, and score documents with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from plamo2_jax.cli.data_files import ReadOptions, WorkerOptions, check_jsonl, open_jsonl, print_bad
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.quality import QualityModel
from plamo2_jax.data.score_chunks import ScoreChunk
from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class QualityOptions(ReadOptions):
    """Train a quality model on good and bad documents, or on the scores of a judge.

    The model is a linear classifier over hashed character n-grams. It is fast to train and to apply (tens of MB/s). It measures style and
    topic, not truth. Give --good and --bad, or --scored. A tenth of the documents is held out. The command prints the AUC on the held-out
    documents, and the AUC of the document length alone for comparison.
    """

    output: Path
    """Safetensors file of the model."""
    good: tuple[str, ...] = ()
    """Good documents: files, folders or patterns in any format that plamo2 data prepare reads."""
    bad: tuple[str, ...] = ()
    """Bad documents."""
    scored: tuple[str, ...] = ()
    """Documents with a score, for example from a judge model."""
    score_field: str = "score"
    """Field with the score of --scored documents."""
    highest_score: float = 5.0
    """Largest possible score. The model learns score / highest score as the probability that a document is good."""
    epochs: int = 4
    """Passes over the documents."""
    seed: int = 0
    """Random seed of the held-out documents and of the order."""


def quality(options: QualityOptions) -> None:
    """Train a quality model on good and bad documents, or on the scores of a judge."""
    if bool(options.scored) == bool(options.good or options.bad) or bool(options.good) != bool(options.bad):
        raise PlamoError("the training data are missing: give either --good and --bad, or --scored")
    if not options.highest_score > 0:
        raise PlamoError(f"--highest-score {options.highest_score} is not allowed: it must be positive")
    from plamo2_jax.data.quality_training import QualityConfig, train_quality

    report, texts, targets = ReadReport(options.max_bad_rate), [], []
    for inputs, target in ((options.good, 1.0), (options.bad, 0.0)):
        for document in options.documents(inputs, report):
            texts.append(document.text)
            targets.append(target)
    for document in options.documents(options.scored, report):
        score = document.meta.get(options.score_field)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= options.highest_score:
            raise PlamoError(
                f"{document.id}: the field {options.score_field} is {score!r}: it must be a number from 0 to {options.highest_score:g} "
                "(--score-field, --highest-score)"
            )
        texts.append(document.text)
        targets.append(score / options.highest_score)
    print_bad(report)
    model = train_quality(texts, targets, QualityConfig(epochs=options.epochs, seed=options.seed))
    model.save(options.output)
    found = model.training
    print(
        f"held-out documents: {found['heldout']:,} of {found['texts']:,}; AUC {found['heldout_auc']:.4f} (length alone "
        f"{found['length_auc']:.4f}); calibration error {found['calibration_error']:.4f}"
    )
    print(options.output)


@dataclasses.dataclass(frozen=True)
class ScoreOptions(WorkerOptions):
    """Add the probability that a document is good, by a quality model, to each document."""

    input: Annotated[str, tyro.conf.Positional]
    """A file, a folder or a "pattern" in any format that plamo2 data prepare reads."""
    output: Annotated[Path, tyro.conf.Positional]
    """File to write: .jsonl, or compressed as .jsonl.gz, .jsonl.xz or .jsonl.bz2."""
    model: Path
    """Model file that plamo2 data quality wrote."""
    field: str = "quality"
    """Field for the probability."""
    at_least: float = 0.0
    """Remove documents with a lower probability."""


def score(options: ScoreOptions) -> None:
    """Add the probability that a document is good, by a quality model, to each document."""
    if not 0 <= options.at_least <= 1:
        raise PlamoError(f"--at-least {options.at_least} is not allowed: it must be between 0 and 1")
    if options.field in ("id", "text", "language"):
        raise PlamoError(
            f"--field {options.field} is not allowed: documents already have a field of this name. Choose another name"
        )
    check_jsonl(options.output)
    report, histogram, count = ReadReport(options.max_bad_rate), np.zeros(10, int), 0
    function = ScoreChunk(QualityModel.load(options.model), options.field, options.at_least)
    with open_jsonl(options.output) as file:
        for chunk in options.map_chunks([options.input], function, report, "score"):
            file.write(chunk.lines)
            histogram += chunk.histogram
            count += chunk.written
    print_bad(report)
    for i, number in enumerate(histogram):
        print(f"{i / 10:.1f} to {(i + 1) / 10:.1f}: {number:,} documents")
    print(f"{options.output}: {count:,} of {histogram.sum():,} documents")
