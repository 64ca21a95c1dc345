"""`plamo2 merge MODEL MODEL ... OUT`: merge several models into one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError
from plamo2_jax.surgery.merge.config import MergeConfig, Method
from plamo2_jax.surgery.merge.methods import Rescale


@dataclasses.dataclass(frozen=True)
class MergeOptions:
    """Merge models with the same shape and the same tokenizer, tensor by tensor, into a folder in Hugging Face format.

    A model is a folder in Hugging Face format, a run folder (its newest checkpoint), a checkpoint RUN@STEP, or the moving average of the
    parameters, RUN@ema or RUN@STEP,ema. Example, the average of two checkpoints: plamo2 merge runs/demo@350 runs/demo@700 averaged

    Methods without a base: linear (weighted mean), slerp (spherical interpolation of two models), karcher (spherical mean of any number).
    Methods with --base, the model that the others were trained from, merge the differences from the base: task_arithmetic (weighted sum),
    ties (the largest differences of the elected sign), dare_linear and dare_ties (random differences are dropped), della (small differences
    are dropped more often), breadcrumbs (the smallest and the very largest are dropped), model_stock (the better the models agree, the
    closer to their mean), nearswap (the base moves towards one model by at most --t per element).
    """

    models_and_output: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL MODEL ... OUT")]
    """The models, and then the folder to create, which must not exist or must be empty."""
    method: Method = "linear"
    """Merge method."""
    base: str | None = None
    """Base model; methods with a base merge the differences from it."""
    weight: tuple[float, ...] = ()
    """One weight per model, in order. Default: all 1. linear, slerp and karcher divide by the sum of the weights."""
    weights_for: tuple[str, ...] = ()
    """REGEX=w1,w2,... sets the weights of the tensors whose description matches. A description is the public name, the parameter of this
    project and its axes, such as "model.layers.layers.1.mixer.o_proj.weight run_0/layer_1/mixer/o_proj axes=heads,head_dim,embed". The last
    match wins. Examples: 'layers\\.[0-3]\\.=1,0' or 'axes=.*mamba_heads=0.3,0.7'."""
    density: float | None = None
    """Share of each difference that is kept. Default: 0.2 for ties, 0.9 for breadcrumbs, 0.5 for dare and della."""
    scale: Annotated[float, tyro.conf.arg(name="lambda")] = 1.0
    """Factor of the merged differences."""
    normalize: bool | None = None
    """Divide the sum of differences by the sum of the weights. Default: yes for ties and della."""
    rescale: Rescale = "probability"
    """How dare and della rescale kept differences. probability: divide by the probability of being kept, as in the papers. norm: scale
    to the sum of magnitudes before dropping, as mergekit 0.1 does. none: do not rescale."""
    epsilon: float = 0.15
    """della: keep probabilities range from density - epsilon to density + epsilon."""
    gamma: float = 0.01
    """breadcrumbs: share of the largest differences that is dropped."""
    t: float = 1e-3
    """nearswap: largest change of an element."""
    seed: int = 0
    """Random seed of dare and della."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the files. Default: the dtype of the models. Arithmetic is always float32."""
    max_shard_size: str = "5GB"
    """Largest size of one safetensors file, such as 5GB or 500MiB."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(MergeOptions, argv, "plamo2 merge")
    if len(options.models_and_output) < 2:
        raise PlamoError(
            "too few arguments: give the models and then the folder to create, such as plamo2 merge A B OUT"
        )
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
    """Split `REGEX=w1,w2` into the expression and the weights; raise PlamoError if the argument has another form."""
    pattern, _, weights = argument.rpartition("=")
    try:
        numbers = tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        numbers = ()
    if not (pattern and numbers):
        raise PlamoError(
            f"--weights-for {argument!r} is not allowed: it must be REGEX=w1,w2,... with one number per model"
        )
    return pattern, numbers
