"""Pretraining at the size of plamo-2-1b, on your own shards.

The shape and the number of tokens (4T) are public. The recipe is not public; comments name the sources of this one. The run needs folders
of shards (`plamo2 data prepare`) under data/.

The sharding and the micro-batches are for a TPU v5e:4x4; experiments/tpu_plans has their memory and time.
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
TOKENS = 4e12  # plamo-2-1b was trained on 4T tokens
ROWS, LENGTH = 512, 4096  # 2.1M tokens per update, as OLMo 2 1B (arXiv:2501.00656)

config = RunConfig(
    name="pretrain_1b",
    model=preset("plamo-2-1b"),
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
    # Betas, decay and clipping are common to Llama 2 (arXiv:2307.09288) and OLMo 2.
    optimizer=OptimizerConfig(beta1=0.9, beta2=0.95, weight_decay=0.1, clip_norm=1.0),
    # Peak rate and warm-up of OLMo 2 1B. The rate decays over the last eighth, because the second phase has this share of the tokens.
    schedule=ScheduleConfig(kind="wsd", learning_rate=4e-4, warmup=2000, decay_fraction=0.125),
    # The state is sharded over all 16 chips, and parameters are gathered once per step. Summing gradients in every micro-batch would take
    # half as long as the products (experiments/tpu_plans).
    mesh=MeshConfig(),
    sharding="zero1",
    accumulation=16,
    remat="dots_except_gate_up",
    loss_chunk=1024,
    checkpoint_every=2000,
    evaluate_every=2000,
    max_to_keep=5,
)
