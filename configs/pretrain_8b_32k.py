"""Context extension of an 8B model to full attention over 32K tokens, on your own shards.

The shape is the same as plamo-2.1-8b, whose published window of 32768 tokens covers the whole context. The recipe is the same as in
pretrain_8b.py, except for the learning rate. Needs folders of shards (`plamo2 data prepare`) of long documents under data/, and an initial
model: `--init-from runs/pretrain_8b`.

The mesh is chosen for a TPU v5p:4x4x4. The tokens of each row are sharded over four chips; experiments/tpu_plans has the planned memory and
time.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.schedule import ScheduleConfig

base = load_config(Path(__file__).parent / "pretrain_8b.py")
TOKENS = 100e9  # our choice, because the number is not published
ROWS, LENGTH = 128, 32768  # 4.2M tokens per step, as in pretrain_8b.py

config = dataclasses.replace(
    base,
    name="pretrain_8b_32k",
    model=preset("plamo-2.1-8b"),
    data=dataclasses.replace(base.data, sequence_length=LENGTH, batch_size=ROWS),
    steps=round(TOKENS / (ROWS * LENGTH)),
    # The peak is a tenth of the peak in pretrain_8b.py, where its decay ends. It decays to 0.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=100, decay_fraction=0.5),
    # Parameters are sharded over fsdp × sequence = 16 of 64 chips; see pretrain_8b.py.
    mesh=MeshConfig(data=4, sequence=4),
    # Each chip computes the logits of 8192 positions. With loss chunks, every chunk would gather the embedding again.
    loss_chunk=None,
)
