"""`plamo2 prune MODEL TARGET OUT --calibration DATA`: prune a model to a smaller shape."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Prune a model to a smaller shape, and write it in Hugging Face format. To train it further, use plamo2 pretrain with --init-from.

    Only size fields of the target are used; windows, RoPE bases and token ids keep the model's values. Channels and layers are selected by
    their importance on calibration data. Residual channels are selected for all layers together; MLP channels, heads and state channels in
    each layer; layers in whole periods. A key/value head is kept or removed together with its query heads.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Model to prune: a run folder, RUN@STEP or RUN@ema, or a folder in Hugging Face format. With --plan it may be a shape."""
    target: Annotated[str, tyro.conf.Positional]
    """Target shape: a preset, a config.json, or a model's folder (may be MODEL if --set or a budget is given)."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist, or it must be empty."""
    calibration: Path | None = None
    """Folder of shards that `plamo2 data prepare` wrote with the model's tokenizer."""
    method: Literal["activation", "taylor", "magnitude", "random"] = "activation"
    """How channels are ranked. activation: size of activations. taylor: first-order change of the loss. magnitude: size of weights.
    random: a baseline for comparison."""
    depth: Literal["influence", "loss", "same"] = "influence"
    """How layers are ranked. influence: angle between the residual stream before and after the layer (ShortGPT). loss: increase of the loss
    without the layer. same: use --method."""
    rounds: int = 1
    """Number of rounds of measuring importance and pruning; sizes shrink by the same ratio in each round."""
    batches: int = 8
    """Number of calibration batches."""
    batch_size: int = 8
    """Rows per calibration batch."""
    sequence_length: int = 512
    """Positions per row."""
    multiple_of: int | None = None
    """Hidden and MLP sizes must be multiples of this; 128 fits the matrix units of TPUs."""
    max_parameters: float | None = None
    """Search shapes with at most this many parameters, and keep the one with the lowest loss."""
    max_flops: float | None = None
    """Search shapes with at most this many forward FLOPs per token at --sequence-length."""
    seed: int = 0
    """Random seed, for the order of the data and for --method random."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE replaces a size of the target's shape; may be given several times."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the file."""
    plan: bool = False
    """Print the parts that would be removed, or the shapes within the budget, and write nothing."""


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(PruneOptions, argv, "plamo2 prune")
    from plamo2_jax.storage import require_empty
    from plamo2_jax.surgery.prune.cut import check_target
    from plamo2_jax.surgery.prune.search import candidates
    from plamo2_jax.surgery.shapes import changes_table, read_shape, require_sizes, with_sizes

    old = read_shape(options.model)
    wanted, multiple = read_shape(options.target, options.set), options.multiple_of or 1
    require_sizes(options.set)
    target = with_sizes(old, wanted)
    shapes = [target]
    if options.max_parameters is not None and options.max_flops is not None:
        raise PlamoError("--max-parameters and --max-flops are not allowed together: give one of them")
    if (bound := options.max_parameters) is not None:
        shapes = candidates(target, bound, lambda config: config.parameter_count(), multiple_of=multiple)
    elif (bound := options.max_flops) is not None:
        length = options.sequence_length
        shapes = candidates(target, bound, lambda config: config.flops_per_token(length), multiple_of=multiple)
    for shape in shapes:
        check_target(old, shape, options.multiple_of)
    if options.plan:
        for shape in shapes:
            _check_on_shapes(old, shape)
            print(changes_table(old, shape), end="\n\n" if len(shapes) > 1 else "\n")
        return
    require_at_least(1, rounds=options.rounds, batches=options.batches)
    if options.calibration is None:
        raise PlamoError("--calibration is missing: it must be a folder of shards. Write one with plamo2 data prepare")
    require_empty(options.output)

    from plamo2_jax.surgery.prune.write import prune_model

    def report(shape, loss) -> None:
        print(
            f"{shape.num_hidden_layers} layers, hidden {shape.hidden_size}, MLP {shape.intermediate_size}, "
            f"{shape.parameter_count():,} parameters: {loss:.4f} nats per token of the calibration data",
            file=sys.stderr,
        )

    pruned = prune_model(
        options.model,
        options.output,
        shapes,
        calibration=options.calibration,
        method=options.method,
        depth=options.depth,
        rounds=options.rounds,
        batches=options.batches,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        seed=options.seed,
        step=options.step,
        dtype=options.dtype,
        on_pruned=report,
    )
    print(changes_table(old, pruned))
    print(options.output)


def _check_on_shapes(old, new) -> None:
    """Check, on shapes only, that pruning the source gives every parameter of the target."""
    import jax

    from plamo2_jax.model import Plamo2, abstract_params
    from plamo2_jax.surgery.prune.cut import cut_config, cut_params
    from plamo2_jax.surgery.prune.selection import first_masks

    masks = first_masks(old, new)
    config = cut_config(old, new, masks)
    cut = jax.eval_shape(lambda params: cut_params(params, masks, old, config), abstract_params(Plamo2(old)))
    if cut != abstract_params(Plamo2(config)):
        raise PlamoError("the parameter shapes after pruning differ from the shapes of the target")
