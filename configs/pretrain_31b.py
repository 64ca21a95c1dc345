"""Pretraining at the size of plamo-2-31b, a shape of this project, on your own shards.

The recipe is the one of pretrain_8b.py, with twice as many tokens per update. The run needs folders of shards (`plamo2 data prepare`)
under data/.

The mesh is for a TPU v5p:8x8x8; experiments/tpu_plans has its memory and time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig

base = load_config(Path(__file__).parent / "pretrain_8b.py")
TOKENS = 6e12  # as plamo-2-8b
ROWS = 1024  # 8.4M tokens per update, as OLMo 2 32B (arXiv:2501.00656)

config = dataclasses.replace(
    base,
    name="pretrain_31b",
    model=preset("plamo-2-31b"),
    data=dataclasses.replace(base.data, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * base.data.sequence_length)),
    # Parameters are sharded over 64 of 512 chips, two axes of the torus; see pretrain_8b.py.
    mesh=MeshConfig(data=8),
    accumulation=2,
    remat="dots",
)
