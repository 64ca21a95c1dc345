"""The moving average of parameters: what it is, and that it is saved, resumed, measured and exported."""

import dataclasses

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.train.loop import train
from support.models import tiny
from support.runs import assert_same_params, record, stop_after


@pytest.fixture(scope="module")
def averaged(make_config):
    """A run that keeps an average and every step's checkpoint."""
    config = make_config(
        "averaged",
        model=tiny(num_hidden_layers=1),
        ema_decay=0.5,
        steps=4,
        checkpoint_every=1,
        evaluate_every=4,
        max_to_keep=9,
    )
    train(config)
    return config


def test_the_average_is_the_sum_it_says(averaged):
    steps = [load_model(averaged.folder, step=step).params for step in range(1, 5)]
    averages = [load_model(averaged.folder, step=step, ema=True).params for step in range(1, 5)]
    for n in range(1, 4):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, averages[n - 1], steps[n])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), averages[n], expected)


def test_both_are_measured(averaged):
    (line,) = [line for line in record(averaged) if "heldout/ja/bits_per_byte" in line]
    assert line["heldout_ema/ja/bits_per_byte"] != line["heldout/ja/bits_per_byte"]


def test_a_resumed_average_is_bit_identical_and_one_without_is_another_run(averaged, make_config):
    config = dataclasses.replace(averaged, name="resumed", checkpoint_every=2)
    assert train(config, on_step=stop_after(2)).step == 2
    train(config)
    assert_same_params(load_model(config.folder, ema=True).params, load_model(averaged.folder, ema=True).params)
    with pytest.raises(ValueError, match=r"ema_decay: None, not 0\.5"):
        train(dataclasses.replace(averaged, ema_decay=None))


def test_the_average_is_exported_and_averaged_checkpoints_merge(averaged, tmp_path):
    run = str(averaged.folder)
    assert main(["convert", "to-hf", run, str(tmp_path / "ema"), "--ema"]) == 0
    assert_same_params(load_model(tmp_path / "ema").params, load_model(run, ema=True).params)
    assert main(["merge", f"{run}@2", f"{run}@4", f"{run}@ema", str(tmp_path / "mean")]) == 0
    parts = [load_model(run, step=2), load_model(run, step=4), load_model(run, ema=True)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(part.params for part in parts))
    actual = load_model(tmp_path / "mean")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual.params, expected)
    assert actual.tokenizer.fingerprint == parts[0].tokenizer.fingerprint


def test_a_run_without_one_says_so(make_config, capsys):
    config = make_config("plain", model=tiny(num_hidden_layers=1), steps=1, heldout={})
    train(config)
    assert checkpoint.latest_step(config.folder) == 1
    with pytest.raises(ValueError, match="has no ema: only runs with ema_decay"):
        load_model(config.folder, ema=True)
