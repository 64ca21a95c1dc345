"""Fine-tune a model on your own conversations: `plamo2 sft configs/sft.py`.

INIT is the model to start from. Put JSON lines of conversations into DATA/train.jsonl and DATA/heldout.jsonl:
`{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}`, Alpaca or ShareGPT. For a published model, name its folder
in INIT and set `model=preset("plamo-2-8b")`.
"""

from pathlib import Path

from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.align.sft import ChatConfig, Sft
from plamo2_jax.checkpoint import read_model_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

INIT, DATA = Path("runs/demo"), Path("data/chat")

config = RunConfig(
    name="sft",
    model=read_model_config(INIT),
    tokenizer=INIT,
    init_from=INIT,
    data=DataConfig(mixture=(MixtureItem(DATA / "train.jsonl"),), sequence_length=512, batch_size=4),
    steps=300,
    task=Sft(
        chat=ChatConfig(template="chat", truncate="last", weighting="token"),
        z_loss=0.0,
        samples=SamplesConfig(prompts=("日本で一番高い山は何ですか。", "What is a checkpoint?")),
    ),
    heldout={"chat": DATA / "heldout.jsonl"},
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", learning_rate=1e-4, warmup=0.03, final_fraction=0.1),
    dtype="float32",
    checkpoint_every=100,
    evaluate_every=100,
)
