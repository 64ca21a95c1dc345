"""`plamo2 quantize MODEL OUT --method gptq --bits 4`: write a model with quantized matrices."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.cli.convert import parse_size
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least

if TYPE_CHECKING:
    from plamo2_jax.convert.load import LoadedModel
    from plamo2_jax.data.batch import Batch
    from plamo2_jax.quantize.config import QuantizeConfig


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """Quantize the matrices of a model, and write a run folder that generate, chat, serve, evaluate, logits and convert read.

    The projections to B, C and dt, norms, convolutions and vectors stay float. With --bits 4, embedding, head and the input and output
    projections of Mamba mixers have 8 bits. An interrupted command continues after the last finished layer.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, RUN@STEP or RUN@ema, or folder of the public layout."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist or must be empty."""
    method: Literal["rtn", "gptq", "awq", "awq+gptq", "smoothquant"] = "rtn"
    """rtn: round to nearest. gptq (arXiv:2210.17323) and awq (arXiv:2306.00978), alone or together: for 4 bits. smoothquant
    (arXiv:2211.10438): for quantized activations. All but rtn use calibration data."""
    bits: Literal["8", "4", "float8"] = "8"
    """Bits of the values: 8 or 4 for integers, float8 for float8_e4m3fn."""
    activations: Literal["none", "int8", "float8"] = "none"
    """Quantize the activations of each token in products with quantized matrices: int8 with 8 or 4 bits, float8 with float8."""
    group_size: Literal["32", "64", "128", "none"] = "64"
    """Inputs that share a scale, in matrices of 4 bits; none: one scale for each output. Other matrices always have one for each output."""
    calibration: tuple[str, ...] = ("bundled:ja:train", "bundled:en:train")
    """Calibration data: folders of shards, text in any format that data prepare reads, or bundled:ja:train and the like. Each has the same
    share; SOURCE=WEIGHT changes it."""
    samples: int = 128
    """Number of calibration rows."""
    sequence_length: int = 512
    """Tokens per row."""
    batch_size: int = 8
    """Rows per batch."""
    seed: int = 0
    """Random seed of the choice of rows."""
    budget: str | None = None
    """Largest size of all parameters, such as 700MB: matrices get 4 bits instead of 8 where the KL divergence of the logits grows least
    for each saved byte, until the model fits. With --bits 8 only."""
    keep_float: Annotated[tuple[str, ...], tyro.conf.arg(name="float")] = ()
    """Regular expressions of the paths of matrices that stay float. plamo2 inspect lists the paths."""
    bits_for: tuple[str, ...] = ()
    """REGEX=BITS: other bits for matrices whose path matches, such as mixer/in_proj=4. The last match counts, also over --float."""
    finetune_norms: int = 0
    """Steps of training the scales of norms and of quantized matrices to give the logits of the float model, on the calibration data."""
    clip_search: bool = False
    """Search scales that clip large weights, to minimize the squared error, also with rtn and smoothquant. gptq and awq always do."""
    damping: float = 0.01
    """Part of the mean diagonal that gptq adds to the diagonal of the Hessian."""
    alpha: float = 0.5
    """Part of the difficulty that smoothquant moves from activations to weights."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP; left out, the newest."""


def main(argv: list[str]) -> None:
    """Run the verb."""
    options = parse(QuantizeOptions, argv, "plamo2 quantize")
    from plamo2_jax.quantize.config import QuantizeConfig
    from plamo2_jax.storage import require_empty

    require_at_least(0, finetune_norms=options.finetune_norms)
    require_at_least(1, samples=options.samples, batch_size=options.batch_size)
    require_at_least(2, sequence_length=options.sequence_length)
    budget = None if options.budget is None else parse_size(options.budget, "--budget")
    if budget is not None and options.bits != "8":
        raise PlamoError("--budget starts from 8 bits and goes down to 4: leave out --bits")
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
    require_empty(options.output)
    _run(options, config, budget)


def _run(options: QuantizeOptions, config: QuantizeConfig, budget: int | None) -> None:
    import flax.traverse_util

    from plamo2_jax import checkpoint
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.convert.quantized import save_quantized
    from plamo2_jax.quantize.config import matrix_formats
    from plamo2_jax.quantize.finetune import finetune_scales
    from plamo2_jax.quantize.progress import Progress
    from plamo2_jax.quantize.quantize import quantize_leaves
    from plamo2_jax.quantize.report import table, total_bytes
    from plamo2_jax.quantize.search import candidates, search_formats
    from plamo2_jax.tokenizer.template_files import chat_template_files

    folder = ModelName.parse(options.model).folder
    loaded = _load(options)
    files = chat_template_files(folder)
    formats = matrix_formats(loaded.config, config)
    leaves = flax.traverse_util.flatten_dict(loaded.params, sep="/")
    fingerprint = checkpoint.fingerprint(loaded.config, loaded.params)
    loaded.params.clear()
    before = total_bytes(leaves)
    batches: list[Batch] = []
    heldout = 0
    if config.calibrated or budget is not None or options.finetune_norms:
        heldout = 2 if budget is not None else 0
        batches = _calibration(options, loaded, heldout)
    if budget is not None:
        with _bar("measuring", len(candidates(loaded.config, formats, config)), "matrix") as bar:
            chosen = batches[len(batches) - heldout :]
            formats = search_formats(loaded.config, leaves, formats, budget, config, chosen, on_matrix=bar.update)
        batches = batches[: len(batches) - heldout]
    progress = None
    if config.calibrated:
        progress = Progress(options.output.absolute().with_name(f"{options.output.absolute().name}.progress"))
        progress.begin(config, formats, batches, fingerprint)
    with _bar("quantizing", loaded.config.num_hidden_layers, "layer") as bar:
        reports = quantize_leaves(
            loaded.config, leaves, formats, config, batches, progress=progress, on_layer=lambda layer: bar.update()
        )
    if options.finetune_norms:
        teacher = flax.traverse_util.flatten_dict(_load(options).params, sep="/")
        with _bar("fine-tuning scales", options.finetune_norms, "step") as bar:

            def advance(divergence: float) -> None:
                bar.set_postfix(kl=f"{divergence:.2e}", refresh=False)
                bar.update()

            leaves = finetune_scales(
                loaded.config, teacher, leaves, batches, steps=options.finetune_norms, on_step=advance
            )
    about = {"quantized_from": {"model": str(options.model), "fingerprint": fingerprint}}
    params = flax.traverse_util.unflatten_dict(leaves, sep="/")
    save_quantized(
        options.output, loaded.config, params, loaded.tokenizer, method=config.method, files=files, about=about
    )
    if progress is not None:
        progress.remove()
    print(table(loaded.config, reports, before, total_bytes(leaves)))
    print(options.output)


def _load(options: QuantizeOptions) -> LoadedModel:
    """Load the float model without a scan over layers, so that each matrix can be released when it is quantized."""
    import numpy as np

    from plamo2_jax.convert.load import load_model
    from plamo2_jax.convert.read import with_dtype
    from plamo2_jax.model import Plamo2, abstract_params

    def abstract(config):
        return with_dtype(abstract_params(Plamo2(config, scan_layers=False)), np.float32, None)

    return load_model(options.model, step=options.step, abstract=abstract, require_finite=True)


def _calibration(options: QuantizeOptions, loaded: LoadedModel, heldout: int) -> list[Batch]:
    from plamo2_jax.quantize.calibration import read_calibration

    if loaded.tokenizer is None:
        raise PlamoError(
            f"{options.model} has no tokenizer.jsonl: calibration data is tokenized with it. Copy it into the folder"
        )
    return read_calibration(
        options.calibration,
        loaded.tokenizer,
        rows=options.samples + heldout * options.batch_size,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def _bar(what: str, total: int, unit: str) -> Any:
    from plamo2_jax.progress import tqdm

    return tqdm(total=total, desc=what, unit=unit, delay=1)


def _bits(option: str, text: str) -> Any:
    if text not in ("8", "4", "float8"):
        raise PlamoError(f"{option}: {text[:40]!r} is not allowed: the bits must be 8, 4 or float8")
    return text if text == "float8" else int(text)


def _bits_for(text: str) -> tuple[str, Any]:
    match = re.fullmatch(r"(.+)=([^=]*)", text)
    if match is None:
        raise PlamoError(f"--bits-for {text[:100]!r} is not allowed: it must be REGEX=BITS, such as mlp/down=8")
    return match[1], _bits(f"--bits-for {text[:100]}", match[2])
