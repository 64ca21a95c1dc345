"""Runs whose config.json was written before the task was a field of its own: read, opened, resumed and forked.

old_configs/ holds config.json files that an earlier version (commit efe5fef) wrote, with paths below HOME and RUNS.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.align.sft import Sft
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.old_config import modernize
from plamo2_jax.report.run import kind_of
from plamo2_jax.surgery.distill import Distill
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields, to_json
from plamo2_jax.train.loop import train
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.run_folder import TrainingError
from plamo2_jax.train.schedule import ScheduleConfig
from support.runs import assert_same_params, params_of, record, stop_after

OLD = Path(__file__).parent / "old_configs"
HOME = Path("HOME")
BASE = HOME / "base"


def text(batch_size=4):
    return DataConfig((MixtureItem(HOME / "train"),), 32, batch_size, packing_bins=4, prefetch_batches=0)


def lines(name, sequence_length):
    return DataConfig((MixtureItem(HOME / name),), sequence_length, 2, packing_bins=4, prefetch_batches=0)


# What was trained, in words, and the run as it is configured today.
RUNS = {
    "pretrain": (
        "pretraining",
        {"task": Pretrain(), "data": text(), "heldout": {"ja": HOME / "heldout"}, "ema_decay": 0.9, "accumulation": 2},
    ),
    "distill": (
        "distillation",
        {
            "task": Distill(HOME / "teacher", temperature=2.0, alpha=0.7, top_k=16),
            "data": text(),
            "heldout": {"ja": HOME / "heldout"},
            "accumulation": 2,
            "init_from": BASE,
        },
    ),
    "sft_lora": (
        "fine-tuning, adapters",
        {
            "task": Sft(lora=LoraConfig(rank=2, dropout=0.1)),
            "data": lines("chat.jsonl", 96),
            "heldout": {"chat": HOME / "chat-heldout.jsonl"},
            "accumulation": 2,
            "init_from": BASE,
        },
    ),
    "dpo": (
        "preferences",
        {
            "task": Dpo(
                pairs=PairsConfig(max_pairs=2), preference=PreferenceConfig(("sigmoid", "nll"), weights=(1.0, 0.2))
            ),
            "data": lines("pairs.jsonl", 192),
            "heldout": {"pairs": HOME / "pairs-heldout.jsonl"},
            "init_from": BASE,
        },
    ),
}


def today(name):
    """The run as it is configured today."""
    return RunConfig(
        name=name,
        model=preset(
            "tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, mamba_num_heads=2, vocab_size=864
        ),
        tokenizer=BASE,
        steps=6,
        output=Path("RUNS"),
        schedule=ScheduleConfig(learning_rate=1e-2, warmup=0.0),
        dtype="float32",
        checkpoint_every=3,
        evaluate_every=3,
        log_every=3,
        **RUNS[name][1],
    )


@pytest.mark.parametrize("name", RUNS)
def test_an_old_configuration_is_read_as_todays(name, tmp_path):
    (tmp_path / "config.json").write_text((OLD / f"{name}.json").read_text())
    found = checkpoint.read_config(tmp_path)
    config = today(name)
    expected = json.loads(json.dumps(to_json(config)))
    # What a run records besides its configuration: fingerprints.
    added = found.keys() - expected.keys()
    assert added <= {"tokenizer_fingerprint", "examples", "base_fingerprint"}
    theirs = fill_defaults({key: found[key] for key in expected if key in found}, config)
    assert differences(expected, theirs, frozenset(free_fields(config))) == []
    assert modernize(found) == found
    assert kind_of(found) == RUNS[name][0]
    assert (checkpoint.lora_of(found) or {}).get("rank") == (2 if name == "sft_lora" else None)


@pytest.mark.parametrize("value", [{}, {"model": {}}, {"data": 1, "steps": 1, "optimizer": 1}, {"task": None}])
def test_what_is_no_old_configuration_is_left_alone_or_does_not_fail(value):
    assert {key: found for key, found in modernize(value).items() if key != "task"} == {
        key: found for key, found in value.items() if key != "task"
    }
    assert kind_of(modernize(value)) in ("pretraining", "a model")


def write_old_form(config):
    """Replace a run's config.json by what an earlier version would have written for it."""
    path = config.folder / "config.json"
    now = json.loads(path.read_text())
    old = json.loads((OLD / "pretrain.json").read_text())
    moved = {"z_loss": now["task"]["z_loss"], "distillation": None, "keep": now["max_to_keep"]}
    added = {
        "task",
        "max_to_keep",
        "evaluation",
        "compiler_options",
        "device_prefetch",
        "linear_type",
        "local_checkpoints",
        "local_every",
        "shards",
    }
    assert old.keys() == (now.keys() | moved.keys()) - added
    path.write_text(json.dumps({key: moved[key] if key in moved else now[key] for key in old}))


def test_a_run_of_the_old_form_resumes_and_is_forked_bit_for_bit(uninterrupted, make_config):
    whole, _ = uninterrupted
    config = make_config("old_form")
    assert train(config, on_step=stop_after(5)).step == 5
    write_old_form(config)
    fork = make_config("fork_of_old_form", fork=Path(f"{config.folder}@5"))
    for run in (config, fork):
        assert train(run).step == 12
        assert json.loads((run.folder / "config.json").read_text())["task"] == {"kind": "pretrain", "z_loss": 1e-4}
        assert_same_params(params_of(run), params_of(whole))
    assert record(config) == record(whole)

    write_old_form(config)
    with pytest.raises(TrainingError, match=r"a different configuration, .*\(task\.z_loss: 0\.5, not 0\.0001\)"):
        train(dataclasses.replace(config, task=Pretrain(0.5)))
