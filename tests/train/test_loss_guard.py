"""Steps that go wrong: skipped updates, spikes, rollbacks."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plamo2_jax.data.pipeline import train_iterator
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.loop import train
from plamo2_jax.train.loss_guard import Divergence, LossGuard, Spike, SpikeConfig
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.state import TrainState
from plamo2_jax.train.step import make_step
from support.models import tiny
from support.runs import assert_same_params, params_of, record, stop_after


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(bad, accumulation):
    def loss_fn(params, batch, rng, frozen):
        return jnp.mean(batch["x"] * params["w"]), {"weight": jnp.float32(batch["x"].shape[0])}

    optimizer = optax.adam(0.1)
    step = jax.jit(make_step(loss_fn, optimizer, lambda step: jnp.float32(0.1), accumulation))
    state = TrainState.create({"w": jnp.float32(1.0)}, optimizer, seed=0)
    good = {"x": jnp.ones(4), "segment_ids": jnp.ones(4)}
    state, metrics = step(state, good)
    assert metrics["skipped"] == 0
    after, metrics = step(state, {**good, "x": jnp.array([1.0, bad, 1.0, 1.0])})
    assert metrics["skipped"] == 1
    assert (int(state.step), int(after.step)) == (1, 2)
    assert_same_params((after.params, after.opt_state), (state.params, state.opt_state))
    assert step(after, good)[0].params["w"] < state.params["w"]


def test_too_many_skipped_in_a_row_stop_the_run():
    guard = LossGuard(2, SpikeConfig())
    for step, loss in enumerate([math.nan, math.nan, 1.0, math.inf, math.nan], start=1):
        assert guard.see(step, loss, 1.0) is None
    with pytest.raises(
        Divergence,
        match=r"^step 6: .* loss is 1\.0 and the gradient norm is nan; 3 updates in a row.*Lower",
    ):
        guard.see(6, 1.0, math.nan)


def see(guard, losses, first=1):
    return [guard.see(step, loss, 1.0) for step, loss in enumerate(losses, start=first)]


def test_a_spike_is_a_number_of_high_losses_in_a_row():
    guard = LossGuard(5, SpikeConfig(factor=1.5, steps=3, window=4))
    # High before the window is full, and two in a row, are none; skipped updates neither count nor interrupt.
    assert not any(see(guard, [9, 2, 2, 2, 2, 4, 4, 2, 4, 4, math.nan]))
    assert guard.see(12, 4, 1.0) == Spike(10, 12, 2.0)


def test_a_negative_loss_is_high_if_it_is_as_far_above_the_median():
    guard = LossGuard(5, SpikeConfig(factor=1.5, steps=1, window=3))
    assert not any(see(guard, [-2, -2, -2, -1.1, -2, -3]))
    assert guard.see(7, -0.9, 1.0) == Spike(7, 7, -2)


def test_a_guard_goes_on_from_its_state():
    losses = list(np.random.default_rng(0).lognormal(sigma=0.5, size=60))
    config = SpikeConfig(factor=1.3, steps=2, window=7)
    whole = LossGuard(5, config)
    found = see(whole, losses)
    assert any(found)
    first, second = LossGuard(5, config), LossGuard(5, config)
    before = see(first, losses[:31])
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert before + see(second, losses[31:], first=32) == found


def test_a_second_rollback_to_one_checkpoint_goes_further_in_the_data():
    config = SpikeConfig(factor=2.0, steps=1, window=3, max_rollbacks=2)
    running, saved = LossGuard(5, config), LossGuard(5, config)
    see(running, [1, 1, 1, 1])
    saved.set_state(running.get_state())
    assert running.roll_back(running.see(5, 9, 1.0), saved) == 1
    # Step 5 is made with batch 6 now. It goes well, and step 6 does not.
    assert (running.rollbacks, running.passed_over, running.step) == (1, 1, 4)
    see(running, [1], first=5)
    assert running.roll_back(running.see(6, 9, 1.0), saved) == 3
    assert (running.rollbacks, running.passed_over, running.step) == (2, 3, 4)
    with pytest.raises(
        Divergence,
        match=r"step 5: training diverged: the loss is far above its median 1, and .* spike\.max_rollbacks=2 times",
    ):
        running.roll_back(running.see(5, 9, 1.0), saved)


@pytest.mark.parametrize(
    ("field", "value"), [("factor", 1.0), ("factor", math.nan), ("steps", 0), ("max_rollbacks", -1)]
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"SpikeConfig\.{field}={value!r} is not allowed"):
        SpikeConfig(**{field: value})


def test_rollbacks_pass_over_the_data_and_resume_to_the_same_bits(make_config, capfd):
    """Losses hover, and the factor is so near to 1 that some of them count as spikes."""
    fields = {
        "spike": SpikeConfig(factor=1.001, steps=1, window=3, max_rollbacks=20),
        "heldout": {},
        "checkpoint_every": 2,
        "max_to_keep": 20,
    }
    whole = make_config("spikes", model=tiny(num_hidden_layers=1), **fields)
    base = dataclasses.replace(whole.schedule, learning_rate=1e-6)
    whole = dataclasses.replace(whole, schedule=base)
    train(whole)
    rollbacks = [line for line in read_metrics(whole.folder / "metrics.jsonl") if "rollbacks" in line]
    assert rollbacks
    assert "the loss was far above its median" in capfd.readouterr().err

    # Another rhythm of the log, and two stops in between, one of them between two checkpoints.
    other = dataclasses.replace(whole, name="spikes-stopped", log_every=1)
    for stop in (3, 10, 12):
        outcome = train(other, on_step=stop_after(stop))
    assert outcome.step == 12
    assert record(other) == record(whole)
    assert_same_params(params_of(other), params_of(whole))

    # The data: as many batches were drawn as steps were made and passed over.
    saved = json.loads(next((whole.folder / "checkpoints" / "12" / "data").rglob("metadata")).read_text())
    iterator = train_iterator(whole.data, Tokenizer.load(whole.tokenizer))
    drawn = 0
    while iterator.get_state() != saved["iterator"]:
        next(iterator)
        drawn += 1
        assert drawn < 200
    assert drawn == 12 + rollbacks[-1]["passed_over"] > 12
    assert saved["guard"]["rollbacks"] == rollbacks[-1]["rollbacks"]
