"""Context extension in three stages: training after `plamo2 extend`, from a window of 2048 tokens to full attention over 32K tokens.

    plamo2 extend runs/pretrain_8b runs/stage_0 --full-attention all --rope-theta 46416       # the RoPE base of stage 1 in STAGES
    STAGE=1 plamo2 pretrain configs/extend_32k.py --init-from runs/stage_0
    plamo2 extend runs/extend_32k_1 runs/stage_1 --rope-theta ...                              # and so on for the next stage

The row length and the RoPE base increase by a fixed factor per stage; `python configs/extend_32k.py` prints them. Documents of at least
half a row are read four times as often as others from the same source (arXiv:2402.10171). They are packed at the new length, and no
information passes from one document to the next.
"""

import dataclasses
import os
import runpy
from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.surgery.extend import Stage, extended_config, stages
from plamo2_jax.train.schedule import ScheduleConfig

TOKENS = 100e9  # of all stages; our choice, because the number is not published
STAGES = stages(Stage(2048, 2048, 1e4), Stage(32768, 32768, 1e6), 3)
NUMBER = int(os.environ.get("STAGE", len(STAGES)))
STAGE = STAGES[NUMBER - 1]

# Data, optimizer, mesh and remat policy are the same as in pretrain_8b_32k.py.
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
    # Each stage has its own warm-up and decay. The peak is the final learning rate of pretraining.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=50, decay_fraction=0.5),
    loss_chunk=max(size for size in range(1, 2049) if STAGE.sequence_length % size == 0),
)

if __name__ == "__main__":
    for stage in STAGES:
        print(stage)
