"""The move of an 8B to full attention over 32K tokens, on shards of your own.

The shape is that of plamo-2.1-8b, whose published window, 32768, cuts nothing off. Needs folders of shards (`plamo2 data prepare`) of long
documents under data/, and a run to start from: `--init-from runs/pretrain_8b`.

The mesh is for a TPU v5p:4x4x4, each row's tokens over four chips; experiments/tpu_plans has what it takes there.
"""

from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

DATA = Path("data")
TOKENS = 100e9  # our choice: the published model does not say
ROWS, LENGTH = 128, 32768  # 4.2M tokens an update, as pretrain_8b.py

config = PretrainConfig(
    name="pretrain_8b_32k",
    model=preset("plamo-2.1-8b"),
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
    # A tenth of the peak of pretrain_8b.py, where its decay ends, and down to nothing.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-5, warmup=100, decay_fraction=0.5),
    z_loss=1e-5,  # OLMo 2
    # Parameters over fsdp × sequence = 16 of 64 chips; see pretrain_8b.py.
    mesh=MeshConfig(data=4, sequence=4),
    accumulation=8,
    remat="dots",
    loss_chunk=2048,
    checkpoint_every=2000,
    evaluate_every=2000,
    keep=5,
)
