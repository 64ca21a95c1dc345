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
    """What a program may take of HBM."""
    vmem_bytes: int
    """Vector memory of a core."""
    ici_bytes_per_second: float
    """Over all its links to other chips together, one way: half of the "bidirectional" figure that is published."""
    ici_links: int
    """Links to neighbours: two for each axis of the torus."""
    torus_multiple: int
    """Chips along an axis of a slice, or a multiple of it, from which on the axis closes to a ring; else its ends are open."""
    dcn_bytes_per_second: float
    """To other slices, one way."""

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

    @property
    def link_bytes_per_second(self) -> float:
        """Of one link, one way."""
        return self.ici_bytes_per_second / self.ici_links

    def mxu_cycles(self, rows: float) -> float:
        """Cycles a core needs at least to push that many rows through its matrix units."""
        return rows / (self.mxus * self.mxu_rows_per_cycle)


_MiB, _GiB = 2**20, 2**30

# HBM and the number of matrix units: cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}; there GB are 10^9. Vector memory:
# docs.jax.dev/en/latest/pallas/tpu/hardware.html. The arrays of v5 are 128×128 (arXiv:2304.01433), one multiply-add a cell and cycle, which
# gives 1.50 GHz for v5e and 1.75 GHz for v5p. Those of v6e and TPU7x are 256×256, two to a core (the hardware page of jax); that they
# take two rows a cycle is our inference, since with one the clocks would be 3.5 and 4.4 GHz: it gives 1.75 and 2.20 GHz.
# HBM in bytes is what libtpu says is available when a program does not fit: 15.75, 95.74, 31.25 and 94.75 GiB a device.
# Links between chips: the same pages, "bidirectional inter-chip interconnect (ICI) bandwidth (per chip)", 400, 1200, 800 and 1200 GB/s, so
# half of it each way (older versions of the pages say 1600, 4800 and 3200 Gbit/s: those halves), over 4 links of a 2D torus or 6 of a 3D
# one; a TPU7x device has half of its chip's. A v5e or v6e slice has links around only along axes of 16, v5p and TPU7x along multiples of
# 4. DCN: v5p 50 Gbit/s a chip; v5e and v6e 6.4 and 25.6 Tbit/s a pod of 256; TPU7x 100 Gbit/s a chip.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("TPU v5 lite", 1, 4, 128, 1, 819e9, 15.75 * _GiB, 128 * _MiB, 200e9, 4, 16, 25e9 / 8),
        Chip("TPU v5", 2, 4, 128, 1, 2765e9, 95.74 * _GiB, 64 * _MiB, 600e9, 6, 4, 50e9 / 8),
        Chip("TPU v6 lite", 1, 2, 256, 2, 1640e9, 31.25 * _GiB, 128 * _MiB, 400e9, 4, 16, 100e9 / 8),
        Chip("TPU7x", 1, 2, 256, 2, 7380e9 / 2, 94.75 * _GiB, 64 * _MiB, 600e9 / 2, 6, 4, 100e9 / 8 / 2),
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
