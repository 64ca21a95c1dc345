"""Iterative DPO in two rounds: `plamo2 iterate configs/iterate.py` after `plamo2 sft configs/sft.py`.

configs/preference_data.py has the settings of the preference data.
"""

import runpy
from pathlib import Path

from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.iterative_dpo import IterativeDpoConfig
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.checkpoint import read_model_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

START = Path("runs/sft")

config = IterativeDpoConfig(
    output=Path("runs/rounds"),
    start=START,
    preference_data=runpy.run_path(str(Path(__file__).with_name("preference_data.py")))["config"],
    train=RunConfig(
        name="train",
        model=read_model_config(START),
        tokenizer=START,
        init_from=START,
        # Each round replaces this mixture by its own pairs.
        data=DataConfig(mixture=(MixtureItem(Path("pairs.jsonl")),), sequence_length=1024, batch_size=4),
        steps=100,
        task=Dpo(
            pairs=PairsConfig(template=str(START), max_pairs=16),
            preference=PreferenceConfig(losses=("sigmoid", "nll"), weights=(1.0, 0.1), beta=0.1),
        ),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(kind="cosine", learning_rate=5e-6, warmup=0.1, final_fraction=0.1),
        dtype="float32",
        checkpoint_every=50,
        evaluate_every=100,
    ),
    rounds=2,
    merge=MergeConfig("linear", weights=(0.5, 0.5)),
)
