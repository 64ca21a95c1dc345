"""Learning rates at the steps where a schedule turns."""

import numpy as np
import pytest

from plamo2_jax.train.schedule import ScheduleConfig, make_schedule


def rates(steps=100, **fields):
    schedule = make_schedule(ScheduleConfig(learning_rate=2.0, **fields), steps)
    return np.array([schedule(step) for step in range(steps + 1)])


def test_wsd_rises_stays_and_falls():
    lr = rates(warmup=0.1, decay_fraction=0.2, decay_shape="linear")
    np.testing.assert_allclose(lr[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(lr[9:81], 2.0)
    np.testing.assert_allclose(lr[80:], 2.0 * np.linspace(1, 0, 21), atol=1e-6)


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("one_minus_sqrt", 1 - 0.5**0.5)])
def test_decay_shapes(shape, halfway):
    lr = rates(warmup=0, decay_fraction=0.5, decay_shape=shape, final_fraction=0.1)
    np.testing.assert_allclose(lr[[50, 75, 100]], [2.0, 2.0 * (0.1 + 0.9 * halfway), 0.2], rtol=1e-6)
    assert (np.diff(lr[50:]) < 0).all()


def test_cosine_falls_from_the_end_of_warmup():
    lr = rates(kind="cosine", warmup=20, final_fraction=0.1)
    np.testing.assert_allclose(lr[[0, 19, 20, 60, 100]], [0.1, 2.0, 2.0, 1.1, 0.2], rtol=1e-6)


def test_warmup_in_steps_or_as_a_fraction():
    assert ScheduleConfig(warmup=0.05).warmup_steps(400) == 20
    assert ScheduleConfig(warmup=20).warmup_steps(400) == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "step"), ("learning_rate", 0), ("warmup", -1), ("decay_fraction", 1.5), ("final_fraction", -0.1)],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"ScheduleConfig\.{field}=.* must be"):
        ScheduleConfig(**{field: value})


def test_warmup_and_decay_must_fit():
    with pytest.raises(ValueError, match=r"warm-up \(90\) and decay \(20\) must fit into 100 steps"):
        make_schedule(ScheduleConfig(warmup=90), 100)
