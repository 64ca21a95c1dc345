"""Names of TPU slices on the command line of `plamo2 plan`."""

from __future__ import annotations

from plamo2_jax.launch.slices import parse_slice
from plamo2_jax.plan.chips import chip_of_slice
from plamo2_jax.plan.compiler import device_count


def slice_name(text: str) -> str:
    """Return the compiler's name of a slice, such as v5e:4x4, also for an accelerator type, such as v5litepod-16.

    Raises:
        PlamoError: There is no such accelerator type, the name has another form, or there are no published figures for its chips.
    """
    name = parse_slice(text, "--topology").topology if "-" in text else text
    device_count(name)  # refuses other forms
    chip_of_slice(name)
    return name
