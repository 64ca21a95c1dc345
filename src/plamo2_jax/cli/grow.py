"""`plamo2 grow FROM TO OUT`: a larger model that starts from a smaller one's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def grow(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    method: Literal["clone", "tile", "zero"] = "zero",
    depth: Literal["stack", "interleave", "identity"] = "identity",
    noise: float = 0.1,
    seed: int = 0,
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    step: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    plan: bool = False,
) -> None:
    """Write a larger model, in the public layout, that reuses a smaller one's weights; pretrain starts from it with --init-from.

    Of the target only sizes count: windows, RoPE bases and token ids stay the source's. The optimizer starts anew. With clone or zero,
    and identity, the larger model computes what the smaller one does.

    Args:
        source: The model to grow: a run folder or a folder of the public layout. With --plan a shape will do.
        target: The shape to grow to: a preset, a config.json, or a model's folder.
        output: Folder to make; it must not exist or be empty.
        method: How channels are added. clone: copies, exact for any sizes. tile: copies read alike, exact for whole multiples only. zero:
            silent channels beside the old ones, exact; the one that saved most tokens (experiments/weight_reuse).
        depth: How layers are added. stack: the whole stack again. interleave: each period again. identity: the same, but silent at
            first, which is exact.
        noise: Tells copies apart, which would have the same gradients for ever: standard deviation over a weight's root mean square. It
            cancels over the copies, so that the function is kept.
        seed: Of the noise, and of what starts at random.
        set: FIELD=VALUE, replaces a field of the target's shape; may be given several times.
        step: Which checkpoint of a run folder; left out, the newest.
        dtype: Of the file.
        plan: Only print what would grow.
    """
    from plamo2_jax.surgery.depth import grown_config
    from plamo2_jax.surgery.shapes import changes_table, read_shape, with_sizes

    old = read_shape(source)
    new = grown_config(old, with_sizes(old, read_shape(target, set)), depth)
    if noise < 0:
        raise ValueError(f"--noise {noise} is not allowed: it must be zero or positive")

    import jax

    from plamo2_jax.convert.hf import chat_template_files, write_public
    from plamo2_jax.convert.load import load_model
    from plamo2_jax.model import Plamo2, abstract_params
    from plamo2_jax.storage import require_empty
    from plamo2_jax.surgery import reuse

    def run(params):
        return reuse.grow(params, old, new, width=method, depth=depth, noise=noise, seed=seed)

    if plan:
        # On shapes alone, without noise: it would be drawn.
        jax.eval_shape(
            lambda params: reuse.grow(params, old, new, width=method, depth=depth), abstract_params(Plamo2(old))
        )
        print(changes_table(old, new))
        return
    require_empty(output)
    reuse.check(old, new, method, depth)
    loaded = load_model(source, step=step)
    params, files = run(jax.device_get(loaded.params)), chat_template_files(Path(source))
    write_public(output, new, params, loaded.tokenizer, dtype=dtype, files=files)
    print(changes_table(old, new))
    print(output)


def main(argv: list[str]) -> None:
    """Runs `plamo2 grow`."""
    tyro.cli(grow, args=argv, prog="plamo2 grow")
