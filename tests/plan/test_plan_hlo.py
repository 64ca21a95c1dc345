"""Read compiled programs as XLA prints them: trip counts, executed instructions and the bytes that they move."""

from pathlib import Path

import pytest

from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.plan.hbm_traffic import instruction_bytes
from plamo2_jax.plan.hlo import hbm_bytes, parse_module, tuple_elements
from plamo2_jax.plan.schedule.cost import program_cost
from plamo2_jax.plan.schedule.dump import Schedules

# Cut down from what the compiler prints for a matrix product, a change of layout, and a loop that walks over an array [32,8,128] and writes
# to another.
TEXT = (Path(__file__).parent / "program.txt").read_text()
MATRIX = 8 * 128 * 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("bf16[1,8192,1,64]{3,2,1,0:T(1,128)(2,1)}", 8192 * 128 * 2),
        ("bf16[1,8192,1,64]{1,3,2,0:T(8,128)(2,1)}", 8192 * 64 * 2),
        ("f32[3,5]{1,0:T(8,128)}", 4096),
        ("f32[64]{0:T(128)}", 512),
        ("s32[]{:T(128)}", 4),
        ("pred[32,256]{1,0:T(8,128)(4,1)}", 32 * 256),
        ("f8e4m3fn[128,128]{1,0}", 128 * 128),
        ("(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)})", 4096),
    ],
)
def test_bytes_of_a_shape_are_those_of_its_tiles_in_hbm(shape, size):
    assert hbm_bytes(shape) == size


def test_what_runs_and_how_often():
    module = parse_module(TEXT)
    assert {i.name: times for i, _, times in module.executed()} == {
        "copy-start": 1,
        "dot": 1,
        "turned": 1,
        "walk": 32,
        "next": 32,
    }


def test_a_stated_trip_count_goes_before_the_condition():
    stated = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {times for i, _, times in parse_module(stated).executed() if i.name == "walk"} == {7}


def test_a_bound_that_is_carried_into_the_loop_is_found():
    carried = TEXT.replace(
        "%rounds = s32[]{:T(128)} constant(32)", "%rounds = s32[]{:T(128)} get-tuple-element(%state.1), index=3"
    )
    carried = carried.replace("tuple(%zero.1, %b, %b, %zero.1)", "tuple(%zero.1, %b, %b, %nine)")
    carried = carried.replace("  %init =", "  %nine = s32[]{:T(128)} constant(9)\n  %init =")
    assert {times for i, _, times in parse_module(carried).executed() if i.name == "walk"} == {9}


def test_a_trip_count_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="trip count of the loop loop"):
        list(parse_module(TEXT.replace("direction=LT", "direction=NE")).executed())


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse_module("HloModule jit_f\n")


def test_bytes_that_an_operation_moves():
    module = parse_module(TEXT)
    moved = {i.name: instruction_bytes(module, c, i) for i, c, _ in module.executed()}
    assert moved["copy-start"] == 128 * 128 * 4  # Read only: it writes to VMEM.
    assert moved["dot"] == 2 * 256 * MATRIX  # The weights are in VMEM.
    assert moved["turned"] == 256 * MATRIX + 256 * 16 * MATRIX  # Eight columns take the room of 128.
    assert moved["walk"] == pytest.approx(2 * MATRIX, abs=8)  # One matrix read, one written in place, and the counter.


def test_a_scatter_in_place_and_a_gather_move_only_the_rows_they_touch():
    """A fusion that writes 16 rows into an array, and one that reads 16 rows of it."""
    text = """HloModule f, is_scheduled=true

%write (a: bf16[4096,128], b: s32[16], c: bf16[16,128]) -> bf16[4096,128] {
  %a = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[16]{0:T(128)} parameter(1)
  %c = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %scatter = bf16[4096,128]{1,0:T(8,128)(2,1)} scatter(%a, %b, %c), update_window_dims={1}
}

%read (d: bf16[4096,128], e: s32[16]) -> bf16[16,128] {
  %d = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(0)
  %e = s32[16]{0:T(128)} parameter(1)
  ROOT %gather = bf16[16,128]{1,0:T(8,128)(2,1)} gather(%d, %e), offset_dims={1}
}

ENTRY %main (x: bf16[4096,128], i: s32[16], n: bf16[16,128]) -> bf16[16,128] {
  %x = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[16]{0:T(128)} parameter(1)
  %n = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(2)
  %written = bf16[4096,128]{1,0:T(8,128)(2,1)} fusion(%x, %i, %n), kind=kCustom, calls=%write
  ROOT %rows = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%written, %i), kind=kCustom, calls=%read
}
"""
    module = parse_module(text)
    moved = {i.name: instruction_bytes(module, c, i) for i, c, _ in module.executed()}
    rows, indices = 16 * 128 * 2, 128 * 4
    assert moved == {"written": 2 * rows + indices, "rows": 2 * rows + indices}


def test_a_fusion_within_a_fusion_reads_only_its_slice():
    """The product of a layer's saved activations, as the backward pass of scanned layers reads them."""
    text = """HloModule f, is_scheduled=true

%slice (s: bf16[8,64,128], n: s32[]) -> bf16[64,128] {
  %s = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%s, %n, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %row = bf16[64,128]{1,0:T(8,128)(2,1)} bitcast(%one)
}

%multiply (x: bf16[8,64,128], i: s32[], w: bf16[128,256]) -> bf16[64,256] {
  %x = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %w = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(2)
  %layer = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%x, %i), kind=kLoop, calls=%slice
  ROOT %y = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%layer, %w), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[8,64,128], j: s32[], b: bf16[128,256]) -> bf16[64,256] {
  %a = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %j = s32[]{:T(128)} parameter(1)
  %b = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %product = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%a, %j, %b), kind=kOutput, calls=%multiply
}
"""
    module = parse_module(text)
    ((instruction, computation, _),) = module.executed()
    index = 512
    moved = instruction_bytes(module, computation, instruction)
    assert moved - 2 * (64 * 128 + 128 * 256 + 64 * 256) in range(index + 1)


TEXT_NEWER = (Path(__file__).parent / "libtpu_0.0.50" / "program.txt").read_text()
NEWER = parse_module(TEXT_NEWER)
"""Cut down from what libtpu 0.0.50 prints for XLA's scan on TPU7x: a gather and a change of layout on the SparseCore, whose start names no
operands; a loop that updates an array in place under another tiling; an asynchronous slice.
"""


def test_what_the_sparsecore_does_is_counted_once_without_cycles(tmp_path):
    cost = program_cost(NEWER, Schedules(tmp_path), [], CHIPS["TPU7x"], temp_bytes=0)
    sparse = {o.name: o for o in cost.operations if o.kind == "sparsecore"}
    # The fusion of the gather, and a copy.
    assert sparse.keys() == {"gather_offload_custom_fusion.3", "copy.85"}
    assert all(o.cycles == 0 and o.estimated_cycles is None and o.bundles is None for o in sparse.values())
    assert sparse["gather_offload_custom_fusion.3"].hbm_bytes == 3 * 8192 * 4  # Values, indices, results.
    assert sparse["copy.85"].hbm_bytes == 2 * 8192 * 64 * 128 * 2
    # Only the loop has an estimate.
    assert cost.cycles == 32 * 850
    assert cost.by_kind()["sparsecore"] == 0


def test_bytes_of_an_array_updated_in_place_under_another_tiling_are_those_of_the_part():
    moved = {i.name: instruction_bytes(NEWER, c, i) for i, c, _ in NEWER.executed()}
    assert moved["bitcast_dynamic-update-slice_fusion.2"] == 64 * 64 * 128 * 2
    whole = TEXT_NEWER.replace("output_to_operand_aliasing={{}: (0, {})}, ", "")
    module = parse_module(whole)
    moved = {i.name: instruction_bytes(module, c, i) for i, c, _ in module.executed()}
    assert moved["bitcast_dynamic-update-slice_fusion.2"] > 32 * 64 * 64 * 128 * 2  # A copy that is none in place.


def test_an_asynchronous_slice_reads_what_it_writes():
    moved = {i.name: instruction_bytes(NEWER, c, i) for i, c, _ in NEWER.executed()}
    assert moved["slice-start"] == 4194304  # Half of the array, to VMEM.
    assert moved["copy-start"] == 64 * 64 * 128 * 4


def test_attributes_over_several_lines_belong_to_their_instruction():
    """jax 0.12 prints the attributes of a splash kernel over several lines."""
    several = (
        '  %kernel.3 = f32[8,128]{1,0:T(8,128)} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes='
        '{kernel_metadata={\n"xprof_metadata":"{}"\n}}, metadata={op_name="jit(step)/rematted_computation/splash"}, '
        'backend_config={"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"2048"}]}\n'
    )
    module = parse_module(TEXT.replace("  %copy-start = ", f"{several}  %copy-start = "))
    kernel = module.computations["main"]["kernel.3"]
    assert kernel.is_kernel
    assert kernel.op_name == "jit(step)/rematted_computation/splash"
    assert kernel.vmem_bytes == 2048
    # The instructions after it still belong to the computation.
    assert {"copy-start", "result"} <= module.computations["main"].keys()


@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        ("(f32[8]{0:T(128)S(1)}, f32[8]{0}, u32[]{:S(2)})", ["f32[8]{0:T(128)S(1)}", "f32[8]{0}", "u32[]{:S(2)}"]),
        ("((s8[4,8]{1,0:T(8,128)(4,1)}, s8[2]), s32[])", ["(s8[4,8]{1,0:T(8,128)(4,1)}, s8[2])", "s32[]"]),
        ("((), (), (s32[1]{0:T(128)S(2)}))", ["()", "()", "(s32[1]{0:T(128)S(2)})"]),
    ],
)
def test_elements_of_a_tuple(shape, elements):
    assert tuple_elements(shape) == elements


def test_cost_of_a_program_adds_up(tmp_path):
    cost = program_cost(parse_module(TEXT), Schedules(tmp_path), [], CHIPS["TPU v5 lite"], temp_bytes=12)
    assert cost.cycles == 5000 + 700 + 32 * 100
    assert cost.by_kind() == {"convolution": 5000, "fusion": 3200, "copy": 700, "copy-start": 0, "add": 0}
    assert cost.bundles == 0
    assert cost.vmem_bytes == 65536
    assert cost.temp_bytes == 12
    assert cost.bound == cost.hbm_cycles == cost.hbm_bytes / cost.chip.hbm_bytes_per_cycle
    assert {o.name: o.op_name for o in cost.operations}["dot"] == "jit(f)/dot_general"
