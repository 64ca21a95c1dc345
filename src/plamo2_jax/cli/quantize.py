"""`plamo2 quantize MODEL OUT --method gptq --bits 4`: write a model with quantized matrices."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.cli.convert import parse_size
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import changed_fields, require_at_least


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """Quantize the matrices of a model, and write a run folder that generate, chat, serve, evaluate, logits and convert read.

    The projections to B, C and dt, norms, convolutions and vectors stay in floating point. With --bits 4, the embedding, the head and the
    input and output projections of Mamba layers have 8 bits. An interrupted command resumes after the last finished layer.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist, or it must be empty."""
    method: Literal["rtn", "gptq", "awq", "awq+gptq", "smoothquant"] = "rtn"
    """rtn: round to nearest. gptq (arXiv:2210.17323) and awq (arXiv:2306.00978), alone or together: for 4 bits. smoothquant
    (arXiv:2211.10438): for quantized activations. All but rtn use calibration data."""
    bits: Literal["8", "4", "float8"] = "8"
    """Type of the values: 8 or 4 for integers with this number of bits, float8 for float8_e4m3fn."""
    activations: Literal["none", "int8", "float8"] = "none"
    """Type of the activations in products with quantized matrices, with one scale per token: int8 for 8 or 4 bits, float8 for float8."""
    group_size: Literal["32", "64", "128", "none"] = "64"
    """Number of inputs that share a scale, in matrices with 4 bits; none: one scale for each output. Other matrices always have one scale
    for each output."""
    calibration: tuple[str, ...] = ("bundled:ja:train", "bundled:en:train")
    """Calibration data: folders of shards, text in any format that data prepare reads, or bundled:ja:train and the like. All sources have
    the same share; SOURCE=WEIGHT changes it."""
    samples: int = 128
    """Number of calibration rows."""
    sequence_length: int = 512
    """Number of tokens per row."""
    batch_size: int = 8
    """Rows per batch."""
    seed: int = 0
    """Random seed of the choice of rows."""
    budget: str | None = None
    """Largest size of all parameters, such as 700MB: matrices get 4 bits instead of 8 where the KL divergence of the logits grows least
    for each saved byte, until the model fits. With --bits 8 only."""
    keep_float: Annotated[tuple[str, ...], tyro.conf.arg(name="float")] = ()
    """Regular expressions of the paths of matrices that stay in floating point. A path looks like run_0_period_0/layer_0/mlp/down; a run
    has as many periods as its layers are repeated."""
    bits_for: tuple[str, ...] = ()
    """REGEX=BITS sets the type of matrices whose path matches, such as mixer/in_proj=4. The last match wins, also over --float."""
    finetune_norms: int = 0
    """Number of training steps for the scales of norms and of quantized matrices, on the calibration data. The loss compares the logits
    with the float model."""
    clip_search: bool = False
    """Also search clipping scales that minimize the squared error with rtn and smoothquant. gptq and awq always do."""
    damping: float = 0.01
    """gptq: fraction of the mean diagonal of the Hessian that is added to its diagonal."""
    alpha: float = 0.5
    """smoothquant: migration strength, from 0 to 1. Larger values move more of the outliers from activations to weights."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(QuantizeOptions, argv, "plamo2 quantize")
    from plamo2_jax.quantize.config import QuantizeConfig
    from plamo2_jax.quantize.write import CalibrationConfig, quantize_model

    require_at_least(0, finetune_norms=options.finetune_norms)
    require_at_least(1, samples=options.samples, batch_size=options.batch_size)
    require_at_least(2, sequence_length=options.sequence_length)
    budget = None if options.budget is None else parse_size(options.budget, "--budget")
    if budget is not None and options.bits != "8":
        raise PlamoError(
            "--budget cannot be combined with --bits: it chooses between 8 and 4 bits itself. Remove --bits"
        )
    _refuse_unused(options)
    config = QuantizeConfig(
        method=options.method,
        bits=_bits("--bits", options.bits),
        activations=options.activations,
        group_size=None if options.group_size == "none" else int(options.group_size),
        clip_search=options.clip_search,
        damping=options.damping,
        alpha=options.alpha,
        keep_float=options.keep_float,
        bits_for=tuple(_bits_for(each) for each in options.bits_for),
    )
    calibration = CalibrationConfig(
        options.calibration, options.samples, options.sequence_length, options.batch_size, options.seed
    )
    written = quantize_model(
        options.model,
        options.output,
        config,
        calibration=calibration,
        budget=budget,
        finetune_norms=options.finetune_norms,
        step=options.step,
    )
    print(written.table)
    print(options.output)


def _refuse_unused(options: QuantizeOptions) -> None:
    """Refuse options that were set and have no effect with the others."""
    bits = (options.bits, *(each.rpartition("=")[2] for each in options.bits_for))
    calibrated = options.method != "rtn" or options.budget is not None or options.finetune_norms > 0
    reads = "a method other than rtn, --budget or --finetune-norms, which read calibration data"
    needed = {name: (calibrated, reads) for name in ("calibration", "samples", "sequence_length", "batch_size", "seed")}
    needed["group_size"] = "4" in bits or options.budget is not None, "matrices with 4 bits"
    needed["damping"] = "gptq" in options.method, "--method gptq or awq+gptq"
    needed["alpha"] = options.method == "smoothquant", "--method smoothquant"
    for name in sorted(changed_fields(options) & needed.keys()):
        used, what = needed[name]
        if not used:
            raise PlamoError(f"--{name.replace('_', '-')} has no effect: it needs {what}")


def _bits(option: str, text: str) -> Any:
    if text not in ("8", "4", "float8"):
        raise PlamoError(f"{option}: {text[:40]!r} is not allowed: the bits must be 8, 4 or float8")
    return text if text == "float8" else int(text)


def _bits_for(text: str) -> tuple[str, Any]:
    match = re.fullmatch(r"(.+)=([^=]*)", text)
    if match is None:
        raise PlamoError(f"--bits-for {text[:100]!r} is not allowed: it must be REGEX=BITS, such as mlp/down=8")
    return match[1], _bits(f"--bits-for {text[:100]}", match[2])
