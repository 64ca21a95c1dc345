"""Context extension of an 8B to full attention over 32K tokens, on your own shards.

The shape is plamo-2.1-8b, whose published window of 32768 covers the whole row. The recipe is the one of pretrain_8b.py with another rate.
It needs folders of shards (`plamo2 data prepare`) of long documents under data/, and a run to start from: `--init-from runs/pretrain_8b`.

The mesh is for a TPU v5p:4x4x4, and divides the tokens of each row over four chips; experiments/tpu_plans has its memory and time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b.py")
TOKENS = 100e9  # Our choice, because the number for the published model is not public.
ROWS, LENGTH = 128, 32768  # 4.2M tokens per update, as pretrain_8b.py

config = dataclasses.replace(
    base,
    name="pretrain_8b_32k",
    model=preset("plamo-2.1-8b"),
    data=dataclasses.replace(base.data, sequence_length=LENGTH, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * LENGTH)),
    # The rate starts at a tenth of the peak of pretrain_8b.py, where its decay ends, and falls to zero.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=100, decay_fraction=0.5),
    # Parameters are sharded over fsdp × sequence = 16 of 64 chips; see pretrain_8b.py.
    mesh=MeshConfig(data=4, sequence=4),
)
