"""`plamo2 extend MODEL OUT`: extend the attention of a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class ExtendOptions:
    """Widen the attention window of a model, use full attention or change the RoPE base, and write the model as a run folder.

    The published extension to 32K: plamo2 extend runs/pretrain_8b runs/8b_32k --window 32768 --rope-theta 1e6
    The same with full attention: plamo2 extend runs/pretrain_8b runs/8b_full --full-attention all --rope-theta 1e6

    The weights do not change. With the same RoPE base, outputs for texts within the old window do not change either. With another base, the
    model needs further training: plamo2 pretrain configs/extend_32k.py --init-from OUT Full-attention layers use rope_theta; windowed
    layers use rope_local_theta if it is set, else rope_theta.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, folder in Hugging Face format, RUN@STEP or RUN@ema."""
    output: Annotated[Path, tyro.conf.Positional]
    """Run folder to create: it must not exist, or it must be empty."""
    window: int | None = None
    """Attention window of windowed layers, in tokens; not smaller than the current window."""
    rope_theta: float | None = None
    """RoPE base of full-attention layers, or of all layers if all have a window."""
    rope_local_theta: float | None = None
    """RoPE base of windowed layers. Default: unchanged if other layers have full attention, otherwise --rope-theta."""
    full_attention: str | None = None
    """Layers with full attention: all, none, or layer numbers such as 1,7,15."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(ExtendOptions, argv, "plamo2 extend")
    from plamo2_jax.surgery.extend import extend

    config = extend(
        options.model,
        options.output,
        window=options.window,
        rope_theta=options.rope_theta,
        rope_local_theta=options.rope_local_theta,
        full_attention=parse_layers(options.full_attention),
    )
    full = ", ".join(map(str, config.full_attention_idx)) or "none"
    local = "" if config.local_theta == config.rope_theta else f" ({config.local_theta:g} in windowed layers)"
    print(
        f"{options.output}: window {config.attention_window_size:,}, RoPE base {config.rope_theta:g}{local}, "
        f"full attention in layers: {full}"
    )
    return 0


def parse_layers(text: str | None) -> str | tuple[int, ...] | None:
    """Parse `all`, `none` or layer numbers separated by commas; raise PlamoError if the text is none of these."""
    if text in (None, "all", "none"):
        return text
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise PlamoError(
            f"--full-attention {text!r} is not allowed: it must be all, none or layer numbers such as 1,7,15"
        )
    return tuple(map(int, parts))
