"""Pretraining at the size of plamo-2-8b, on your own shards.

The shape and the number of tokens (6T) are public. The recipe is not public; comments name the sources of this one. The run needs folders
of shards (`plamo2 data prepare`) under data/.

The mesh is for a TPU v5p:4x4x4; experiments/tpu_plans has its memory and time, also for a v6e:8x8 with other options.
"""

from pathlib import Path

from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.schedule import ScheduleConfig

DATA = Path("data")
TOKENS = 6e12  # plamo-2-8b was trained on 6T tokens
ROWS, LENGTH = 512, 8192  # 4.2M tokens per update, as OLMo 2 7B (arXiv:2501.00656) and Llama 2 7B (arXiv:2307.09288)

config = RunConfig(
    name="pretrain_8b",
    model=preset("plamo-2-8b"),
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
    task=Pretrain(z_loss=1e-5),  # OLMo 2
    heldout={language: DATA / "heldout" / language for language in ("ja", "en")},
    # Betas, decay and clipping are common to Llama 2 and OLMo 2.
    optimizer=OptimizerConfig(beta1=0.9, beta2=0.95, weight_decay=0.1, clip_norm=1.0),
    # Peak rate and warm-up of OLMo 2 7B and Llama 2 7B. The rate decays over the last eighth, because the second phase has this share of
    # the tokens.
    schedule=ScheduleConfig(kind="wsd", learning_rate=3e-4, warmup=2000, decay_fraction=0.125),
    # Parameters are sharded over 16 of 64 chips, two axes of the torus. Over all three axes, the TPU compiler replaces all-gathers by
    # all-reduces of zero-padded arrays.
    mesh=MeshConfig(data=4),
    accumulation=8,
    remat="dots",
    # All logits of a row exist at once. They take 3 GiB, and the step is faster than with chunks, which compute the logits twice.
    loss_chunk=None,
    checkpoint_every=2000,
    evaluate_every=2000,
    max_to_keep=5,
)
