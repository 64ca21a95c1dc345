"""Programs that do not solve their task: whatever they do, they do not pass."""

import pytest

from plamo2_jax.sandbox import Limits, passes
from support.programs import read_programs

CHEATS = read_programs("cheats.txt")


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(name):
    program, tests = CHEATS[name]
    assert not passes(program, tests or "assert f(1) == 2\nassert f(2) == 3", Limits(seconds=1.0))


@pytest.mark.parametrize("program", ["\x00", "def f(x): return '\ud800'", "\ud800", "(" * 100000])
def test_a_text_that_is_no_program_does_not_pass(program):
    assert not passes(program, "assert f(1) == 2")
