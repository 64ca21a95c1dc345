"""The model of `plamo2 quickstart`: 0.6 million parameters, trained for half a minute on two CPU cores.

It is trained from random parameters on Japanese and English conversations about the bundled text (`plamo2 data instructions`).
"""

from pathlib import Path

from plamo2_jax.align.sft import ChatConfig, Sft
from plamo2_jax.config import ModelConfig
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.schedule import ScheduleConfig

HOME = Path("runs/quickstart")

config = RunConfig(
    name="model",
    output=HOME,
    model=ModelConfig(
        hidden_size=128,
        num_hidden_layers=2,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size_per_head=64,
        mamba_num_heads=4,
        mamba_d_state=32,
        mamba_chunk_size=64,
        attention_window_size=128,
        vocab_size=2048,
    ),
    tokenizer=HOME / "tokenizer.jsonl",
    data=DataConfig(
        mixture=(MixtureItem(HOME / "conversations/train.jsonl"),),
        sequence_length=256,
        batch_size=4,
        packing_bins=64,
    ),
    steps=400,
    task=Sft(chat=ChatConfig(truncate="end"), z_loss=0.0),
    schedule=ScheduleConfig(learning_rate=1e-2, warmup=0.05, decay_fraction=0.5, decay_shape="linear"),
    dtype="float32",
    checkpoint_every=400,
)
