"""The option `--mesh.tensor` of the commands that run a model on several devices."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class DecodeMesh:
    """Devices over which a model is sharded."""

    tensor: int = 1
    """Number of devices over which the heads, the MLP columns and the vocabulary are sharded. If the number of heads is not divisible,
    every device holds all heads."""

    def make(self) -> jax.sharding.Mesh | None:
        """Return the mesh, or None for one device; raise PlamoError if there are fewer devices."""
        import jax

        from plamo2_jax.errors import PlamoError
        from plamo2_jax.sharding.mesh import MeshConfig, make_mesh

        found = jax.local_devices()
        if not 1 <= self.tensor <= len(found):
            raise PlamoError(
                f"--mesh.tensor {self.tensor} is not allowed: it must be from 1 to {len(found)}, the number of "
                "available devices"
            )
        return None if self.tensor == 1 else make_mesh(MeshConfig(fsdp=1, tensor=self.tensor), found[: self.tensor])
