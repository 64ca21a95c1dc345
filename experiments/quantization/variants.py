"""The ways of quantizing that are compared."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way of quantizing."""

    name: str
    options: tuple[str, ...]
    calibrated: bool = True
    """Whether the result depends on the calibration rows, and so on the seed."""


def four(method: str, group: int = 64, *more: str) -> tuple[str, ...]:
    """Options of 4 bits."""
    return ("--bits", "4", "--method", method, "--group-size", str(group), *more)


MAMBA = ("--bits-for", "mixer/(in|out)_proj=4")
VARIANTS = (
    Variant("int8", (), False),
    Variant("W8A8 int8, rtn", ("--activations", "int8"), False),
    Variant("W8A8 int8, smoothquant", ("--activations", "int8", "--method", "smoothquant")),
    Variant("W8A8 float8", ("--bits", "float8", "--activations", "float8"), False),
    Variant("int4 g64, rtn", four("rtn"), False),
    Variant("int4 g64, rtn, clip search", four("rtn", 64, "--clip-search"), False),
    Variant("int4 g64, gptq", four("gptq")),
    Variant("int4 g64, awq", four("awq")),
    Variant("int4 g64, awq+gptq", four("awq+gptq")),
    Variant("int4 g64, gptq, trained scales", four("gptq", 64, "--finetune-norms", "100")),
    Variant("int4 g64, awq+gptq, trained scales", four("awq+gptq", 64, "--finetune-norms", "100")),
    Variant("int4 g32, rtn", four("rtn", 32), False),
    Variant("int4 g32, awq+gptq", four("awq+gptq", 32)),
    Variant("int4 g128, rtn", four("rtn", 128), False),
    Variant("int4 g128, awq+gptq", four("awq+gptq", 128)),
    Variant("int4 one scale an output, rtn", ("--bits", "4", "--group-size", "none"), False),
    Variant("int4 one scale an output, awq+gptq", ("--bits", "4", "--group-size", "none", "--method", "awq+gptq")),
    Variant("int4 g64 with Mamba, rtn", four("rtn", 64, *MAMBA), False),
    Variant("int4 g64 with Mamba, awq+gptq", four("awq+gptq", 64, *MAMBA)),
    Variant("budget halfway, rtn", ("--budget", "HALFWAY")),
)
