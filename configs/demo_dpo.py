"""DPO of the demo's fine-tuned model on pairs of its own answers. The demo runs it twice, with different orders of the data."""

from pathlib import Path

from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

long = load_config(Path(__file__).parent / "demo_extend.py")
HOME = Path("runs/demo")

config = RunConfig(
    name="dpo",
    output=HOME,
    model=long.model,
    tokenizer=HOME / "tokenizer.jsonl",
    init_from=HOME / "sft",
    data=DataConfig(
        mixture=(MixtureItem(HOME / "preferences/pairs.jsonl"),), sequence_length=512, batch_size=2, packing_bins=16
    ),
    steps=80,
    task=Dpo(
        pairs=PairsConfig(max_pairs=8),
        preference=PreferenceConfig(losses=("sigmoid", "nll"), weights=(1.0, 0.2), beta=0.1),
    ),
    heldout={"pairs": HOME / "preferences/heldout.jsonl"},
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", learning_rate=3e-4, warmup=0.1, final_fraction=0.1),
    dtype="float32",
    checkpoint_every=40,
    evaluate_every=80,
)
