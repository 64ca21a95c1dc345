"""Prompts in pieces, prefix caching, compilation, bfloat16, an extended model: the same tokens."""

import numpy as np
import pytest

from engines import Reference, differences, engine, greedy
from test_float32 import BOUND, check_equal


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("base", {"max_num_batched_tokens": 64}),
        ("base", {"enable_prefix_caching": True}),
        ("base", {"enforce_eager": False}),
        ("extended", {}),
        ("extended", {"max_num_batched_tokens": 64}),
    ],
    ids=["pieces of 64", "prefix caching", "compiled", "extended", "extended, pieces of 64"],
)
def test_equals_plamo2_jax(folder, name, options):
    reference = Reference(folder, name)
    with engine(reference.model, **options) as llm:
        check_equal(llm, reference)
        wanted = [row["token_ids"] for row in reference.generated]
        assert greedy(llm, reference.prompts * 4, 48) == wanted * 4


def test_bfloat16_is_close_and_survives_the_reuse_of_pages(folder):
    reference = Reference(folder, "base")
    with engine(reference.model, dtype="bfloat16") as llm:
        first = differences(llm, reference)
        assert np.concatenate(first).mean() < 3e-2
        for _ in range(3):
            for error, again in zip(first, differences(llm, reference), strict=True):
                np.testing.assert_allclose(again, error, atol=2e-2)
        alone = greedy(llm, reference.prompts, 48)
        assert greedy(llm, reference.prompts * 8, 8) == [ids[:8] for ids in alone] * 8


def test_window_is_what_makes_the_difference(folder):
    """With W tokens instead of W + 1 in the window, texts longer than that differ."""
    reference = Reference(folder, "base")
    options = {"hf_overrides": {"attention_window_size": 127, "sliding_window": None}}
    with engine(reference.model, **options) as llm:
        errors = differences(llm, reference)
    assert max(error[:120].max() for error in errors) < BOUND
    assert max(error.max() for error in errors) > 100 * BOUND
