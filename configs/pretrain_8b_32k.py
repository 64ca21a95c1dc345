"""The move of an 8B to full attention over 32K tokens, on shards of your own.

The shape is that of plamo-2.1-8b, whose published window, 32768, cuts nothing off. The recipe is that of pretrain_8b.py but for the rate.
Needs folders of shards (`plamo2 data prepare`) of long documents under data/, and a run to start from: `--init-from runs/pretrain_8b`.

The mesh is for a TPU v5p:4x4x4, each row's tokens over four chips; experiments/tpu_plans has what it takes there.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b.py")
TOKENS = 100e9  # our choice: the published model does not say
ROWS, LENGTH = 128, 32768  # 4.2M tokens an update, as pretrain_8b.py

config = dataclasses.replace(
    base,
    name="pretrain_8b_32k",
    model=preset("plamo-2.1-8b"),
    data=dataclasses.replace(base.data, sequence_length=LENGTH, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * LENGTH)),
    # A tenth of the peak of pretrain_8b.py, where its decay ends, and down to nothing.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=100, decay_fraction=0.5),
    # Parameters over fsdp × sequence = 16 of 64 chips; see pretrain_8b.py.
    mesh=MeshConfig(data=4, sequence=4),
)
