"""Continual pretraining of an 8B with full attention over 128K tokens, on your own shards.

PLaMo 2 ends at 32K; this configuration is a proposal of this project. The RoPE base is larger than at 32K (1e6), which keeps the slowest
rotations within the angles of the training before, as in arXiv:2309.16039. The value has not been tested. The run needs folders of shards
(`plamo2 data prepare`) of long documents under data/, and a run to start from: `--init-from runs/pretrain_8b_32k`.

The mesh is for a TPU v5p:8x8x8, and divides the tokens of each row over 16 chips; experiments/tpu_plans has its memory and time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b_32k.py")
TOKENS = 20e9  # our choice
ROWS, LENGTH = 32, 131072  # 4.2M tokens per update, as pretrain_8b_32k.py

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
