"""Plans of prefill and decoding: the programs that the engine runs, no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from plamo2_jax.config import preset
from plamo2_jax.engine import engine as engine_module
from plamo2_jax.engine import prefill as prefill_module
from plamo2_jax.engine import step as programs
from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.model.axes import DATA
from plamo2_jax.plan.serving import decode_program, prefill_program, serving_mesh

CONFIG = preset("tiny", num_hidden_layers=2)


@pytest.fixture(scope="module")
def mesh():
    return serving_mesh(CONFIG, jax.devices())


@pytest.fixture(scope="module")
def ran(mesh):
    """What an engine traces on eight devices as it reads a prompt of a piece and decodes a token."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in (
            (engine_module, "decode", programs.decode),
            (prefill_module, "prefill", programs.prefill),
        ):

            def record(*args, name=name, function=function, **settings):
                found[name] = function.trace(*args, **settings)
                return function(*args, **settings)

            patch.setattr(module, name, record)
        model = Plamo2(CONFIG, dtype=jnp.float32, mesh=mesh, scan_layers=False)
        params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
        engine = Engine(model, params, slots=2, max_length=65, prefill_size=64)
        prefix = engine.prefill(np.arange(65, dtype=np.int32))
        engine.insert(0, prefix, Request(prefix.prompt, SamplingConfig(), StopConfig(1), (), 0, 0))
        engine.step(1)
    return found, engine.slots


def operations(jaxpr):
    """Every operation of a program with its shapes and settings, in order. (Printed jaxprs also show which parts JAX had traced before.)"""
    found = []
    for eqn in jaxpr.eqns:
        settings = {name: value for name, value in eqn.params.items() if "jaxpr" not in str(type(value)).lower()}
        inner = jaxprs_in_params(eqn.params)
        found.append(
            (
                eqn.primitive.name,
                [v.aval.str_short() for v in eqn.invars + eqn.outvars],
                str(settings) if not inner else "",
            )
        )
        for one in inner:
            found += operations(one)
    return found


def test_decode_is_planned_as_the_engine_runs_it(mesh, ran):
    found, slots = ran
    planned = decode_program(CONFIG, "float32", mesh, rows=slots // mesh.shape[DATA], tokens=64)
    assert operations(planned.trace().jaxpr) == operations(found["decode"].jaxpr)
    assert planned.tokens == slots


def test_prefill_is_planned_as_the_engine_runs_it(mesh, ran):
    found, _ = ran
    rows = found["prefill"].in_avals[0][2].shape[0]
    planned = prefill_program(CONFIG, "float32", mesh, "auto", rows=rows // mesh.shape[DATA], tokens=64, length=65)
    assert operations(planned.trace().jaxpr) == operations(found["prefill"].jaxpr)
    assert planned.tokens == 64 * rows
