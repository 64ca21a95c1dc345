"""Right programs: whatever they import, return and print, they pass; and what their tests may do."""

import json

import pytest

from plamo2_jax.sandbox import Limits, passes
from plamo2_jax.sandbox.values import decode, encode
from support.programs import read_programs

RIGHT = read_programs("right.txt")
# Tests run on busy machines.
PATIENT = Limits(seconds=60.0)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(name):
    assert passes(*RIGHT[name], PATIENT)


def test_a_function_with_the_name_of_a_builtin_is_the_programs_where_it_is_named():
    right, stub, tests = "def sum(x): return 42", "def sum(x): pass", "assert sum([1]) == 42"
    assert passes(right, tests, PATIENT, names=["sum"])
    assert not passes(stub, tests, names=["sum"])


@pytest.mark.parametrize(
    "content", ["{}", '{"a": 1, "b": 2}', '{"remote": 1}', '{"range": ["a"]}', '{"set": [[]]}', '{"Decimal": "x"}']
)
def test_what_is_no_value_is_refused(content):
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(json.loads(content), lambda name, inner: 1 / 0)


def test_values_of_a_subclass_are_those_of_the_plain_type():
    class Odd(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    found = decode(encode([Odd(3), {Odd(4): (Odd(5),)}], None), None)
    assert found == [3, {4: (5,)}]
    assert type(found[0]) is type(next(iter(found[1]))) is int
