"""Fine-tuning of the demo's long model on conversations from the bundled corpus, and on synthetic conversations (configs/synth_demo.yaml).

The demo runs it twice, with different orders of the data: `--name sft_1 --data.seed 1` and `--name sft_2 --data.seed 2`
(configs/pipeline_demo.py). It then averages the two models.
"""

from pathlib import Path

from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.align.sft import Sft
from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig

long = load_config(Path(__file__).parent / "demo_extend.py")
HOME = Path("runs/demo")

config = RunConfig(
    name="sft",
    output=HOME,
    model=long.model,
    tokenizer=HOME / "tokenizer.jsonl",
    init_from=HOME / "long",
    data=DataConfig(
        mixture=(MixtureItem(HOME / "synth/data/messages/00000.jsonl"),),
        sequence_length=512,
        batch_size=2,
        packing_bins=64,
    ),
    steps=100,
    task=Sft(
        z_loss=0.0,
        samples=SamplesConfig(
            prompts=(
                "「ファイルシステム」という文書の内容を一文で述べてください。",
                "Write a one-sentence summary of the document “Installing packages”.",
            )
        ),
    ),
    heldout={"answers": HOME / "prompts/heldout.jsonl"},
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", learning_rate=1e-3, warmup=0.1, final_fraction=0.1),
    dtype="float32",
    checkpoint_every=50,
    evaluate_every=50,
)
