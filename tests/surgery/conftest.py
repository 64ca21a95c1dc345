"""What the tests of surgery share: models, folders in Hugging Face format, small runs."""

from pathlib import Path

import pytest

from support.models import CONFIGS, logits, make_params

TESTS = Path(__file__).parents[1]


@pytest.fixture
def golden_tokenizer():
    return TESTS / "golden" / "tokenizer" / "tokenizer.jsonl"


@pytest.fixture(scope="session")
def originals():
    """Parameters and logits of both models, by name."""
    return {name: (config, params := make_params(config), logits(config, params)) for name, config in CONFIGS.items()}
