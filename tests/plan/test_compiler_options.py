"""Options of the TPU compiler by generation, their changes by a run, and their way into the train step."""

import dataclasses
import types

import jax
import pytest

from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.sharding.compiler_options import OPTIONS, compiler_options
from plamo2_jax.train.build import build_train_program
from tests.plan.test_plan_tasks import run


def device(kind):
    return types.SimpleNamespace(device_kind=kind)


def test_every_chip_that_can_be_planned_has_options_that_fit_its_vector_memory():
    assert OPTIONS.keys() == CHIPS.keys()
    for kind, options in OPTIONS.items():
        assert int(options["xla_tpu_scoped_vmem_limit_kib"]) * 1024 < CHIPS[kind].vmem_bytes


def test_a_run_changes_and_removes_options():
    changes = {"xla_tpu_scoped_vmem_limit_kib": "32768", "xla_tpu_enable_async_sc_call": "", "another": "1"}
    found = compiler_options(device("TPU v5"), changes)
    kept = OPTIONS["TPU v5"].keys() - {"xla_tpu_enable_async_sc_call"}
    assert found == {
        **{name: OPTIONS["TPU v5"][name] for name in kept},
        "xla_tpu_scoped_vmem_limit_kib": "32768",
        "another": "1",
    }


def test_devices_other_than_tpus_have_no_options():
    assert compiler_options(jax.devices()[0]) == {}
    assert compiler_options(device("NVIDIA H100")) == {}


def test_the_options_of_a_run_reach_the_compiler():
    config = dataclasses.replace(run(init_from=None), compiler_options={"xla_no_such_option": "1"})
    program = build_train_program(config, jax.devices()[:1])
    lowered = program.jit().lower(*program.arguments)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered.compile()
