"""`plamo2 merge`: one model out of several."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.surgery.merge.config import MergeConfig, Method
from plamo2_jax.surgery.merge.methods import Rescale


@dataclasses.dataclass(frozen=True)
class MergeOptions:
    """Merge models of one shape and one tokenizer, tensor by tensor, into a folder of the public layout.

    A model is a folder of the public layout, a run folder (its newest checkpoint), one of its checkpoints, RUN@STEP, or the moving
    average of its parameters, RUN@ema or RUN@STEP,ema. Two checkpoints of one run averaged: plamo2 merge runs/demo@350
    runs/demo@700 averaged

    Without a base: linear (weighted mean), slerp (two models, along the circle between them), karcher (the same for any number).
    With --base, the model that all of them were trained from, on their differences from it: task_arithmetic (added), ties (the
    largest, of the elected sign), dare_linear and dare_ties (thinned out at random), della (small ones rather), breadcrumbs
    (neither the smallest nor the very largest), model_stock (mean, pulled to the base as far as the models disagree), nearswap (one
    model; the base moved to it by at most --t).
    """

    models_and_output: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL MODEL ... OUT")]
    """The models, and last the folder to make, which must not exist or be empty."""
    method: Method = "linear"
    """Merge method."""
    base: str | None = None
    """Base model, from which differences are taken."""
    weight: tuple[float, ...] = ()
    """One weight per model, in order; left out, all 1. linear, slerp and karcher divide by the sum of the weights."""
    weights_for: tuple[str, ...] = ()
    """REGEX=w1,w2,... gives other weights to the tensors in whose description the expression is found: the public name, our
    parameters and their axes, such as "model.layers.layers.1.mixer.o_proj.weight run_0/layer_1/mixer/o_proj
    axes=heads,head_dim,embed". The last one found counts.
    For instance 'layers\\.[0-3]\\.=1,0' or 'axes=.*mamba_heads=0.3,0.7'."""
    density: float | None = None
    """Share of each difference that is kept: ties 0.2, breadcrumbs 0.9, dare and della 0.5 when left out."""
    scale: Annotated[float, tyro.conf.arg(name="lambda")] = 1.0
    """Factor of the merged differences."""
    normalize: bool | None = None
    """Whether differences are divided by the weights; left out, they are for ties and della."""
    rescale: Rescale = "probability"
    """dare, della: kept differences are divided by the probability of being kept, as in the papers; or scaled to the sum of
    magnitudes before (norm), as mergekit 0.1 does; or left alone."""
    epsilon: float = 0.15
    """della: probabilities of being kept go from density - epsilon to density + epsilon."""
    gamma: float = 0.01
    """breadcrumbs: share of the largest differences that is left out."""
    t: float = 1e-3
    """nearswap: largest change of an element."""
    seed: int = 0
    """Random seed of dare and della."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the files; left out, the dtype of the models. Arithmetic is always float32."""
    max_shard_size: str = "5GB"
    """Largest size of one safetensors file, such as 5GB or 500MiB."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(MergeOptions, argv, "plamo2 merge")
    if len(options.models_and_output) < 2:
        raise ValueError("the arguments must be models and last the folder to make: plamo2 merge A B OUT")
    from plamo2_jax.cli.convert import parse_size, progress
    from plamo2_jax.surgery.merge.merge import merge

    *models, output = options.models_and_output
    config = MergeConfig(
        method=options.method,
        weights=options.weight,
        weights_for=tuple(map(parse_weights, options.weights_for)),
        density=options.density,
        scale=options.scale,
        normalize=options.normalize,
        rescale=options.rescale,
        epsilon=options.epsilon,
        gamma=options.gamma,
        t=options.t,
        seed=options.seed,
    )
    with progress("merging") as advance:
        merge(
            models,
            Path(output),
            config,
            base=options.base,
            dtype=options.dtype,
            max_shard_bytes=parse_size(options.max_shard_size),
            on_write=advance,
        )
    print(output)
    return 0


def parse_weights(argument: str) -> tuple[str, tuple[float, ...]]:
    """`REGEX=w1,w2` in two.

    Raises:
        ValueError: it has no "=" or what follows the last one is not numbers.
    """
    pattern, equals, weights = argument.rpartition("=")
    try:
        numbers = tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        numbers = ()
    if not (equals and pattern and numbers):
        raise ValueError(f"--weights-for {argument!r} is not allowed: it must be REGEX=w1,w2,... with a number a model")
    return pattern, numbers
