"""Pretraining at the size of plamo-2-31b, a shape of this project's own, on shards of your own.

The recipe is that of pretrain_8b.py, with twice the tokens an update. Needs folders of shards (`plamo2 data prepare`) under data/.

The mesh is for a TPU v5p:8x8x8; experiments/tpu_plans has what it takes there.
"""

from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

DATA = Path("data")
TOKENS = 6e12  # as plamo-2-8b
ROWS, LENGTH = 1024, 8192  # 8.4M tokens an update, as OLMo 2 32B (arXiv:2501.00656)

config = PretrainConfig(
    name="pretrain_31b",
    model=preset("plamo-2-31b"),
    tokenizer=DATA / "tokenizer.jsonl",
    data=DataConfig(
        # Shares of the first phase as the model card states them; the second phase shifts ten points from English to Japanese.
        mixture=(
            MixtureItem(DATA / "english", 0.45),
            MixtureItem(DATA / "japanese", 0.30),
            MixtureItem(DATA / "code", 0.15),
            MixtureItem(DATA / "other", 0.10),
        ),
        sequence_length=LENGTH,
        batch_size=ROWS,
    ),
    steps=round(TOKENS / (ROWS * LENGTH)),
    heldout={language: DATA / "heldout" / language for language in ("ja", "en")},
    # Betas, decay and clipping are common to Llama 2 and OLMo 2.
    optimizer=OptimizerConfig(beta1=0.9, beta2=0.95, weight_decay=0.1, clip_norm=1.0),
    # Peak rate and warm-up of OLMo 2 7B and Llama 2 7B. Stable, then decay over the last eighth: the share that the second phase has of
    # the tokens.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-4, warmup=2000, decay_fraction=0.125),
    z_loss=1e-5,  # OLMo 2
    # Parameters over 64 of 512 chips, two axes of the torus; see pretrain_8b.py.
    mesh=MeshConfig(data=8),
    accumulation=2,
    remat="block",
    loss_chunk=2048,
    checkpoint_every=2000,
    evaluate_every=2000,
    keep=5,
)
