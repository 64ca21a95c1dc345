"""Pretrain a model on your own text. `plamo2 pipeline configs/pipeline.py` makes the tokenizer and the shards, and then runs this config.

With the sizes below, two CPU cores train a model with four million parameters in about five minutes. On a GPU or TPU, start with
hidden_size=1024, num_hidden_layers=16, intermediate_size=4096, num_attention_heads=8, mamba_num_heads=16, sequence_length=2048 and
dtype="bfloat16". `plamo2 config validate configs/pretrain.py` prints the number of parameters and the memory that a config needs.
"""

from pathlib import Path

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.schedule import ScheduleConfig

HOME = Path("runs/base")

config = RunConfig(
    name="base",
    model=ModelConfig(
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=1,
        hidden_size_per_head=64,
        mamba_num_heads=8,
        mamba_d_state=64,
        mamba_chunk_size=64,
        attention_window_size=128,
        vocab_size=4096,  # Vocabulary size of the tokenizer: --vocab-size in configs/pipeline.py.
    ),
    tokenizer=HOME / "tokenizer.jsonl",
    # Several folders of shards are mixed by weight: MixtureItem(HOME / "data/code/train", 0.2).
    data=DataConfig(mixture=(MixtureItem(HOME / "data/train"),), sequence_length=512, batch_size=2),
    steps=700,
    task=Pretrain(),
    heldout={"text": HOME / "data/heldout"},
    optimizer=OptimizerConfig(),
    schedule=ScheduleConfig(learning_rate=3e-3, warmup=0.05, decay_fraction=0.5, decay_shape="linear"),
    dtype="float32",
    checkpoint_every=350,
    evaluate_every=350,
)
