"""`plamo2 grow SOURCE TARGET OUT`: grow a model to a larger shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class GrowOptions:
    """Grow a model to a larger shape, and write it in Hugging Face format. To train it further, use plamo2 pretrain with --init-from.

    Only size fields of the target are used; windows, RoPE bases and token ids keep the source's values. The optimizer state is not copied.
    With --method clone or zero and --depth identity, the larger model computes the same function as the smaller one.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Model to grow: a run folder, RUN@STEP or RUN@ema, or a folder in Hugging Face format. With --plan it may be a shape."""
    target: Annotated[str, tyro.conf.Positional]
    """Target shape: a preset, a config.json, or a model's folder."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist, or it must be empty."""
    method: Literal["clone", "tile", "zero"] = "zero"
    """How channels are added. clone: copies; keeps the function for any sizes. tile: copies; keeps the function for whole multiples only.
    zero: new channels with zero output; keeps the function, and saved the most training tokens (experiments/weight_reuse)."""
    depth: Literal["stack", "interleave", "identity"] = "identity"
    """How layers are added. stack: repeat the whole stack. interleave: repeat each period. identity: like interleave, but new layers start
    with zero output, which keeps the function."""
    noise: float = 0.1
    """Standard deviation of the noise added to copies, relative to the root mean square of a weight. The noise of the copies cancels, so
    the function does not change. Without noise, copies always get equal gradients."""
    seed: int = 0
    """Random seed."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE replaces a size of the target's shape; may be given several times."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the file."""
    plan: bool = False
    """Print the changes of the shape, and write nothing."""


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(GrowOptions, argv, "plamo2 grow")
    from plamo2_jax.surgery.grow.depth import grown_config
    from plamo2_jax.surgery.shapes import changes_table, read_shape, require_sizes, with_sizes

    old = read_shape(options.source)
    wanted = read_shape(options.target, options.set)
    require_sizes(options.set)
    new = grown_config(old, with_sizes(old, wanted), options.depth)
    require_at_least(0, seed=options.seed)
    if not 0 <= options.noise < float("inf"):
        raise PlamoError(f"--noise {options.noise} is not allowed: it must be zero or positive, and finite")

    import jax

    from plamo2_jax.convert.hf import write_public
    from plamo2_jax.convert.load import load_model
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.model import Plamo2, abstract_params
    from plamo2_jax.storage import require_empty
    from plamo2_jax.surgery.grow import grow
    from plamo2_jax.tokenizer.template_files import chat_template_files

    how = {"width": options.method, "depth": options.depth}
    if options.plan:
        # On shapes only, and without noise, which NumPy would draw in full size.
        jax.eval_shape(lambda params: grow.grow(params, old, new, **how), abstract_params(Plamo2(old)))
        print(changes_table(old, new))
        return
    require_empty(options.output)
    grow.check_target(old, new, options.method, options.depth)
    files = chat_template_files(ModelName.parse(options.source).folder)
    loaded = load_model(options.source, step=options.step, require_finite=True)
    params = grow.grow(jax.device_get(loaded.params), old, new, noise=options.noise, seed=options.seed, **how)
    write_public(options.output, new, params, loaded.tokenizer, dtype=options.dtype, files=files)
    print(changes_table(old, new))
    print(options.output)
