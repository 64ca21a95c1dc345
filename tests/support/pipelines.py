"""A pipeline of fast real stages (phonebooks, a tokenizer, shards and some ids) and a run that trains on them."""

from pathlib import Path

STAGES = {
    "books": "phonebook runs/books.jsonl --documents 60 --entries 4 8 --digits 4",
    "vocabulary": "tokenizer train --input runs/books.jsonl --vocab-size 480 --output runs/tokenizer.jsonl",
    "shards": "data prepare --input runs/books.jsonl --tokenizer runs/tokenizer.jsonl --output runs/shards",
    "ids": "tokenizer encode runs/tokenizer.jsonl '12 34' > runs/ids.txt",
}
OUTPUTS = {"books": "runs/books.jsonl", "vocabulary": "runs/tokenizer.jsonl", "shards": "runs/shards"}
INPUTS = {
    "vocabulary": ("runs/books.jsonl",),
    "shards": ("runs/books.jsonl", "runs/tokenizer.jsonl"),
    "ids": ("runs/tokenizer.jsonl",),
    "merged": ("runs/model@4", "runs/model@6"),
}
FILE = """from pathlib import Path
from plamo2_jax.pipeline.stage import Pipeline, Stage
pipeline = Pipeline(home=Path("runs"), stages=(
{stages}
))
"""
CONFIG = """from pathlib import Path
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.pretraining import Pretrain
config = RunConfig(
    name="model",
    output=Path("runs"),
    model=preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, mamba_num_heads=2, vocab_size=480),
    tokenizer=Path("runs/tokenizer.jsonl"),
    data=DataConfig((MixtureItem(Path("runs/shards")),), sequence_length=32, batch_size=8, packing_bins=8, prefetch_batches=0),
    steps=6, task=Pretrain(), dtype="float32", checkpoint_every=2, log_every=1,
)
"""
"""A run of one layer, which compiles in a few seconds."""


def write(stages: dict[str, str], outputs: dict[str, str], inputs: dict[str, tuple[str, ...]] = INPUTS) -> None:
    """Write a pipeline file p.py to the working directory."""
    lines = []
    for name, command in stages.items():
        made = f", outputs=(Path({outputs[name]!r}),)" if name in outputs else ""
        read = f", inputs={inputs[name]!r}" if name in inputs else ""
        lines.append(f"    Stage({name!r}, {command!r}{made}{read}),")
    Path("p.py").write_text(FILE.format(stages="\n".join(lines)), encoding="utf-8")


def write_trained() -> None:
    """Write a pipeline file of the four stages, a run that trains on them, and a merge of two of its checkpoints."""
    Path("model.py").write_text(CONFIG, encoding="utf-8")
    stages = {**STAGES, "model": "pretrain model.py", "merged": "merge runs/model@4 runs/model@6 runs/merged"}
    write(stages, {**OUTPUTS, "merged": "runs/merged"})
