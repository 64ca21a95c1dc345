"""From text to a pretrained model with a report: `plamo2 pipeline configs/pipeline.py`. Finished stages are skipped.

TEXT is the training text: a file, a folder, or a pattern such as "data/text/*.jsonl". The default is the text that comes with plamo2-jax.
If its files change, the next call of the pipeline trains again.
"""

from pathlib import Path

from plamo2_jax.pipeline.stage import Pipeline, Stage

TEXT = "bundled:all:all"
HOME = Path("runs/base")
TOKENIZER, SHARDS = HOME / "tokenizer.jsonl", HOME / "data"

pipeline = Pipeline(
    home=HOME,
    stages=(
        Stage(
            "tokenizer",
            f"tokenizer train --input '{TEXT}' --vocab-size 4096 --output {TOKENIZER}",
            outputs=(TOKENIZER,),
            inputs=(TEXT,),
        ),
        Stage(
            "shards",
            f"data prepare --input '{TEXT}' --split both --heldout-fraction 0.05 --tokenizer {TOKENIZER} --output {SHARDS}",
            outputs=(SHARDS,),
            inputs=(TEXT, TOKENIZER),
        ),
        Stage("pretrain", "pretrain configs/pretrain.py"),
        Stage("report", f"report {HOME}", outputs=(HOME / "report.html",), inputs=(HOME,)),
    ),
)
