"""Continual pretraining of an 8B model with full attention over 128K tokens, on your own shards.

Published PLaMo 2 models have at most 32K tokens of context; this configuration is our proposal. The RoPE base is larger than for 32K (1e6),
so the slowest rotations stay within the angles of earlier training (arXiv:2309.16039). The value is our choice and has not been tested.
Needs folders of shards (`plamo2 data prepare`) of long documents under data/, and an initial model: `--init-from runs/pretrain_8b_32k`.

The mesh is chosen for a TPU v5p:8x8x8. The tokens of each row are sharded over 16 chips; experiments/tpu_plans has the planned memory and
time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b_32k.py")
TOKENS = 20e9  # our choice
ROWS, LENGTH = 32, 131072  # 4.2M tokens per step, as in pretrain_8b_32k.py

config = dataclasses.replace(
    base,
    name="pretrain_8b_128k",
    model=dataclasses.replace(base.model, attention_window_size=LENGTH, rope_theta=8e6),
    data=dataclasses.replace(base.data, sequence_length=LENGTH, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * LENGTH)),
    schedule=ScheduleConfig(kind="wsd", learning_rate=2e-5, warmup=100, decay_fraction=0.5),
    # Parameters are sharded over fsdp × sequence = 64 of 512 chips, two axes of the torus; see pretrain_8b.py.
    mesh=MeshConfig(data=8, fsdp=4, sequence=16),
    accumulation=1,
)
