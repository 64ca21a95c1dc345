"""Benchmark tasks in the train loop: what is logged, on which devices, and that they change nothing about the run."""

import dataclasses

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint, models
from plamo2_jax.cli.main import main
from plamo2_jax.eval.in_training import TrainingBenchmarks, open_benchmarks
from plamo2_jax.eval.run import answer_items, spread
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train.benchmarks import BenchmarksConfig
from plamo2_jax.train.loop import train
from plamo2_jax.train.run_folder import TrainingError
from support.runs import (
    assert_same_params,
    finish,
    held,
    params_of,
    record,
    start,
    stop_after,
    wait_for,
    write_config,
)
from support.tokenizers import byte_tokenizer

ASKED = BenchmarksConfig(tasks=("phonebook",), every=6, limit=4, lengths=(160,), batch_size=8)


@pytest.fixture(scope="module")
def answered(make_config):
    """A run on eight devices with tasks."""
    config = make_config("answered", evaluation=ASKED)
    assert train(config, open_benchmarks=open_benchmarks).step == 12
    return config


def tasks_of(config):
    return {line["step"]: line for line in record(config) if any(name.startswith("tasks/") for name in line)}


def test_tasks_are_logged_and_change_nothing_else(answered, uninterrupted):
    expected, _ = uninterrupted
    lines = tasks_of(answered)
    assert list(lines) == [6, 12]
    for line in lines.values():
        assert line["tasks/phonebook/items"] == 4
        assert line["tasks/phonebook/failed"] == 0
        assert 0 <= line["tasks/phonebook/ranked"] <= 1
        assert 1 / 8 <= line["tasks/phonebook/chance"] < 1
        assert "tasks/phonebook/ranked/ja/160" not in line
    others = [line for line in record(answered) if line not in lines.values()]
    assert others == record(expected)
    assert_same_params(params_of(answered), params_of(expected))


def test_a_sharded_run_measures_what_its_checkpoint_does(answered):
    """The parameters of eight devices, and the checkpoint on one device."""
    tokenizer = byte_tokenizer()
    options = TaskOptions(lengths=(160,), count_tokens=lambda text: len(tokenizer.encode(text)))
    task = open_task("phonebook", options)
    items = spread(task.items, 4)
    benchmarks = open_benchmarks(answered, tokenizer, jax.devices())
    params = params_of(answered)
    sharded = []
    answer = benchmarks._answer
    benchmarks._answer = lambda task, items, model, keep_on: (
        sharded.extend(model.score([next(task.requests(item)) for item in items]))
        or answer(task, items, model, keep_on)
    )
    found = benchmarks.measure(params, lambda: True)
    with models.open(answered.folder) as model:
        alone = model.score([next(task.requests(item)) for item in items])
        scores = task.score(items, answer_items(task, model, items=items))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(model_params(benchmarks, params))} == {8}
    for ours, theirs in zip(sharded, alone, strict=True):
        np.testing.assert_allclose([one.logprob for one in ours], [one.logprob for one in theirs], rtol=1e-4)
    metrics = {name: metric.value for name, metric in task.summarize(items, scores).items()}
    assert found["phonebook/ranked"] == metrics["ranked"] == tasks_of(answered)[12]["tasks/phonebook/ranked"]


def model_params(benchmarks, params):
    from plamo2_jax.engine.weights import decoding_params

    return decoding_params(benchmarks._model, params, jax.devices()[0])


def test_interruptions_change_no_metric_of_tasks(answered, make_config, tmp_path):
    """A signal at a step with tasks, then kill -9 after the tasks were made up for and past a checkpoint."""
    config = make_config("interrupted", evaluation=ASKED, heldout={})
    assert train(config, open_benchmarks=open_benchmarks, on_step=stop_after(6)).step == 6
    assert tasks_of(config) == {}
    child = start(write_config(config, tmp_path), devices=8, preamble=held(10))
    try:
        wait_for(lambda: list(tasks_of(config)) == [6] and checkpoint.latest_step(config.folder) == 8, child)
    finally:
        child.kill()
        finish(child)
    assert train(config, open_benchmarks=open_benchmarks).step == 12
    assert tasks_of(config) == tasks_of(answered)
    assert_same_params(params_of(config), params_of(answered))


def test_a_signal_ends_the_tasks(answered):
    benchmarks = open_benchmarks(answered, byte_tokenizer(), jax.devices())
    assert benchmarks.measure(params_of(answered), lambda: False) == {}


def test_a_long_item_is_refused_before_the_first_step(make_config, tmp_path, capsys):
    config = make_config("long", output=tmp_path)
    model = dataclasses.replace(config.model, max_position_embeddings=128)
    config = dataclasses.replace(config, model=model, evaluation=ASKED)
    assert main(["pretrain", str(write_config(config, tmp_path))]) == 2
    assert "and the model has 128 positions. Use smaller evaluation.lengths" in capsys.readouterr().err
    assert not config.folder.exists()


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"tasks": ("nothing",)}, r"evaluation.tasks has 'nothing', which is unknown: plamo2 evaluate --list"),
        ({"tasks": ("phonebook", "phonebook")}, r"BenchmarksConfig.tasks=.* is not allowed"),
        ({"tasks": ("phonebook",), "paths": {"jmmlu": "x"}}, r"BenchmarksConfig.paths=.* is not allowed"),
        ({"tasks": ("phonebook",), "every": 0}, r"BenchmarksConfig.every=0 is not allowed: it must be at least 1"),
    ],
)
def test_refusals(make_config, tmp_path, evaluation, message):
    with pytest.raises(ValueError, match=message):
        TrainingBenchmarks(
            make_config("x", output=tmp_path, evaluation=BenchmarksConfig(**evaluation)),
            byte_tokenizer(),
            jax.devices(),
        )


def test_the_loop_needs_a_function_that_opens_tasks(make_config, tmp_path):
    with pytest.raises(TrainingError, match="pass open_benchmarks="):
        train(make_config("x", output=tmp_path, evaluation=ASKED, mesh=MeshConfig()))
