"""What the tests of surgery share: models, folders of the public layout, small runs."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for folder in ("convert", "train"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))

from surgery_material import CONFIGS, logits, make_params  # noqa: E402


@pytest.fixture
def golden_tokenizer():
    return TESTS / "golden" / "tokenizer" / "tokenizer.jsonl"


@pytest.fixture(scope="session")
def originals():
    """Parameters and logits of both models, by name."""
    return {name: (config, params := make_params(config), logits(config, params)) for name, config in CONFIGS.items()}
