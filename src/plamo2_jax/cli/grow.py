"""`plamo2 grow SOURCE TARGET OUT`: grow a model to a larger shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class GrowOptions:
    """Grow a model to a larger shape, and write it in the public layout. To train it further, use pretrain with --init-from.

    Only size fields of the target are used; windows, RoPE bases and token ids keep the source's values. The optimizer state is not
    carried over. With --method clone or zero and --depth identity, the larger model computes the same function as the smaller one.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Model to grow: a run folder, RUN@STEP or RUN@ema, or a folder of the public layout. With --plan it may be a shape."""
    target: Annotated[str, tyro.conf.Positional]
    """Target shape: a preset, a config.json, or a model's folder."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist or must be empty."""
    method: Literal["clone", "tile", "zero"] = "zero"
    """How channels are added. clone: copies, exact for any sizes. tile: copies, exact for whole multiples only. zero: new channels
    with zero output, exact; it saved the most tokens (experiments/weight_reuse)."""
    depth: Literal["stack", "interleave", "identity"] = "identity"
    """How layers are added. stack: repeat the whole stack. interleave: repeat each period. identity: as interleave, with zero
    output at first, which is exact."""
    noise: float = 0.1
    """Standard deviation of the noise that makes copies different, relative to a weight's root mean square. It cancels over the
    copies, so the function is kept. Without it copies would always have equal gradients."""
    seed: int = 0
    """Random seed."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE, replaces a field of the target's shape; may be given several times."""
    step: int | None = None
    """Which checkpoint of a run folder, instead of RUN@STEP; left out, the newest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the file."""
    plan: bool = False
    """Print what would grow, and write nothing."""


def grow(options: GrowOptions) -> None:
    """Grow a model to a larger shape, and write it in the public layout. To train it further, use pretrain with --init-from."""
    from plamo2_jax.surgery.grow.depth import grown_config
    from plamo2_jax.surgery.shapes import changes_table, read_shape, with_sizes

    old = read_shape(options.source)
    new = grown_config(old, with_sizes(old, read_shape(options.target, options.set)), options.depth)
    if options.noise < 0:
        raise PlamoError(f"--noise {options.noise} is not allowed: it must be zero or positive")

    import jax

    from plamo2_jax.convert.hf import write_public
    from plamo2_jax.convert.load import load_model
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.model import Plamo2, abstract_params
    from plamo2_jax.storage import require_empty
    from plamo2_jax.surgery.grow import grow as surgery
    from plamo2_jax.tokenizer.template_files import chat_template_files

    def run(params):
        return surgery.grow(
            params, old, new, width=options.method, depth=options.depth, noise=options.noise, seed=options.seed
        )

    if options.plan:
        # On shapes only, and without noise, which would be drawn in full size.
        jax.eval_shape(
            lambda params: surgery.grow(params, old, new, width=options.method, depth=options.depth),
            abstract_params(Plamo2(old)),
        )
        print(changes_table(old, new))
        return
    require_empty(options.output)
    surgery.check_target(old, new, options.method, options.depth)
    files = chat_template_files(ModelName.parse(options.source).folder)
    loaded = load_model(options.source, step=options.step, require_finite=True)
    write_public(
        options.output, new, run(jax.device_get(loaded.params)), loaded.tokenizer, dtype=options.dtype, files=files
    )
    print(changes_table(old, new))
    print(options.output)


def main(argv: list[str]) -> None:
    """Runs `plamo2 grow`."""
    call(grow, argv, "plamo2 grow")
