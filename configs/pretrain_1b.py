"""Pretraining at the size of plamo-2-1b, on your own shards.

The shape and the number of tokens (4T) are public. The recipe is not public; comments name the sources of this one. The mixture and AdamW
are the same as in pretrain_8b.py. The run needs folders of shards (`plamo2 data prepare`) under data/.

The sharding and the micro-batches are for a TPU v5e:4x4; experiments/tpu_plans has their memory and time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b.py")
TOKENS = 4e12  # plamo-2-1b was trained on 4T tokens
ROWS, LENGTH = 512, 4096  # 2.1M tokens per update, as OLMo 2 1B (arXiv:2501.00656)

config = dataclasses.replace(
    base,
    name="pretrain_1b",
    model=preset("plamo-2-1b"),
    data=dataclasses.replace(base.data, sequence_length=LENGTH, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * LENGTH)),
    # Peak rate and warm-up of OLMo 2 1B. The rate decays over the last eighth, because the second phase has this share of the tokens.
    schedule=ScheduleConfig(kind="wsd", learning_rate=4e-4, warmup=2000, decay_fraction=0.125),
    # The state is sharded over all 16 chips, and parameters are gathered once per step. If they were gathered for each use, this would take
    # half as long as the products (experiments/tpu_plans).
    mesh=MeshConfig(),
    sharding="zero2",
    accumulation=16,
)
