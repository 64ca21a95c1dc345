"""The demo's second model: what is left of the first after pruning, taught by it.

`make demo` cuts half of the MLP and half of the scan's heads out of runs/demo (`plamo2 prune`) and trains the rest for a minute, half on
the text and half on what the first model says of it. Its two checkpoints are merged after that.
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config_file import load_config
from plamo2_jax.surgery.distill import Distill

demo = load_config(Path(__file__).parent / "demo.py")
HOME = Path("runs/demo")

config = dataclasses.replace(
    demo,
    name="small",
    output=HOME,
    model=dataclasses.replace(demo.model, intermediate_size=256, mamba_num_heads=4),
    init_from=HOME / "pruned",
    task=Distill(teacher=HOME),
    # The pruned model knows much already: a shorter warm-up to a lower rate, and other rows than the first 700 steps of the demo.
    schedule=dataclasses.replace(demo.schedule, learning_rate=1e-3),
    data=dataclasses.replace(demo.data, seed=1),
    steps=120,
    checkpoint_every=60,
    evaluate_every=120,
)
