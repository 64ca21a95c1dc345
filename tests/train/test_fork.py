"""Training further: more steps for a run that is complete, and runs that start from another one's checkpoint with its optimizer."""

import dataclasses
import json
import math
import shutil

import jax
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.checkpoint import CheckpointError
from plamo2_jax.data.pipeline import MixtureItem, train_iterator
from plamo2_jax.data.shards import open_shards
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.fork import ForkError, first_change
from plamo2_jax.train.loop import train
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.run_folder import TrainingError, check_resumable
from plamo2_jax.train.schedule import ScheduleConfig, make_schedule
from support.models import tiny
from support.runs import assert_same_params, params_of, record

# One layer of attention: it compiles in a third of the time of a pair of layers.
MODEL = tiny(num_hidden_layers=1)
# Constant from the third update to the ninth of 12, and to the end where nothing decays.
WSD = ScheduleConfig(learning_rate=1e-3, warmup=2, decay_fraction=0.25)
FLAT = dataclasses.replace(WSD, decay_fraction=0.0)


def losses(config, above=0):
    return {line["step"]: line["loss"] for line in record(config) if "loss" in line and line["step"] > above}


@pytest.fixture(scope="module")
def origin(make_config):
    """A complete run of 12 steps whose learning rate falls from step 10 on, with all its checkpoints."""
    config = make_config("origin", model=MODEL, schedule=WSD, heldout={}, ema_decay=0.9)
    train(config)
    return config


def test_a_fork_of_the_same_configuration_makes_the_same_updates(origin):
    fork = dataclasses.replace(origin, name="same", fork=f"{origin.folder}@4")
    assert train(fork).step == 12
    assert losses(fork) == losses(origin, above=4)
    for step in (8, 12):
        assert_same_params(params_of(fork, step), params_of(origin, step))
    described = json.loads((fork.folder / "config.json").read_text())
    assert described["fork"] == f"{origin.folder}@4"
    from_ = described["forked_from"]
    assert (from_["run"], from_["name"], from_["step"], from_["data"]) == (str(origin.folder), "origin", 4, "continue")
    assert from_["written_by"]["jax"] == jax.__version__
    # It is a run of its own: it goes on from its own checkpoints, wherever the other one is by then.
    again = dataclasses.replace(fork, fork="nowhere@3")
    assert train(again).step == 12
    assert json.loads((fork.folder / "config.json").read_text())["forked_from"] == from_


def test_a_decay_branch_of_the_constant_part(origin):
    """Two steps of decay from step 8 on: what is before keeps its rates, and the optimizer its moments."""
    schedule = dataclasses.replace(WSD, decay_fraction=0.2)
    branch = dataclasses.replace(origin, name="branch", fork=f"{origin.folder}@8", steps=10, schedule=schedule)
    train(branch)
    rates = {line["step"]: line["learning_rate"] for line in record(branch) if "loss" in line}
    assert list(rates) == [9, 10]
    assert rates[9] == pytest.approx(WSD.learning_rate)
    assert rates[9] > rates[10] > 0
    # The first update is that of the other run, moments and all.
    assert losses(branch)[9] == losses(origin)[9]


def test_other_data_start_at_their_beginning(origin, home):
    data = dataclasses.replace(origin.data, mixture=(MixtureItem(home / "heldout" / "en"),))
    other = dataclasses.replace(origin, name="other", fork=f"{origin.folder}@8", data=data)
    with pytest.raises(ForkError, match=r"the data differ \(data\.mixture: .*Set fork_data='restart'"):
        train(other)
    assert not other.folder.exists()
    other = dataclasses.replace(other, fork_data="restart")
    assert train(other).step == 12
    tokenizer = Tokenizer.load(origin.tokenizer)
    lines = [line for line in read_metrics(other.folder / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [9, 10, 11, 12]
    for line, batch in zip(lines, train_iterator(data, tokenizer), strict=False):
        counted = batch["loss_weights"] > 0
        assert line["tokens"] == counted.sum()
        # Bytes of the batch, from nats per token and bits per byte.
        bytes_ = line["nats_per_token"] * line["tokens"] / line["bits_per_byte"] / math.log(2)
        assert bytes_ == pytest.approx(tokenizer.byte_lengths[batch["targets"]][counted].sum(), rel=1e-5)
    assert json.loads((other.folder / "config.json").read_text())["forked_from"]["data"] == "restart"


def test_other_shards_under_the_same_path_are_refused(origin, tmp_path):
    config = dataclasses.replace(origin, output=tmp_path)
    path = shutil.copytree(origin.folder, config.folder) / "config.json"
    described = json.loads(path.read_text())
    assert described["shards"] == [open_shards(config.data.mixture[0].path).fingerprint]
    path.write_text(json.dumps(described | {"shards": ["another"]}))
    with pytest.raises(TrainingError, match=r"cannot be resumed \(shards: \['.*'\], not \['another'\]\)"):
        train(config)
    with pytest.raises(ForkError, match=r"the data differ \(shards: "):
        train(dataclasses.replace(config, name="forked", fork=f"{config.folder}@4"))
    # An older run does not say which shards it read.
    path.write_text(json.dumps({key: value for key, value in described.items() if key != "shards"}))
    assert check_resumable(config, described) == described


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fork": "{}@x"}, r"fork='.*@x' is not allowed: it must be RUN or RUN@STEP"),
        ({"fork": "{}@5"}, r"has no finished checkpoint of step 5: it has 4, 8, 12"),
        ({"fork": "{}@b/not"}, r"origin@b/not has no finished checkpoint"),
        ({"fork": "{}-not"}, r"origin-not has no finished checkpoint"),
        ({"fork": "{}@12"}, r"steps=12 is not allowed with fork=.*@12: it includes the updates before the fork"),
        ({"fork_data": "begin"}, r"fork_data='begin' is not allowed: it must be one of continue, restart"),
        ({"data.seed": 5}, r"the data differ \(data\.seed: 5, not 0\)"),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_written(origin, changes, message):
    changes = {"fork": "{}@4", **changes}
    data = dataclasses.replace(origin.data, seed=changes.pop("data.seed", 0))
    changes["fork"] = changes["fork"].format(origin.folder)
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(origin, name="refused_fork", data=data, **changes))
    assert not (origin.output / "refused_fork").exists()


def test_a_damaged_or_a_bare_checkpoint_is_no_origin(origin, tmp_path):
    copy = shutil.copytree(origin.folder, tmp_path / "copy")
    path = max(
        (copy / "checkpoints" / "4" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    config = dataclasses.replace(origin, name="refused_fork", fork=copy / ".." / "copy@4")
    with pytest.raises(CheckpointError, match=r"is damaged: .* does not match its checksum"):
        train(config)
    bare = tmp_path / "bare"
    checkpoint.save_model(bare, origin.model, params_of(origin))
    with pytest.raises(ForkError, match=r"has parameters but no optimizer state. Use init_from"):
        train(dataclasses.replace(config, fork=bare))
    assert not config.folder.exists()


def test_another_shape_is_named(origin):
    model = dataclasses.replace(origin.model, intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"tensor .* has shape .*: this model requires"):
        train(dataclasses.replace(origin, name="refused_fork", model=model, fork=f"{origin.folder}@4"))
    assert not (origin.output / "refused_fork").exists()


@pytest.fixture(scope="module")
def short(make_config):
    """A complete run of 6 steps at a rate that stays constant."""
    config = make_config("longer", model=MODEL, schedule=FLAT, heldout={}, steps=6)
    train(config)
    return config


def test_an_average_that_the_other_run_kept_not_is_refused(short):
    with pytest.raises(CheckpointError, match="only runs with ema_decay store a moving average"):
        train(dataclasses.replace(short, name="averaging", ema_decay=0.9, fork=f"{short.folder}@4"))


def test_a_complete_run_is_trained_further(short, make_config):
    """A run of 6 and then 12 steps is the run of 12."""
    longer = dataclasses.replace(short, steps=12)
    assert train(longer).step == 12
    whole = make_config("at-once", model=MODEL, schedule=FLAT, heldout={})
    train(whole)
    assert losses(longer) == losses(whole)
    assert_same_params(params_of(longer), params_of(whole))
    assert json.loads((longer.folder / "config.json").read_text())["steps"] == 12
    with pytest.raises(TrainingError, match=r"a different configuration, .*steps: 6, not 12.*fork=RUN@STEP"):
        train(short)


def test_more_steps_may_not_change_rates_of_the_past(origin):
    longer = dataclasses.replace(origin, steps=20)
    before = (origin.folder / "config.json").read_bytes()
    with pytest.raises(
        TrainingError, match=r"updates 11 to 12 had a different learning rate.*--fork .*origin@8 --steps 20$"
    ):
        train(longer)
    assert (origin.folder / "config.json").read_bytes() == before
    assert checkpoint.latest_step(origin.folder) == 12


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"warmup": 5, "decay_fraction": 0.2}, 80),
        ({"warmup": 5, "decay_fraction": 0.0}, None),
        ({"warmup": 0.05, "decay_fraction": 0.2}, 0),
        ({"warmup": 5, "kind": "cosine"}, 5),
    ],
)
def test_where_a_longer_schedule_leaves_the_shorter_one(fields, changed):
    config = ScheduleConfig(**fields)
    # The decay of one_minus_sqrt and of a cosine begins with an update at the peak.
    found = first_change(make_schedule(config, 200), make_schedule(config, 100), 100)
    assert found == (changed if changed in (None, 0) else changed + 1)
