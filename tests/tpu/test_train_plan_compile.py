"""Compile train steps with libtpu: a small model has a complete plan, and an 8B on four chips does not fit."""

import dataclasses
import json
from pathlib import Path

import pytest

from plamo2_jax.config import ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.plan import report
from plamo2_jax.plan.costs import Costs
from plamo2_jax.plan.draft import compile_draft, estimate
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.step import compile_with_costs
from plamo2_jax.plan.steps import plan
from plamo2_jax.plan.worker import Worker
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.surgery.distill import Distill

pytestmark = pytest.mark.tpu
CONFIGS = Path(__file__).parent.parent.parent / "configs"


def pretraining(name, **changes):
    from plamo2_jax.config_file import load_config

    config = load_config(CONFIGS / f"{name}.py")
    data = dataclasses.replace(
        config.data, **{k: changes.pop(k) for k in ("batch_size", "sequence_length") if k in changes}
    )
    return dataclasses.replace(config, data=data, **changes)


SMALL = ModelConfig(
    hidden_size=512,
    num_hidden_layers=8,
    intermediate_size=1024,
    num_attention_heads=4,
    num_key_value_heads=2,
    mamba_num_heads=8,
    attention_window_size=512,
    vocab_size=4096,
)
CHANGES = {
    "batch_size": 8,
    "sequence_length": 2048,
    "accumulation": 1,
    "remat": "block",
    "mesh": MeshConfig(),
    "sharding": "fsdp_tensor",
}


def test_a_small_model_fits_and_every_figure_is_there():
    model = SMALL
    config = pretraining("pretrain_1b", model=model, **CHANGES)
    found = plan(Request(config, "v5e:2x2"))
    assert found.fits, report.summary(found)
    assert found.devices == 4
    # float32 parameters and two moments; a quarter of each on every chip, except vectors.
    assert found.arguments["parameters"] == pytest.approx(model.parameter_count(), rel=0.02)
    assert found.arguments["optimizer"] == pytest.approx(2 * model.parameter_count(), rel=0.02)
    assert 0 < found.memory["used"] < found.hbm_available
    assert found.memory["kept"] > 0
    assert {"all-gather"} <= {c["kind"] for c in found.collectives}
    assert not found.unknown
    names = set(found.parts)
    assert {"scan kernels (ssd)", "attention kernels (splash)", "MLP products"} <= names
    assert 0 < found.scheduled_mfu <= found.mfu < 1
    assert "fits" in report.summary(found)
    assert any("HBM per chip" in line for line in report.lines(found))


def test_a_draft_with_the_costs_of_equal_operations_is_the_complete_plan():
    model = dataclasses.replace(SMALL, num_hidden_layers=4)
    # Small tiles, because the search and the code of large ones take minutes.
    quick = {"xla_tpu_scoped_vmem_limit_kib": "16384"}
    request = Request(pretraining("pretrain_1b", model=model, compiler_options=quick, **CHANGES), "v5e:2x2")
    with Worker() as worker:
        made = worker.call(compile_draft, request)
    with Worker() as worker:
        complete, costs = worker.call(compile_with_costs, request)
    found = estimate(made, Costs(costs), complete.memory["code_bytes"])
    assert found.scaled == 0
    assert found.times == complete.times
    assert found.collectives == complete.collectives
    assert found.hbm_needed == pytest.approx(complete.hbm_needed, rel=0.01)
    assert made.facts["cpu_seconds_to_compile"] < complete.cpu_seconds_to_compile / 2
    # Another policy shares most operations.
    block = dataclasses.replace(request, config=dataclasses.replace(request.config, remat="dots"))
    with Worker() as worker:
        assert 0 < estimate(worker.call(compile_draft, block), Costs(costs)).scaled < 0.7


def test_a_draft_of_a_program_that_does_not_fit_has_the_bytes_that_it_needs():
    request = Request(pretraining("pretrain_8b", batch_size=4, accumulation=1, mesh=MeshConfig()), "v5e:2x2")
    with Worker() as worker:
        made = worker.call(compile_draft, request)
    assert made.hbm_needed > made.facts["hbm_available"] > 0
    assert not estimate(made, Costs()).fits


def test_a_model_that_no_kernel_takes_is_refused_in_one_sentence():
    model = dataclasses.replace(SMALL, num_hidden_layers=2, hidden_size_per_head=24)
    config = pretraining("pretrain_1b", model=model, **CHANGES)
    with pytest.raises(PlamoError, match="'splash' cannot run: its heads must be a multiple of 16, not 24"):
        plan(Request(config, "v5e:2x2"))


def test_an_average_and_a_teacher_take_the_bytes_of_their_parameters(tmp_path):
    """On each of four chips, a quarter of 4 bytes a parameter, by the compiler's own count of arguments."""
    model = dataclasses.replace(SMALL, num_hidden_layers=2)
    (tmp_path / "config.json").write_text(json.dumps({"model": model.to_json()}))
    plain = pretraining("pretrain_1b", model=model, **CHANGES)
    others = {
        "moving average": dataclasses.replace(plain, ema_decay=0.999),
        "teacher": dataclasses.replace(plain, task=Distill(tmp_path)),
    }
    before = plan(Request(plain, "v5e:2x2"))
    for kind, config in others.items():
        found = plan(Request(config, "v5e:2x2"))
        assert found.fits
        assert found.arguments[kind] == pytest.approx(model.parameter_count(), rel=0.02)
        added = found.memory["argument_bytes"] - before.memory["argument_bytes"]
        # The compiler pads what its tiles do not divide.
        assert added == pytest.approx(found.arguments[kind], rel=0.1)
        assert found.unknown == ()
    assert found.flops > before.flops


def test_an_8b_on_four_v5e_says_how_many_bytes_are_over():
    config = pretraining("pretrain_8b", batch_size=4, accumulation=1, mesh=MeshConfig())
    found = plan(Request(config, "v5e:2x2"))
    assert not found.fits
    assert found.error is None
    # The state alone, 12 bytes per parameter, is more than four chips have.
    assert found.hbm_needed > 3 * config.model.parameter_count()
    assert found.hbm_needed - found.hbm_available > 8 * 2**30
    assert "GiB over" in report.summary(found)
