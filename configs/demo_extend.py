"""The demo's third model: the first model with full attention, trained for another half minute on rows of twice the length.

Before this run, `plamo2 extend` switches the model to full attention and a larger RoPE base (configs/pipeline_demo.py). Documents of at
least half a row are read four times as often as others. A twentieth of the tokens is synthetic (configs/synth_demo.yaml).
"""

import dataclasses
from pathlib import Path

from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import MixtureItem
from plamo2_jax.surgery.extend import extended_config

demo = load_config(Path(__file__).parent / "demo.py")
HOME = Path("runs/demo")

config = dataclasses.replace(
    demo,
    name="long",
    output=HOME,
    model=extended_config(demo.model, full_attention="all", rope_theta=40000.0),
    init_from=HOME / "opened",
    data=dataclasses.replace(
        demo.data,
        mixture=(*demo.data.mixture, MixtureItem(HOME / "data/synthetic", 0.05, synthetic=True)),
        max_synthetic_share=0.1,
        sequence_length=1024,
        batch_size=1,
        long_document_tokens=512,
        long_document_repeats=4,
        seed=2,
    ),
    schedule=dataclasses.replace(demo.schedule, learning_rate=1e-3),
    steps=60,
    heldout={},  # The demo evaluates the tuned model instead.
    checkpoint_every=60,
)
