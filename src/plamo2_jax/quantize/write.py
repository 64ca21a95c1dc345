"""Quantizing a stored model: load it, quantize its matrices, and write a run folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import LoadedModel, load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.quantized import save_quantized
from plamo2_jax.convert.read import with_dtype
from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.progress import tqdm
from plamo2_jax.quantize.calibration import read_calibration
from plamo2_jax.quantize.config import QuantizeConfig, matrix_formats
from plamo2_jax.quantize.finetune import finetune_scales
from plamo2_jax.quantize.progress import Progress
from plamo2_jax.quantize.quantize import quantize_leaves
from plamo2_jax.quantize.report import MatrixReport, table, total_bytes
from plamo2_jax.quantize.search import candidates, search_formats
from plamo2_jax.storage import require_empty
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.validation import require, require_kind

BUNDLED = ("bundled:ja:train", "bundled:en:train")
"""Calibration data by default."""
# Calibration batches that `search_formats` measures on, and that nothing else uses.
_MEASURED = 2


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Data for the methods that measure activations.

    Raises:
        PlamoError: a field is out of range.
    """

    sources: tuple[str, ...] = BUNDLED
    """Folders of shards, text in any format that data prepare reads, or bundled:LANGUAGE:SPLIT. SOURCE=WEIGHT changes a source's share."""
    rows: int = 128
    """Number of rows."""
    sequence_length: int = 512
    """Tokens per row."""
    batch_size: int = 8
    """Rows per batch."""
    seed: int = 0
    """Random seed of the choice of rows."""

    def __post_init__(self) -> None:
        require(self, "rows", self.rows >= 1, "at least 1")
        require(self, "sequence_length", self.sequence_length >= 2, "at least 2")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What was written."""

    config: ModelConfig
    reports: list[MatrixReport]
    bytes_before: int
    bytes_after: int

    @property
    def table(self) -> str:
        """Text table with sizes and errors of each part of the network."""
        return table(self.config, self.reports, self.bytes_before, self.bytes_after)


def quantize_model(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: QuantizeConfig | None = None,
    *,
    calibration: CalibrationConfig | None = None,
    budget: int | None = None,
    finetune_norms: int = 0,
    step: int | None = None,
) -> Quantized:
    """Quantize the matrices of a model, and write a run folder. An interrupted call continues after the last finished layer.

    Args:
        model: run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format.
        output: folder to create: it must not exist or must be empty.
        config: what to quantize, and how; None: 8 bits, rounded to nearest.
        calibration: data for the methods that measure activations, for `budget` and for `finetune_norms`; None: bundled text.
        budget: largest size of all parameters, in bytes. Matrices get 4 bits instead of 8 until the model fits.
        finetune_norms: steps of training the scales of norms and of quantized matrices to give the logits of the float model.
        step: checkpoint of a run folder; None: the step in `model`, or else the newest.

    Raises:
        PlamoError: the model or the calibration data cannot be read, the output is in the way, or no choice of bits fits the budget.
    """
    require_kind(config, QuantizeConfig, "config")
    require_kind(budget, int, "budget")
    config, calibration, output = config or QuantizeConfig(), calibration or CalibrationConfig(), Path(output)
    if budget is not None and config.bits != 8:
        raise PlamoError("bits are not allowed with a budget, which chooses between 8 and 4 bits: remove the bits")
    if finetune_norms < 0:
        raise PlamoError(f"finetune_norms={finetune_norms} is not allowed: it must be at least 0")
    require_empty(output)
    loaded = _load(model, step)
    files = chat_template_files(ModelName.parse(model).folder)
    formats = matrix_formats(loaded.config, config)
    leaves = flax.traverse_util.flatten_dict(loaded.params, sep="/")
    fingerprint = checkpoint.fingerprint(loaded.config, loaded.params)
    loaded.params.clear()
    before = total_bytes(leaves)
    batches: list[Batch] = []
    if config.calibrated or budget is not None or finetune_norms:
        batches = _read_batches(model, loaded, calibration, _MEASURED if budget is not None else 0)
    if budget is not None:
        batches, measured = batches[:-_MEASURED], batches[-_MEASURED:]
        with _bar("measuring", len(candidates(loaded.config, formats, config)), "matrix") as bar:
            formats = search_formats(loaded.config, leaves, formats, budget, config, measured, on_matrix=bar.update)
    progress = None
    if config.calibrated:
        progress = Progress(output.absolute().with_name(f"{output.absolute().name}.progress"))
        progress.begin(config, formats, batches, fingerprint)
    with _bar("quantizing", loaded.config.num_hidden_layers, "layer") as bar:
        reports = quantize_leaves(
            loaded.config, leaves, formats, config, batches, progress=progress, on_layer=lambda layer: bar.update()
        )
    if finetune_norms:
        teacher = flax.traverse_util.flatten_dict(_load(model, step).params, sep="/")
        with _bar("fine-tuning scales", finetune_norms, "step") as bar:

            def advance(divergence: float) -> None:
                bar.set_postfix(kl=f"{divergence:.2e}", refresh=False)
                bar.update()

            leaves = finetune_scales(loaded.config, teacher, leaves, batches, steps=finetune_norms, on_step=advance)
    about = {"quantized_from": {"model": str(model), "fingerprint": fingerprint}}
    params = flax.traverse_util.unflatten_dict(leaves, sep="/")
    save_quantized(output, loaded.config, params, loaded.tokenizer, method=config.method, files=files, about=about)
    if progress is not None:
        progress.remove()
    return Quantized(loaded.config, reports, before, total_bytes(leaves))


def _load(model: str | os.PathLike[str], step: int | None) -> LoadedModel:
    """Load the float model without a scan over layers, so that each matrix can be released when it is quantized."""

    def abstract(config: ModelConfig) -> Any:
        return with_dtype(abstract_params(Plamo2(config, scan_layers=False)), np.float32, None)

    return load_model(model, step=step, abstract=abstract, require_finite=True)


def _read_batches(
    model: str | os.PathLike[str], loaded: LoadedModel, calibration: CalibrationConfig, more: int
) -> Sequence[Batch]:
    """Return the calibration batches, and so many more."""
    if loaded.tokenizer is None:
        raise PlamoError(
            f"{model} has no tokenizer.jsonl: it is needed to tokenize calibration data. Copy it into the folder"
        )
    return read_calibration(
        calibration.sources,
        loaded.tokenizer,
        rows=calibration.rows + more * calibration.batch_size,
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )


def _bar(what: str, total: int, unit: str) -> Any:
    return tqdm(total=total, desc=what, unit=unit, delay=1)
