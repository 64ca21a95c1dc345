"""Waiting for collectives in compiled programs: synchronous, as a start and a done, on the SparseCore, and fused into products."""

import dataclasses
from pathlib import Path

import pytest

from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.plan.collectives import Place, Slice, collectives
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.overlap import waiting_seconds

FOLDER = Path(__file__).parent
SLICE = Slice(CHIPS["TPU v5"], tuple(Place(0, (i, 0, 0)) for i in range(4)))
PRODUCTS = ("fusion.2", "product.2", "product.3")


@pytest.fixture(scope="module")
def program():
    """A transfer in each of three notations of libtpu 0.0.42, with a product between its start and its end, and a synchronous one."""
    module = parse_module((FOLDER / "overlap_program.txt").read_text())
    return module, {c.name: c for c in collectives(module, SLICE)}


def waits(program, seconds):
    module, found = program
    return waiting_seconds(module, dict.fromkeys(PRODUCTS, seconds), list(found.values()))


def test_each_notation_is_one_transfer(program):
    assert {name: c.asynchronous for name, c in program[1].items()} == {
        "all-gather.1": True,
        "all-gather.4": True,
        "permute-start": True,
        "all-gather.5": False,
    }


def test_without_computation_the_core_waits_for_every_transfer(program):
    assert waits(program, 0.0) == pytest.approx(sum(c.seconds for c in program[1].values()))


def test_behind_long_products_only_the_synchronous_transfer_is_waited_for(program):
    assert waits(program, 1.0) == pytest.approx(program[1]["all-gather.5"].seconds)


def test_a_product_hides_as_much_as_it_lasts(program):
    found = program[1]
    seconds = 0.5 * found["all-gather.1"].seconds
    rest = 2 * seconds + max(found["permute-start"].seconds - seconds, 0) + found["all-gather.5"].seconds
    assert waits(program, seconds) == pytest.approx(rest)


def test_transfers_run_one_after_another(program):
    """Two transfers that start together take the sum of their times. A product hides as much of it as it lasts."""
    module, found = program
    entry = module.computations[module.entry]
    entry = {name: entry[name] for name in ("w", "x", "fusion.1", "call-start", "product.2", "fusion.3", "call-done")}
    both = dataclasses.replace(module, computations={**module.computations, module.entry: entry})
    gather = found["all-gather.1"].seconds
    waited = waiting_seconds(both, {"product.2": gather}, [found["all-gather.1"], found["all-gather.4"]])
    assert waited == pytest.approx(gather)


def test_a_loop_waits_once_an_iteration():
    module = parse_module((FOLDER / "step_program.txt").read_text())
    moved = collectives(module, SLICE)
    assert waiting_seconds(module, {}, moved) == pytest.approx(sum(c.times * c.seconds for c in moved))
    # The only work in the loop follows the gather, so that nothing is hidden behind it.
    assert waiting_seconds(module, {"fusion.3": 1.0}, moved) == pytest.approx(sum(c.times * c.seconds for c in moved))
