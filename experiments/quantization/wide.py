"""The wider model of this experiment: hidden size 512, trained on the demo's data with the demo's tokenizer.

plamo2 pretrain experiments/quantization/wide.py       # after make demo; about 30 minutes on two CPU cores
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config_file import load_config

demo = load_config(Path(__file__).resolve().parents[2] / "configs" / "demo.py")

config = dataclasses.replace(
    demo,
    name="wide",
    model=dataclasses.replace(
        demo.model,
        hidden_size=512,
        intermediate_size=1536,
        num_attention_heads=8,
        num_key_value_heads=2,
        mamba_num_heads=16,
    ),
    schedule=dataclasses.replace(demo.schedule, learning_rate=2e-3),
    steps=1200,
    checkpoint_every=200,
    evaluate_every=200,
)
