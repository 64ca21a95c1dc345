"""Sweeps without the compiler: candidates, costs of operations, drafts, journal and table."""

import dataclasses
import gzip
from pathlib import Path

import pytest

from plamo2_jax.cli.plan_slice import slice_name
from plamo2_jax.cli.run_options import parse_config
from plamo2_jax.config_file import load_config
from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.buffers import buffer_bytes
from plamo2_jax.plan.candidates import candidates, memory_bounds
from plamo2_jax.plan.chips import CHIPS, chip_of_slice
from plamo2_jax.plan.costs import Costs, describe, product_sizes
from plamo2_jax.plan.draft import Draft, estimate, with_wrapped_names
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.journal import Journal
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.sweep import Sweep, last_line, table
from plamo2_jax.sharding.mesh import MeshConfig

ROOT = Path(__file__).parent.parent.parent
V5P = CHIPS["TPU v5"]


@pytest.fixture(scope="module")
def config():
    found = load_config(ROOT / "configs" / "pretrain_8b.py")
    return dataclasses.replace(found, mesh=MeshConfig(data=4, fsdp=16))


@pytest.fixture(scope="module")
def found(config):
    return candidates(config, 64, V5P)[0]


# -- Candidates --------------------------------------------------------------------------------------------------------------------


def test_every_candidate_divides_the_run_and_is_given_by_its_options(config, found):
    assert len({each.options for each in found}) == len(found) > 50
    for each in found:
        mesh = each.config.mesh
        assert mesh.data * mesh.fsdp * mesh.sequence * mesh.tensor == 64
        assert config.data.batch_size % (each.config.accumulation * mesh.data * mesh.fsdp) == 0
    assert {each.config.sharding for each in found} == {"fsdp_tensor", "zero1", "zero2"}
    without = next(each for each in found if each.config.loss_chunk is None)
    assert parse_config(config, without.options.split(), "plamo2 plan") == without.config


def test_candidates_that_cannot_fit_are_left_out(config, found):
    assert all(each.least_bytes <= V5P.hbm_bytes for each in found)
    fitting, too_large = candidates(config, 64, dataclasses.replace(V5P, hbm_bytes=20 * 2**30))
    assert too_large > 0
    assert {each.options for each in fitting} < {each.options for each in found}


def test_the_bounds_are_around_the_compilers_memory(config):
    # results.json of experiments/tpu_plans: arguments, gradients and saved activations; and with all temporaries.
    least, likely = memory_bounds(config)
    assert 0.9 * least < 6868461568 + 2186625024 + 29410459648 < 1.1 * least
    assert 0.9 * likely < 6868461568 + 40269818368 < 1.1 * likely


def test_less_saved_needs_less_memory(config):
    order = ("dots", "dots_except_up", "dots_except_gate_up", "outputs", "block")
    sizes = [memory_bounds(dataclasses.replace(config, remat=remat))[0] for remat in order]
    assert sizes == sorted(sizes, reverse=True)


# -- Costs -------------------------------------------------------------------------------------------------------------------------

PRODUCT = """HloModule m, is_scheduled=true

%fused (p.0: bf16[{rows},256], p.1: bf16[256,512]) -> bf16[{rows},512] {{
  %p.0 = bf16[{rows},256]{{1,0:T(8,128)(2,1)}} parameter(0)
  %p.1 = bf16[256,512]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %convolution.{n} = bf16[{rows},512]{{1,0:T(8,128)(2,1)}} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}}

ENTRY %main (x: bf16[{rows},256], w: bf16[256,512]) -> bf16[{rows},512] {{
  %x = bf16[{rows},256]{{1,0:T(8,128)(2,1)}} parameter(0)
  %w = bf16[256,512]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %fusion.{n} = bf16[{rows},512]{{1,0:T(8,128)(2,1)}} fusion(%x, %w), kind=kOutput, calls=%fused, metadata={{op_name="a{n}"}}{end}
}}
"""


def product(rows, n=1, end=""):
    text = PRODUCT.format(rows=rows, n=n, end=end)
    module = parse_module(text)
    instruction, computation, _ = next(iter(module.executed()))
    return text, module, instruction, computation


def cost(rows, cycles):
    return dataclasses.replace(describe(*product(rows)[1:]), estimated_cycles=cycles)


def cycles(costs, rows, n=1):
    _, module, instruction, computation = product(rows, n)
    operation, known = costs.operation(module, instruction, computation, 3, V5P)
    assert operation.times == 3
    return operation.cycles, known


def test_sizes_of_a_product():
    _, module, _, _ = product(1024)
    convolution = module.computations["fused"]["convolution.1"]
    found = product_sizes(convolution, ["bf16[1024,256]", "bf16[256,512]"])
    assert found == (2 * 1024 * 256 * 512, (1024, 256, 512))


def test_an_equal_operation_has_an_equal_cost_whatever_its_name_and_its_code():
    compiled = ', backend_config={"window_config":{"estimated_cycles":"77"}}'
    assert describe(*product(1024, 1)[1:]) == describe(*product(1024, 2, compiled)[1:])
    assert cycles(Costs([cost(1024, 5000)]), 1024, n=9) == (5000, True)


def test_a_similar_operation_is_scaled_from_the_nearest():
    costs = Costs([cost(1024, 5000), cost(8192, 36000)])
    assert cycles(costs, 4096) == (18000, False)
    assert cycles(costs, 512) == (2500, False)


def test_an_unknown_operation_is_a_roofline_estimate():
    flops = 2 * 65536 * 256 * 512
    at_peak = flops / V5P.peak_flops * V5P.clock
    estimated, known = cycles(Costs(), 65536)
    assert not known
    moved = (65536 * 256 + 65536 * 512 + 256 * 512) * 2
    assert estimated == pytest.approx(max(at_peak / 0.93, moved / V5P.hbm_bytes_per_cycle), abs=1)


# -- Drafts ------------------------------------------------------------------------------------------------------------------------

BUFFERS = """BufferAssignment:
allocation 0: size 32, thread-local:
allocation 1: size 1000, parameter 72, shape |f32[10,25]| at ShapeIndex {}, maybe-live-out:
 value: <9379 param.127 @0> (size=1000,offset=0): f32[10,25]{1,0:T(8,128)}
allocation 2: size 200, parameter 1, shape |f32[50]| at ShapeIndex {}:
allocation 3: size 8, constant:
allocation 4: size 16, maybe-live-out:
allocation 5: size 480, output shape is |(s32[], f32[10])|, maybe-live-out:
allocation 6: size 5000, preallocated-temp:
allocation 7: size 64, color 1, preallocated-temp:
"""


def draft(rows):
    text = product(rows)[0]
    facts = {
        "device": "TPU v5",
        "devices": 4,
        "mesh": {"data": 4},
        "tokens": rows,
        "flops": 1e9,
        "arguments": {"parameters": 512},
        "hbm_available": 10**6,
        "seconds_to_trace": 1.0,
        "seconds_to_compile": 2.0,
        "cpu_seconds_to_compile": 3.0,
        "libtpu": "0.0.42.1",
    }
    places = tuple((0, (i, 0, 0)) for i in range(4))
    return Draft(facts, ((256, 512),), places, text, **buffer_bytes(BUFFERS))


def test_buffers_are_counted_by_kind():
    assert buffer_bytes(BUFFERS) == {"argument_bytes": 1200, "temporary_bytes": 5032, "output_bytes": 496}


def test_asynchronous_operations_are_named_after_what_they_wrap():
    module = with_wrapped_names(
        parse_module(
            """HloModule m, is_scheduled=true

%async (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  ROOT %slice.1 = f32[4]{0:S(1)} slice(%p), slice={[0:4]}
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%async
  %u = ((f32[8]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) async-update(%s)
  ROOT %d = f32[4]{0:S(1)} async-done(%u)
}
"""
        )
    )
    main = module.computations["main"]
    assert [main[name].op for name in "sud"] == ["slice-start", "slice-update", "slice-done"]
    assert main["s"].attributes == ", slice={[0:4]}"
    assert [i.op for i, _, _ in module.executed()] == ["slice-start"]


def test_the_plan_of_a_draft_has_memory_time_and_the_scaled_share():
    costs = Costs([cost(1024, 5000)])
    plan = estimate(draft(1024), costs, code_bytes=100)
    assert plan.fits
    assert plan.hbm_needed == 1200 + 5032 + 496 + 100
    assert plan.times["compute"] == pytest.approx(5000 / V5P.clock)
    assert plan.scaled == 0
    assert estimate(draft(2048), costs).scaled == 1


# -- Journal and table -------------------------------------------------------------------------------------------------------------


def test_a_sweep_resumes_from_its_journal(config, found, tmp_path, monkeypatch):
    monkeypatch.setattr("plamo2_jax.plan.journal.libtpu_version", lambda: "0.0.42.1")
    request = Request(config, "v5p:4x4x4")
    journal = Journal(tmp_path, request)
    first, second = found[:2]
    journal.add_draft(first.options, draft(1024))
    journal.add_draft(second.options, draft(2048))
    complete = estimate(draft(1024), Costs([cost(1024, 5000)]))
    journal.add_complete(first.options, complete, [cost(1024, 5000)])

    calls = []
    resumed = Sweep(request, Journal(tmp_path, request))
    resumed.compile_drafts([first, second], lambda: calls.append(1))
    assert len(calls) == 2
    points = {point.options: point for point in resumed.points()}
    assert points[first.options].complete
    assert points[first.options].plan == complete
    assert points[second.options].plan.times["compute"] == pytest.approx(10000 / V5P.clock)
    # Nothing is missing, so nothing is compiled.
    resumed.complete_best([first, second], 1 if resumed.points()[0].complete else 0, lambda: calls.append(1))
    assert len(calls) == 2

    lines = list(table(resumed.points()))
    assert any("completely" in line and first.options in line for line in lines)
    assert any("100% scaled" in line and second.options in line for line in lines)


def test_a_journal_of_another_sweep_or_a_damaged_file_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr("plamo2_jax.plan.journal.libtpu_version", lambda: "0.0.42.1")
    request = Request(config, "v5p:4x4x4")
    journal = Journal(tmp_path, request)
    # The sweep chooses remat itself.
    Journal(tmp_path, dataclasses.replace(request, config=dataclasses.replace(config, remat="block")))
    with pytest.raises(PlamoError, match="has a sweep with a different topology: choose another folder"):
        Journal(tmp_path, dataclasses.replace(request, topology="v5p:8x8x8"))
    journal.add_draft("--remat dots", draft(1024))
    (path,) = tmp_path.glob("*.draft.json.gz")
    path.write_bytes(gzip.compress(b'{"__type__": "plamo2_jax'))
    with pytest.raises(PlamoError, match="is damaged"):
        journal.draft("--remat dots")


def test_a_slice_names_its_chip():
    assert chip_of_slice("v6e:16x16") is CHIPS["TPU v6 lite"]
    with pytest.raises(PlamoError, match="no published figures"):
        chip_of_slice("v2:2x2")
    with pytest.raises(PlamoError, match="its name must begin with v5e, v5p, v6e, tpu7x"):
        slice_name("v4:2x2x1")


def test_the_reason_of_a_refusal_is_one_line():
    assert last_line(PlamoError("heads=3 is not allowed: it must be even")) == "heads=3 is not allowed: it must be even"
    log = "the process has ended; its log ends with: call\n    x = f()\njax.errors.SomeError: traced\nSee https://x\n-----\n"
    assert last_line(RuntimeError(log)) == "jax.errors.SomeError: traced"
