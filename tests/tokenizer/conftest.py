"""The golden tokenizer, read once."""

from __future__ import annotations

import pytest
from vocabularies import GOLDEN

from plamo2_jax.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def golden() -> Tokenizer:
    return Tokenizer.load(GOLDEN)
