"""Read and run the schedules that two versions of libtpu wrote for a small kernel.

The kernel, compiled for v5e, v5p and TPU7x (record_schedules.py): blocks [64,128] f32, grid (2, 3) with the first axis parallel. Every
step runs 5 iterations of a `fori_loop` on its input block and adds the result to its output block. A `pl.when` clears the output at the
first of the 3 steps, another takes its exponential at the last. On v5p each of the two cores runs half of the grid.
"""

import dataclasses
from pathlib import Path

import pytest

from plamo2_jax.plan.compiler import VERIFIED
from plamo2_jax.plan.schedule.bundles import parse_schedule
from plamo2_jax.plan.schedule.dump import Schedules, parse_utilization
from plamo2_jax.plan.schedule.scalar_core import run_schedule

FOLDER = Path(__file__).parent
BLOCK = 64 * 128 * 4
VERSIONS = ("0.0.42", "0.0.50")


def program(chip, libtpu="0.0.42"):
    return parse_schedule((FOLDER / f"libtpu_{libtpu}" / f"schedule_{chip}.txt").read_text())


def test_there_is_a_recording_of_every_version_that_counts_as_tested():
    assert VERSIONS == VERIFIED


@pytest.mark.parametrize("libtpu", VERSIONS)
@pytest.mark.parametrize(("chip", "slots"), [("v5e", 4), ("v5p", 4), ("tpu7x", 6)])
def test_delay_slots_are_read_off_the_text(chip, slots, libtpu):
    assert program(chip, libtpu).delay_slots == slots


@pytest.mark.parametrize("libtpu", VERSIONS)
@pytest.mark.parametrize(("chip", "steps"), [("v5e", 6), ("v5p", 3), ("tpu7x", 6)])
def test_steps_and_rounds_are_counted_whatever_the_text(chip, steps, libtpu):
    """Some bundles run once; some in the first or last of three steps; some in every step; some also while the pipeline fills and empties;
    and some in five iterations of every step.
    """
    run = run_schedule(program(chip, libtpu))
    assert run.assumed == 0
    assert {1, steps // 3, steps + 2, 5 * steps} <= set(run.counts)
    assert max(run.counts) == 5 * steps
    assert len(run.rounds) == steps


def test_every_bundle_is_counted_as_often_as_it_runs():
    """The expected counts were made by hand from the text: starts and ends of loops and branches, with the delay slots."""
    run = run_schedule(program("v5e"))
    assert run.assumed == 0
    # Six grid steps, and two iterations in which the pipeline fills and empties.
    assert [run.counts[i] for i in (0x0, 0x8, 0x9, 0x24, 0x28, 0x6F, 0x7A, 0x7E, 0x7F, 0x82)] == [
        1,
        1,
        8,
        8,
        8,
        8,
        8,
        8,
        1,
        1,
    ]
    # The body of a step, which the iterations that fill and empty the pipeline skip.
    assert {run.counts[i] for i in range(0x29, 0x31)} == {6}
    # Only the first step of three clears; after the last delay slot.
    assert {run.counts[i] for i in range(0x31, 0x3A)} == {2}
    # The fori_loop: 6 steps × 5 iterations, its four delay slots included.
    assert {run.counts[i] for i in range(0x41, 0x49)} == {30}
    assert {run.counts[i] for i in range(0x49, 0x51)} == {6}
    # Only the last step of three takes the exponential.
    assert {run.counts[i] for i in range(0x51, 0x63)} == {2}
    assert run.cycles == sum(run.counts) == 901


def test_steps_of_the_steady_state_are_told_from_the_first_and_last():
    run = run_schedule(program("v5e"))
    first, middle, last = run.rounds[:3]
    assert first == middle + 9  # What clearing takes behind the branch's slots.
    assert last > middle
    assert middle <= run.step <= last


@pytest.mark.parametrize("libtpu", VERSIONS)
@pytest.mark.parametrize(("chip", "cores"), [("v5e", 1), ("v5p", 2)])
def test_transfers_are_those_of_the_blocks(chip, cores, libtpu):
    runs = [run_schedule(program(chip, libtpu), core) for core in range(cores)]
    assert sum(run.hbm_bytes for run in runs) == (6 + 2) * BLOCK


@pytest.mark.parametrize("libtpu", VERSIONS)
def test_operands_that_stay_in_vmem_are_not_transferred(libtpu):
    """On TPU7x the compiler placed the input in VMEM before the call."""
    assert run_schedule(program("tpu7x", libtpu)).hbm_bytes == 2 * BLOCK


@pytest.mark.parametrize("libtpu", VERSIONS)
def test_cores_share_a_parallel_axis(libtpu):
    halves = [run_schedule(program("v5p", libtpu), core) for core in (0, 1)]
    assert halves[0].cycles == halves[1].cycles
    # Three steps per core. The iteration that fills the pipeline is not among the rounds.
    assert len(halves[0].rounds) == 3


def test_a_loop_that_depends_on_data_is_refused_and_a_branch_counted():
    whole = program("v5e")

    def blind(index):
        """Return the program with a branch that depends on a value from memory."""
        hidden = tuple(
            dataclasses.replace(i, predicate=dataclasses.replace(i.predicate, name="p0_p0")) if i.op == "sbr" else i
            for i in whole.scalar[index]
        )
        return dataclasses.replace(whole, scalar={**whole.scalar, index: hidden})

    run = run_schedule(blind(0x4C))
    assert run.assumed == 1
    assert {run.counts[i] for i in range(0x51, 0x63)} == {6}
    skipping = run_schedule(blind(0x4C), skip=True)
    assert {skipping.counts[i] for i in range(0x51, 0x63)} == {0}
    assert skipping.counts[:0x51] == run.counts[:0x51]
    with pytest.raises(ValueError, match="trip count of a loop depends on data"):
        run_schedule(blind(0x44))


def test_a_text_without_bundles_is_refused():
    with pytest.raises(ValueError, match="no bundles"):
        parse_schedule("= control target key start\n")


def test_utilization_weighs_bundles_by_their_counts():
    text = "== CAPACTIY:\nMXU, VALU\n    4     2\n== UTILIZATION:\n4 0\n0 1\n"
    run = dataclasses.replace(run_schedule(program("v5e")), counts=(1, 3))
    assert parse_utilization(text, run) == {"MXU": 4 / 16, "VALU": 3 / 8}


@pytest.mark.parametrize("note", ["core id", "megacore core id", "megacore core id :: core id", "phi copy :: core id"])
def test_the_number_of_the_core_is_known_by_its_comment(note):
    text = (FOLDER / "libtpu_0.0.50" / "schedule_v5p.txt").read_text()
    noted = text.replace("/* megacore core id :: core id */", f"/* {note} */")
    runs = [run_schedule(parse_schedule(noted), core) for core in (0, 1)]
    assert [run.hbm_bytes for run in runs] == [4 * BLOCK, 4 * BLOCK]


@pytest.mark.parametrize("libtpu", VERSIONS)
def test_recorded_utilization_covers_the_schedule(libtpu):
    run = run_schedule(program("v5e", libtpu))
    shares = parse_utilization((FOLDER / f"libtpu_{libtpu}" / "utilization_v5e.txt").read_text(), run)
    assert shares["MXU"] == 0
    assert 0 < shares["VALU"] < 1


def test_a_dump_folder_is_read_by_name_and_shares_what_was_compiled_once(tmp_path):
    text = (FOLDER / "libtpu_0.0.42" / "schedule_v5e.txt").read_text()
    (tmp_path / "1795-tiny.1-02-final_bundles.txt").write_text(text)
    (tmp_path / "1795-tiny.1-01-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:\n")
    table = "key:tiny.1\nordinal:1\nequivalent_hlos[size=2]:\n  tiny.1\n  tiny.2\n"
    (tmp_path / "1795-TLP-00-deduplication-map.txt").write_text(table)
    schedules = Schedules(tmp_path)
    assert [run.cycles for run in schedules.runs("tiny.1", 1)] == [901]
    assert [run.cycles for run in schedules.runs("tiny.2", 1)] == [901]
    assert schedules.runs("tiny.3", 1) == []
    assert schedules.utilization("tiny.1", schedules.runs("tiny.1", 1)[0]) == {}
