"""The demo at 62 million parameters, on its data and with its tokenizer: the base model of the experiments at the GPU scale.

plamo2 pretrain experiments/demo_gpu.py       # after make demo, on one GPU; not run by the authors yet
"""

import dataclasses
import sys
from pathlib import Path

from plamo2_jax.config_file import load_config

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from scales import DEMO_GPU  # noqa: E402

demo = load_config(HERE.parent / "configs" / "demo.py")

config = dataclasses.replace(
    demo,
    name="demo_gpu",
    model=DEMO_GPU,
    data=dataclasses.replace(demo.data, sequence_length=1024, batch_size=16),
    schedule=dataclasses.replace(demo.schedule, learning_rate=1e-3),
    steps=800,
    dtype="bfloat16",
    checkpoint_every=400,
    evaluate_every=400,
)
