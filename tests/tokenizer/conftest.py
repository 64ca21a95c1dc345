"""The golden tokenizer, read once."""

from __future__ import annotations

import pytest

from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.vocabularies import GOLDEN


@pytest.fixture(scope="session")
def golden() -> Tokenizer:
    return Tokenizer.load(GOLDEN)
