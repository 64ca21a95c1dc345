"""The demo's second model: the first model after pruning, distilled from the first model.

`make demo` removes half of the MLP and half of the scan's heads of runs/demo (`plamo2 prune`), and trains the pruned model for a minute.
Half of the loss is cross-entropy, and half is the divergence from the first model. Then two checkpoints of this run are merged.
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
    # The pruned model is already trained, so the warm-up is shorter and the rate lower. The seed selects other rows than the demo's.
    schedule=dataclasses.replace(demo.schedule, learning_rate=1e-3),
    data=dataclasses.replace(demo.data, seed=1),
    steps=120,
    checkpoint_every=60,
    evaluate_every=120,
)
