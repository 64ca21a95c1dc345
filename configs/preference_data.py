"""Preference data from a model's own answers: `plamo2 preference-data configs/preference_data.py`.

Run it after `plamo2 sft configs/sft.py` and before `plamo2 dpo configs/dpo.py`.

Put JSON lines of prompts into DATA/prompts.jsonl: `{"prompt": "...", "rules": {"language": "ja", "characters": [20, 400]}}`. Conversations
are read too, without their last answer. To add a judge model: `--judge.model NAME --judge.url http://localhost:8000/v1`.
"""

from pathlib import Path

from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import ChatModelConfig

POLICY, DATA = Path("runs/sft"), Path("data/chat")

config = PreferenceDataConfig(
    output=Path("data/pairs"),
    prompts=(DATA / "prompts.jsonl",),
    policy=ChatModelConfig(model=str(POLICY), batch_size=64),
    samples=4,
    sampling=SamplingConfig(temperature=0.8, top_p=0.95),
    stop=StopConfig(max_new_tokens=256),
    rules={"finished": True},
    pairing=PairingConfig(choose="best_worst", margin=0.1, length_ratio=3.0),
)
