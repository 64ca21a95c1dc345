"""In float32, log-probabilities and greedy tokens are those of plamo2-jax."""

import numpy as np
import pytest

from engines import Reference, differences, engine, greedy

BOUND = 1e-5


@pytest.fixture(scope="module")
def base(folder):
    return Reference(folder, "base")


@pytest.fixture(scope="module")
def llm(base):
    with engine(base.model) as llm:
        yield llm


def check_equal(llm, reference, **options):
    errors = differences(llm, reference, **options)
    assert max(len(error) for error in errors) > 2 * 128  # longer than the window
    assert max(error.max() for error in errors) < BOUND
    wanted = [row["token_ids"] for row in reference.generated]
    assert sum(map(len, wanted)) == 240
    assert greedy(llm, reference.prompts, 48, **options) == wanted


def test_equals_plamo2_jax(llm, base):
    check_equal(llm, base)


def test_texts_depend_on_the_window(base):
    """The comparison would notice a window of W tokens instead of W + 1, if the model attends that far at all."""
    assert all(np.ptp(rows[:-1], axis=0).mean() > 1 for rows in base.logprobs)


def test_requests_do_not_change_each_other(llm, base):
    """Slots and pages that other requests used before, and 40 requests at a time for 8 places."""
    wanted = [row["token_ids"] for row in base.generated]
    assert greedy(llm, base.prompts, 48) == wanted
    assert greedy(llm, base.prompts * 8, 48) == wanted * 8
    assert max(error.max() for error in differences(llm, base)) < BOUND
