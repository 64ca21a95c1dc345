"""Plan a step from recorded text and compare collectives, memory and roofline with figures counted by hand."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.plan.collectives import Place, Slice, collectives, is_collective, replica_group, wire_bytes
from plamo2_jax.plan.compiler import device_count
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.memory import Overflow, memory_of, parse_overflow
from plamo2_jax.plan.roofline import Operation, StepTimes, part, phase, step_times, utilization

V5P = CHIPS["TPU v5"]


def torus(chip, *shape, slices=1):
    coords = itertools.product(range(slices), *map(range, shape))
    return Slice(chip, tuple(Place(index, place) for index, *place in coords))


def program():
    return parse_module((Path(__file__).parent / "step_program.txt").read_text())


def by_name(found):
    return {c.name: c for c in found}


def test_a_collective_in_pieces_counts_once_a_round_and_a_sliced_sum_is_a_scatter():
    found = by_name(collectives(program(), torus(V5P, 4, 1, 1)))
    assert {name: (c.kind, c.times, c.asynchronous) for name, c in found.items()} == {
        "all-gather.1": ("all-gather", 6, True),
        "permute-start": ("collective-permute", 6, True),
        "all-reduce.5": ("all-reduce", 1, False),
        "all-reduce.3": ("reduce-scatter", 1, False),
    }
    part_bytes, whole = 64 * 128 * 2, 256 * 128 * 4
    # Each of four chips sends three shards in an all-gather; a reduce-scatter sends three quarters, an all-reduce twice that.
    assert found["all-gather.1"].wire_bytes == 3 * part_bytes
    assert found["all-reduce.3"].wire_bytes == whole * 3 / 4
    assert found["all-reduce.5"].wire_bytes == whole * 3 / 2
    assert found["permute-start"].wire_bytes == part_bytes
    # A ring of four on v5p: two of six links, 100 GB/s each.
    assert found["all-gather.1"].seconds == pytest.approx(3 * part_bytes / 200e9)
    assert found["permute-start"].seconds == pytest.approx(part_bytes / 100e9)


def test_what_only_communicates_is_left_out_of_the_operations():
    module = program()
    left = {i.name for i, _, _ in module.executed() if not is_collective(module, i)}
    assert {"fusion.3"} <= left
    assert not left & {"fusion.1", "fusion.2", "fusion.9", "all-reduce.5", "permute-start"}


@pytest.mark.parametrize(
    ("kind", "n", "factor"),
    [
        ("all-gather", 8, 7),
        ("reduce-scatter", 8, 7 / 8),
        ("all-reduce", 8, 7 / 4),
        ("all-to-all", 4, 1),
        ("all-to-all", 16, 4),
        ("all-gather", 1, 0),
        ("collective-permute", 2, 1),
    ],
)
def test_bytes_on_the_wire(kind, n, factor):
    assert wire_bytes(kind, 1000.0, n) == pytest.approx(1000 * factor)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", list(range(8))),
        ("replica_groups=mesh['b'=8] {'b':(2)4}", [0, 1, 2, 3]),
        ("replica_groups=mesh['b'=8] {'b':(1)2}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, dimensions={1}", [0, 1]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=2], device_ids=(1,0) {'a'}", [1, 0]),
        ("replica_groups={{}}", list(range(8))),
        ("channel_id=3", list(range(8))),
    ],
)
def test_groups_in_every_spelling(text, group):
    assert replica_group(text, 8) == group


def test_links_by_the_axes_that_a_group_fills():
    v5p, v5e, v6e = torus(V5P, 4, 4, 4), torus(CHIPS["TPU v5 lite"], 4, 4), torus(CHIPS["TPU v6 lite"], 16, 16)
    assert v5p.links(range(64)) == 6
    assert v5p.links(range(16)) == 4  # two axes, both rings
    assert v5p.links(range(4)) == 2
    assert v5p.links([0, 1]) == 1  # half of a ring is a line
    assert v5e.links(range(16)) == 2  # axes of 4 are open on v5e
    assert v6e.links(range(256)) == 4


def test_between_slices_the_data_centre_decides():
    found = by_name(collectives(program(), torus(V5P, 2, 1, 1, slices=2)))
    gather = found["all-gather.1"]
    assert gather.links == 0
    assert gather.seconds == pytest.approx(64 * 128 * 2 / V5P.dcn_bytes_per_second)


@pytest.mark.parametrize(
    ("message", "overflow"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (48.00G) exceeds available HBM "
            "(15.75G).",
            Overflow(48 * 2**30, round(15.75 * 2**30)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.0M of 256M hbm. Exceeded hbm capacity by 256.0M.",
            Overflow(512 * 2**20, 256 * 2**20),
        ),
        ("INTERNAL: Mosaic failed", None),
    ],
)
def test_refusals_say_how_much_is_over(message, overflow):
    assert parse_overflow(message) == overflow


@dataclasses.dataclass
class Statistics:
    argument_size_in_bytes: int = 1000
    temp_size_in_bytes: int = 2 * 10**6
    output_size_in_bytes: int = 900
    alias_size_in_bytes: int = 800
    generated_code_size_in_bytes: int = 50


# The compiler's statistics count the gaps between temporaries twice.
BUFFERS = {"argument_bytes": 1000, "temporary_bytes": 10**6, "output_bytes": 100}


def test_memory_tells_kept_activations_from_gradients():
    memory = memory_of(program(), Statistics(), BUFFERS, {"parameters": 600}, [], 2**30)
    assert memory.kept == 6 * 256 * 128 * 2
    assert memory.gradients == 0
    assert memory.used == 1000 + 10**6 + 100 + 50
    assert memory.other_temporaries == 10**6 - memory.kept
    assert memory_of(program(), Statistics(), None, {}, [], 2**30).temporary_bytes == 2 * 10**6
    # An array of a parameter's shape that a loop fills is a gradient.
    same = memory_of(program(), Statistics(), BUFFERS, {}, [(6, 256, 128)], 2**30)
    assert (same.kept, same.gradients) == (0, 6 * 256 * 128 * 2)


def operation(**changes):
    made = Operation(
        "fusion.1", "convolution", "jit(step)/jvp(Plamo2.features)/run_0/layer_0/mlp/dot_general", 2, 1000, None, 0.0, 0
    )
    return dataclasses.replace(made, **changes)


def test_times_add_up():
    moved = collectives(program(), torus(V5P, 4, 1, 1))
    slow = operation(name="product.1", estimated_cycles=round(V5P.clock))  # a second, twice
    heavy = operation(name="copy.1", estimated_cycles=0, hbm_bytes=round(V5P.hbm_bytes_per_second), times=1)
    found = step_times(program(), [slow, heavy], moved, V5P)
    ici = sum(c.times * c.seconds for c in moved)
    assert found.compute == pytest.approx(2, rel=1e-6)
    assert found.hbm == pytest.approx(1, rel=1e-6)
    assert found.ici == pytest.approx(ici)
    assert found.dcn == 0
    # Nothing runs between the starts and ends of the collectives of this program.
    assert found.waiting == pytest.approx(ici)
    assert found.scheduled == pytest.approx(3 + ici, rel=1e-6)
    assert found.limit == "compute"
    assert StepTimes(1.0, 2.0, 3.0, 0.0, 0.0, 6.0).limit == "ici"


def test_a_kernel_takes_no_less_than_its_products():
    kernel = operation(kind="kernel", estimated_cycles=None, bundles=100, mxu_cycles=V5P.clock, times=1)
    assert step_times(program(), [kernel], [], V5P).compute == pytest.approx(1)


def test_utilization_is_of_all_devices():
    assert utilization(64 * V5P.peak_flops, 2.0, 64, V5P) == 0.5


@pytest.mark.parametrize(
    ("op_name", "name", "of"),
    [
        (
            "jit(step)/while/body/jvp(Plamo2.features)/while/body/run_0/layer_0/mlp/btd,df->btf/dot_general",
            "MLP products",
            "forward",
        ),
        (
            "jit(step)/transpose(jvp(Plamo2.features))/checkpoint/run_0/layer_1/mixer/btd,dhp->bthp/dot_general",
            "mixer products",
            "backward",
        ),
        (
            "jit(step)/transpose(jvp(P))/checkpoint/rematted_computation/run_0/layer_0/pre_mlp_norm/mul",
            "norms",
            "recomputed",
        ),
        ("jit(step)/transpose(jvp())/while/body/Plamo2.logits/btd,vd->btv/dot_general", "logits and loss", "backward"),
        ("jit(step)/mul", "optimizer and sums of gradients", "update"),
    ],
)
def test_operations_are_told_by_their_names(op_name, name, of):
    assert part(operation(op_name=op_name)) == name
    assert phase(operation(op_name=op_name)) == of


def test_kernels_of_gradients_are_told_by_their_own_names():
    kernel = operation(name="splash_mha_dkv_segmented_no_residuals.1", op_name="", kind="kernel")
    assert (part(kernel), phase(kernel)) == ("attention kernels (splash)", "backward")


def test_chips_of_a_slice():
    assert [device_count(name) for name in ("v5p:4x4x4", "v6e:16x16", "tpu7x:2x2x1")] == [64, 256, 8]
    with pytest.raises(ValueError, match="'v5p' is not a TPU slice"):
        device_count("v5p")
