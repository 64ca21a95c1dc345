"""What each kind of run holds beside its parameters, in its plan."""

import dataclasses
from pathlib import Path

import jax
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.preferences import Dpo
from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.align.sft import Sft
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.plan.memory import chip_bytes
from plamo2_jax.plan.program import train_program
from plamo2_jax.plan.request import not_counted
from plamo2_jax.surgery.distill import Distill
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.pretraining import Pretrain

MODEL = preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=2, mamba_num_heads=2, vocab_size=320)
PARAMETERS = MODEL.parameter_count()


def run(task=None, **fields):
    """A run of the smallest model; its files need not exist."""
    made = {
        "name": "run",
        "model": MODEL,
        "tokenizer": Path("tokenizer"),
        "data": DataConfig((MixtureItem(Path("data")),), sequence_length=32, batch_size=16),
        "steps": 10,
        "task": task or Pretrain(),
        "init_from": Path("model"),
    }
    return RunConfig(**made | fields)


def sizes(config):
    """Bytes of the arguments of a run's step by kind, on one device."""
    devices = jax.devices()[:1]
    found = {kind: chip_bytes(tree) for kind, tree in train_program(config, devices, "xla").parts.items()}
    # All arguments of the step are in the account, except the number of steps and the random key.
    assert chip_bytes(build_train_program(config, devices).arguments) - sum(found.values()) == 3 * 4
    return found


@pytest.fixture(scope="module")
def plain():
    return sizes(run())


def test_a_moving_average_takes_four_bytes_a_parameter(plain):
    assert sizes(run(ema_decay=0.999)) == {**plain, "moving average": 4 * PARAMETERS}


def test_a_teacher_takes_its_parameters_in_float32(plain, tmp_path):
    shape = dataclasses.replace(MODEL, intermediate_size=64)
    params = jax.jit(lambda key: init_params(Plamo2(shape), key))(jax.random.key(0))
    checkpoint.save_model(tmp_path / "teacher", shape, params)
    (tmp_path / "teacher" / "manifest.json").unlink()
    distil = run(Distill(tmp_path / "teacher"))
    assert sizes(distil) == {**plain, "teacher": 4 * shape.parameter_count()}
    # Only the shape of the teacher is read.
    (tmp_path / "teacher" / "checkpoints").rename(tmp_path / "gone")
    assert sizes(distil)["teacher"] == 4 * shape.parameter_count()
    program = train_program(distil, jax.devices()[:1], "xla")
    length = distil.data.sequence_length
    forward = MODEL.flops_per_token(length), shape.flops_per_token(length)
    assert program.flops == pytest.approx((3 * forward[0] + forward[1]) * program.tokens)


def test_logits_from_disk_take_the_place_of_a_teacher(plain):
    distil = run(Distill(Path("teacher"), top_k=8, logits=Path("logits")))
    # ids and logits of 8 tokens, and the normaliser, at each position.
    assert sizes(distil) == {**plain, "batch": plain["batch"] + 16 * 32 * (8 * 8 + 4)}


def test_fine_tuning_takes_what_pretraining_takes(plain):
    assert sizes(run(Sft(neftune_alpha=5.0))) == plain


def test_a_reference_takes_its_parameters_or_a_number_a_token(plain):
    assert sizes(run(Dpo())) == {**plain, "reference": 4 * PARAMETERS}
    stored = sizes(run(Dpo(reference_log_probs=Path("reference"))))
    assert stored == {**plain, "batch": plain["batch"] + 16 * 32 * 4}


@pytest.mark.parametrize("task", [Sft, Dpo])
def test_adapters_leave_the_optimizer_small(plain, task):
    found = sizes(run(task(lora=LoraConfig(rank=2))))
    # The reference of adapters is their base.
    assert found.keys() == {"parameters", "optimizer", "base", "batch"}
    assert found["base"] == 4 * PARAMETERS
    assert found["parameters"] < PARAMETERS
    assert found["optimizer"] == pytest.approx(2 * found["parameters"], abs=64)
    assert found["batch"] == plain["batch"]


def test_every_step_can_be_traced(tmp_path):
    for config in (run(ema_decay=0.9), run(Sft(lora=LoraConfig(rank=2))), run(Dpo())):
        program = train_program(config, jax.devices()[:1], "xla")
        assert {"loss", "weight", "processed"} <= program.trace().out_info[1].keys()


def test_what_runs_between_the_steps_is_named():
    assert not_counted(run()) == []
    assert not_counted(run(heldout={"ja": Path("x")})) == ["heldout"]
    assert not_counted(run(Sft(samples=SamplesConfig(prompts=("猫",))))) == ["samples.prompts"]
