"""The stages of `plamo2 quickstart`: a tokenizer, conversations made from the bundled text, and a tiny model."""

import shlex
from pathlib import Path

from plamo2_jax.pipeline.stage import Pipeline, Stage

HOME = Path("runs/quickstart")
TOKENIZER, CONVERSATIONS = HOME / "tokenizer.jsonl", HOME / "conversations"

pipeline = Pipeline(
    home=HOME,
    stages=(
        Stage(
            "tokenizer",
            f"tokenizer train --input bundled:all:train --sample-bytes 1000000 --vocab-size 2048 --output {TOKENIZER}",
            outputs=(TOKENIZER,),
        ),
        Stage("conversations", f"data instructions --output {CONVERSATIONS}", outputs=(CONVERSATIONS,)),
        Stage("model", f"sft {shlex.quote(str(Path(__file__).with_name('quickstart.py')))}"),
    ),
)
