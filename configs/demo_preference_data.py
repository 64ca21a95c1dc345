"""Preference data of the demo: four answers of the fine-tuned model to each prompt; rules select the best and the worst answer."""

from pathlib import Path

from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import ChatModelConfig

HOME = Path("runs/demo")

config = PreferenceDataConfig(
    output=HOME / "preferences",
    prompts=(HOME / "prompts/train.jsonl",),
    policy=ChatModelConfig(model=str(HOME / "sft"), batch_size=64),
    samples=4,
    sampling=SamplingConfig(temperature=0.8, top_p=0.95),
    stop=StopConfig(max_new_tokens=96),
    pairing=PairingConfig(margin=0.1),
    heldout_share=0.1,
)
