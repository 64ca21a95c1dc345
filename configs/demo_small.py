"""Distillation of the demo: the pruned model learns from the pretrained model.

`make demo` removes half of the MLP channels and half of the Mamba heads of runs/demo (`plamo2 prune`). This run trains the pruned model for
a minute: half of the loss is cross-entropy with the text, half is the divergence from the teacher's distribution. Afterwards, the two
checkpoints of the run are merged.
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
    # The pruned model is already trained, so the warm-up is shorter and the peak rate lower. The seed differs from the first 700 steps.
    schedule=dataclasses.replace(demo.schedule, learning_rate=1e-3),
    data=dataclasses.replace(demo.data, seed=1),
    steps=120,
    checkpoint_every=60,
    evaluate_every=120,
)
