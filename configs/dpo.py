"""DPO on your own preferences: `plamo2 dpo configs/dpo.py` after `plamo2 sft configs/sft.py`.

Put JSON lines of `{"prompt": "...", "chosen": "...", "rejected": "..."}` into DATA/pairs.jsonl and DATA/heldout.jsonl, or let
`plamo2 preference-data` write these files. For single answers, `{"prompt": "...", "completion": "...", "label": true}`, add
`--preference.losses kto --preference.weights 1`.
"""

from pathlib import Path

from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.checkpoint import read_model_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

INIT, DATA = Path("runs/sft"), Path("data/pairs")

config = RunConfig(
    name="dpo",
    model=read_model_config(INIT),
    tokenizer=INIT,
    init_from=INIT,
    data=DataConfig(mixture=(MixtureItem(DATA / "pairs.jsonl"),), sequence_length=1024, batch_size=4),
    steps=200,
    task=Dpo(
        pairs=PairsConfig(template=str(INIT), max_pairs=16),
        preference=PreferenceConfig(losses=("sigmoid", "nll"), weights=(1.0, 0.1), beta=0.1),
    ),
    heldout={"pairs": DATA / "heldout.jsonl"},
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", learning_rate=5e-6, warmup=0.1, final_fraction=0.1),
    dtype="float32",
    checkpoint_every=100,
    evaluate_every=100,
)
