"""Whole runs: what they leave behind, and that stopping one changes nothing about it."""

import json
import signal

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.sharding.rules import ShardingError
from plamo2_jax.train.loop import train
from plamo2_jax.train.loss_guard import Divergence
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.run_folder import TrainingError
from support.models import tiny
from support.runs import assert_same_params, finish, held, params_of, record, start, stop_after, wait_for, write_config


def test_a_run_leaves_what_the_layout_says(uninterrupted):
    config, outcome = uninterrupted
    assert (outcome.step, outcome.signal) == (12, None)
    assert checkpoint.steps(config.folder) == [4, 8, 12]
    assert checkpoint.read_model_config(config.folder) == config.model
    assert (config.folder / "tokenizer.jsonl").read_bytes() == config.tokenizer.read_bytes()
    items = {path.name for path in (config.folder / "checkpoints" / "12").iterdir() if path.is_dir()}
    assert items == {"params", "training", "data"}


def test_every_step_has_a_line_and_every_evaluation(uninterrupted):
    config, outcome = uninterrupted
    lines = read_metrics(config.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    names = {"loss", "bits_per_byte", "grad_norm", "learning_rate", "z_loss", "tokens_per_second", "accuracy"}
    assert all(names <= line.keys() for line in lines if "loss" in line)
    measured = [line for line in lines if "heldout/ja/bits_per_byte" in line]
    assert [line["step"] for line in measured] == [6, 12]
    assert measured[-1]["heldout/en/bits_per_byte"] == outcome.heldout["en"].bits_per_byte
    assert lines[0]["nats_per_token"] == pytest.approx(np.log(config.model.vocab_size), rel=0.02)


def test_tensorboard_shows_the_same(uninterrupted):
    config, _ = uninterrupted
    events = EventAccumulator(str(config.folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = {event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors("loss")}
    written = {line["step"]: line["loss"] for line in record(config) if "loss" in line}
    assert shown == pytest.approx(written)


def test_a_run_stopped_twice_is_bit_identical(uninterrupted, make_config):
    expected, _ = uninterrupted
    config = make_config("stopped")
    outcome = train(config, on_step=stop_after(5))
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    assert checkpoint.latest_step(config.folder) == 5
    assert train(config, on_step=stop_after(10)).step == 10
    assert train(config).step == 12
    assert record(config) == record(expected)
    assert_same_params(params_of(config), params_of(expected))
    # A run that is complete has nothing left to do.
    assert train(config).step == 12


def test_a_signal_in_the_last_step_delays_the_evaluation(uninterrupted, make_config):
    expected, _ = uninterrupted
    config = make_config("last")
    outcome = train(config, on_step=stop_after(12))
    assert (outcome.step, outcome.signal) == (12, signal.SIGTERM)
    assert not any(line["step"] == 12 for line in record(config) if "heldout/ja/bits_per_byte" in line)
    outcome = train(config)
    assert (outcome.step, outcome.signal, set(outcome.heldout)) == (12, None, set(config.heldout))
    assert record(config) == record(expected)


def test_a_killed_run_keeps_its_log_and_resumes(uninterrupted, make_config, tmp_path):
    """kill -9 in the middle: the log is whole lines, and going on drops those past the checkpoint instead of doubling them."""
    expected, _ = uninterrupted
    config = make_config("killed")
    log = config.folder / "metrics.jsonl"
    # Held after step 7: past the checkpoint of step 4 and the log of step 6.
    child = start(write_config(config, tmp_path), devices=8, preamble=held(7))

    def written():
        return log.exists() and len(log.read_bytes().splitlines()) >= 7 and checkpoint.latest_step(config.folder)

    try:
        wait_for(written, child)
    finally:
        child.kill()
        finish(child)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    # A line that was being written when the power went is passed over.
    with log.open("a") as file:
        file.write('{"step": 7, "loss": 5.')
    assert train(config).step == 12
    assert record(config) == record(expected)
    assert_same_params(params_of(config), params_of(expected))


def test_another_configuration_does_not_resume(uninterrupted, make_config):
    config, _ = uninterrupted
    before = (config.folder / "config.json").read_bytes()
    with pytest.raises(TrainingError, match=r"\(model\.rope_theta: 5\.0, not 10000\.0; seed: 1, not 0\)"):
        train(make_config("uninterrupted", seed=1, model=preset_like(config.model, rope_theta=5.0)))
    assert (config.folder / "config.json").read_bytes() == before


def preset_like(model, **changes):
    fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return preset("tiny", **(fields | changes))


def test_how_often_one_looks_may_change(uninterrupted, make_config):
    outcome = train(make_config("uninterrupted", log_every=1, evaluate_every=2, max_to_keep=5))
    assert outcome.step == 12


def test_a_run_goes_on_on_another_mesh(uninterrupted, make_config):
    """From parts over eight devices to copies of parts by heads, with the loss in chunks."""
    expected, _ = uninterrupted
    legs = (MeshConfig(), None, 5), (MeshConfig(data=2, fsdp=2, tensor=2), 16, 6)
    for mesh, chunk, step in legs:
        assert train(make_config("moved", mesh=mesh, loss_chunk=chunk), on_step=stop_after(step)).step == step
    losses = [
        [line["loss"] for line in record(config) if "loss" in line][:6] for config in (expected, make_config("moved"))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_an_axis_that_the_mesh_does_not_divide_is_refused_before_anything_is_written(make_config):
    config = make_config("undivided", mesh=MeshConfig(fsdp=1, tensor=8))
    with pytest.raises(ShardingError, match=r"parameter .*: axis 'mamba_heads' of size 2 is not divisible by tensor=8"):
        train(config)
    assert not config.folder.exists()


def test_a_run_starts_from_another_ones_parameters(uninterrupted, make_config):
    config, _ = uninterrupted
    continued = make_config("continued", init_from=config.folder, steps=1)
    train(continued)
    final = [line for line in read_metrics(config.folder / "metrics.jsonl") if "loss" in line][-1]
    first = read_metrics(continued.folder / "metrics.jsonl")[0]
    assert first["loss"] < 1.01 * final["loss"]
    assert first["loss"] < record(config)[0]["loss"]


def test_a_diverging_run_stops_with_advice(make_config):
    schedule = {"learning_rate": 1e30, "warmup": 0}
    # One layer of attention compiles fast.
    config = make_config("diverging", log_every=1, model=tiny(num_hidden_layers=1), heldout={})
    config = type(config)(**{**vars(config), "schedule": type(config.schedule)(**schedule)})
    with pytest.raises(
        Divergence,
        match=r"step \d+: training diverged: the loss is .*6 updates in a row were skipped.* Lower schedule\.learning_rate",
    ):
        train(config)


def test_a_missing_tokenizer_is_named(make_config, tmp_path):
    with pytest.raises(TrainingError, match=r"RunConfig\.tokenizer=.*nowhere.* does not exist"):
        train(make_config("none", tokenizer=tmp_path / "nowhere"))


def test_a_vocabulary_larger_than_the_model_is_named(make_config):
    model = preset("tiny", num_hidden_layers=2, vocab_size=319)
    with pytest.raises(ValueError, match=r"ModelConfig\.vocab_size=319 is not allowed.* 320 rows"):
        train(make_config("narrow", model=model))
