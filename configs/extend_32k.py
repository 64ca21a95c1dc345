"""Context extension with `plamo2 extend` and further training: from a window of 2048 to full attention over 32K tokens in three stages.

    plamo2 extend runs/pretrain_8b runs/stage_0 --full-attention all --rope-theta 46416       # the RoPE base of stage 1 in STAGES
    STAGE=1 plamo2 pretrain configs/extend_32k.py --init-from runs/stage_0
    plamo2 extend runs/extend_32k_1 runs/stage_1 --rope-theta ...                              # repeat for the next stages

The row length and the RoPE base grow by a fixed factor in each stage; `python configs/extend_32k.py` prints them. In each source, documents
of at least half a row are read four times as often as others (arXiv:2402.10171). Documents in a row do not see each other.
"""

import dataclasses
import os
import runpy
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.surgery.extend import Stage, extended_config, stages
from plamo2_jax.train.schedule import ScheduleConfig

TOKENS = 100e9  # In all stages. This is our choice, because the number for the published model is not public.
STAGES = stages(Stage(2048, 2048, 1e4), Stage(32768, 32768, 1e6), 3)
NUMBER = int(os.environ.get("STAGE", len(STAGES)))
STAGE = STAGES[NUMBER - 1]

# Data, optimizer, mesh and remat are the same as in the extension with a window of 32K.
whole = runpy.run_path(str(Path(__file__).parent / "pretrain_8b_32k.py"))["config"]
rows = whole.data.batch_size * whole.data.sequence_length // STAGE.sequence_length

config = dataclasses.replace(
    whole,
    name=f"extend_32k_{NUMBER}",
    model=extended_config(preset("plamo-2-8b"), full_attention="all", rope_theta=STAGE.rope_theta),
    data=dataclasses.replace(
        whole.data,
        sequence_length=STAGE.sequence_length,
        batch_size=rows - rows % 128,
        long_document_tokens=STAGE.sequence_length // 2,
        long_document_repeats=4,
    ),
    steps=round(TOKENS / len(STAGES) / (whole.data.batch_size * whole.data.sequence_length)),
    # Each stage has its own warm-up and decay. The rate equals the rate at the end of pretraining.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=50, decay_fraction=0.5),
    loss_chunk=max(size for size in range(1, 2049) if STAGE.sequence_length % size == 0),
)

if __name__ == "__main__":
    for stage in STAGES:
        print(stage)
