"""A trained model, given as PLAMO2_MODEL: in float32 it is equal, and its 4-bit export differs as little as bfloat16 does."""

import numpy as np
import pytest

from engines import Reference, differences, engine, greedy
from test_float32 import BOUND
from test_quantized import measure


@pytest.fixture
def trained(folder):
    if not (folder / "trained.npz").exists():
        pytest.skip("PLAMO2_MODEL names no run folder of a trained model")
    return folder


def test_float32_equals_plamo2_jax(trained):
    reference = Reference(trained, "trained")
    errors, texts = equality(reference)
    assert max(error.max() for error in errors) < BOUND
    for row, text in zip(reference.generated, texts, strict=True):
        assert text[: len(row["token_ids"])] == row["token_ids"]


def equality(reference):
    """Return the differences of log-probabilities, and greedy tokens. A function of its own frees the engine at its end."""
    with engine(reference.model) as llm:
        return differences(llm, reference), greedy(llm, reference.prompts, 48)


def test_four_bits(trained):
    base, reference = Reference(trained, "trained"), Reference(trained, "trained_w4a16")
    (noise,) = measure(base.model, base, dtype="bfloat16")
    (errors,) = measure(reference.model, reference, dtype="bfloat16")
    assert np.concatenate(errors).mean() < 1.3 * np.concatenate(noise).mean()
