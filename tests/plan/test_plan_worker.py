"""The compiler process and the JSON between it and its callers. No test here needs libtpu: only the CPU's compiler runs."""

import dataclasses
from pathlib import Path

import pytest

from plamo2_jax.config_file import load_config
from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.roofline import Operation
from plamo2_jax.plan.schedule.cost import Cost, Kernel
from plamo2_jax.plan.schedule.dump import parse_utilization
from plamo2_jax.plan.schedule.kernel_plan import KernelPlan, SsdRequest, compile_ssd
from plamo2_jax.plan.schedule.ssd import SsdProgram
from plamo2_jax.plan.steps import gpu_argument_bytes
from plamo2_jax.plan.wire import decode, encode
from plamo2_jax.plan.worker import Worker
from plamo2_jax.sharding.mesh import MeshConfig

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SSD = SsdProgram("tiny", "xla", None, "forward", tokens=64)


@pytest.mark.parametrize("name", ["demo", "demo_small", "demo_sft", "demo_dpo", "pretrain_31b"])
def test_every_kind_of_run_arrives_as_it_was_sent(name):
    config = load_config(CONFIGS / f"{name}.py")
    arrived = decode(encode(Request(config, "v5p:2x2x1", "decode")))
    assert arrived == Request(config, "v5p:2x2x1", "decode")
    assert type(arrived.config.task) is type(config.task)


def test_a_plan_arrives_as_it_was_sent():
    operation = Operation("ssd.1", "kernel", "jit(f)/ssd", 1, None, 40_000, 0.1 + 0.2, 2_000_000)
    kernel = Kernel("ssd", (1, 2, 4), 40_000, 5000.0, 0, 50_000.0, 2, 2, 2**20, {"MXU": 0.5})
    plan = KernelPlan(SSD, "auto", "0.0.42.1", Cost(CHIPS["TPU v5"], (operation,), (kernel,), 0, 1))
    assert decode(encode(plan)) == plan


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, b"x", [object()], {"__type__": "path"}])
def test_other_types_are_not_sent(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        encode(value)


@pytest.mark.parametrize("name", ["os:system", "plamo2_jax.plan.wire:encode", "plamo2_jax.plan.wire:nothing"])
def test_only_dataclasses_of_this_package_are_constructed(name):
    with pytest.raises(ValueError, match=f"'{name}' is not allowed here"):
        decode({"__type__": name})


def test_the_process_refuses_answers_and_may_end():
    def elsewhere(request, dump):
        raise AssertionError

    with Worker() as worker:
        with pytest.raises(ValueError, match="elsewhere' is not allowed here"):
            worker.call(elsewhere, 1)
        # The same process answers the next question.
        with pytest.raises(ValueError, match="plamo-3"):
            worker.call(compile_ssd, SsdRequest("v5p:2x2x1", dataclasses.replace(SSD, preset="plamo-3")))
        worker._process.kill()
        with pytest.raises(RuntimeError, match="the compiler process has ended"):
            worker.call(compile_ssd, SsdRequest("v5p:2x2x1", SSD))


def test_a_defect_is_not_a_refusal():
    """A ValueError of Python or NumPy is no message to the user: the process ends, and the log has the traceback."""
    with Worker() as worker, pytest.raises(RuntimeError, match=r"(?s)Traceback.*invalid literal for int"):
        worker.call(parse_utilization, "\nMXU\nfour")


def test_argument_bytes_are_divided_over_the_devices():
    config = load_config(CONFIGS / "demo.py")
    model = dataclasses.replace(config.model, num_hidden_layers=1)
    config = dataclasses.replace(config, model=model, mesh=MeshConfig(fsdp=2))
    found = gpu_argument_bytes(Request(config, "", gpus=2))
    assert found["parameters"] == pytest.approx(4 * model.parameter_count() / 2, rel=0.02)
    assert found["optimizer"] == pytest.approx(2 * found["parameters"], rel=0.02)
    assert found["all"] == pytest.approx(sum(found.values()) - found["all"], rel=0.01)
