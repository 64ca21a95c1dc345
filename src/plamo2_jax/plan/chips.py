"""What is public about TPU chips, per jax.Device: a chip, but on TPU7x one of a chip's two TensorCores."""

from __future__ import annotations

import dataclasses

from plamo2_jax.train.flops import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One jax.Device of a TPU slice."""

    kind: str
    """`jax.Device.device_kind`."""
    cores: int
    """TensorCores that share the device's work."""
    mxus: int
    """Matrix units of a core."""
    mxu_size: int
    """A matrix unit is an array of this many rows and columns of multiply-adders."""
    mxu_rows_per_cycle: int
    """Rows of a bfloat16 operand that a matrix unit takes in a cycle."""
    hbm_bytes_per_second: float
    hbm_bytes: float
    vmem_bytes: int
    """Vector memory of a core."""

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.kind]

    @property
    def clock(self) -> float:
        """Cycles a second. Derived, since Google names a peak but no clock: peak = 2 · multiply-adds a cycle · clock."""
        multiply_adds = self.cores * self.mxus * self.mxu_size**2 * self.mxu_rows_per_cycle
        return self.peak_flops / (2 * multiply_adds)

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """HBM bandwidth against the derived clock."""
        return self.hbm_bytes_per_second / self.clock

    def mxu_cycles(self, rows: float) -> float:
        """Cycles a core needs at least to push that many rows through its matrix units."""
        return rows / (self.mxus * self.mxu_rows_per_cycle)


_MiB = 2**20

# HBM and the number of matrix units: cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}; there GB are 10^9. Vector memory:
# docs.jax.dev/en/latest/pallas/tpu/hardware.html. The arrays of v5 are 128×128 (arXiv:2304.01433), one multiply-add a cell and cycle, which
# gives 1.50 GHz for v5e and 1.75 GHz for v5p. Those of v6e and TPU7x are 256×256, two to a core (the hardware page of jax); that they
# take two rows a cycle is our inference, since with one the clocks would be 3.5 and 4.4 GHz: it gives 1.75 and 2.20 GHz.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("TPU v5 lite", 1, 4, 128, 1, 819e9, 16e9, 128 * _MiB),
        Chip("TPU v5", 2, 4, 128, 1, 2765e9, 95e9, 64 * _MiB),
        Chip("TPU v6 lite", 1, 2, 256, 2, 1640e9, 32e9, 128 * _MiB),
        Chip("TPU7x", 1, 2, 256, 2, 7380e9 / 2, 192e9 / 2, 64 * _MiB),
    )
}


def chip_of(kind: str) -> Chip:
    """The chip of a device kind.

    Raises:
        ValueError: nothing is known of it.
    """
    if kind not in CHIPS:
        raise ValueError(f"no figures for {kind}; there are some for {', '.join(CHIPS)}")
    return CHIPS[kind]
