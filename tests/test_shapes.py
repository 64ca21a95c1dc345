"""The shapes and dtypes in annotations are checked while the tests run, and cost nothing outside them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from plamo2_jax.engine.sampling import keep_top_k
from plamo2_jax.model.layers import apply_rope
from plamo2_kernels.segments import segment_ordinals


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (apply_rope, (jnp.zeros((2, 5, 3, 8)), jnp.zeros((2, 4), jnp.int32), 1e4), "positions"),
        (keep_top_k, (jnp.zeros((2, 9)), jnp.zeros(3, jnp.int32)), "k"),
        (segment_ordinals, (jnp.ones((2, 5)),), "segment_ids"),
    ],
    ids=["another length", "another batch size", "float segment ids"],
)
def test_a_wrong_shape_or_dtype_is_caught(function, arguments, name):
    """In each of the checked packages, also while jax traces the function."""
    with pytest.raises(
        TypeCheckError, match=rf"checking the parameters of .*{function.__name__}(.|\n)*parameter '{name}'"
    ):
        function(*arguments)
    with pytest.raises(TypeCheckError):
        jax.eval_shape(lambda: function(*arguments))


def test_a_test_can_turn_the_checks_off(unchecked_shapes):
    with pytest.raises(TypeError, match=r"broadcast|incompatible shapes"):
        apply_rope(jnp.zeros((2, 5, 3, 8)), jnp.zeros((2, 4), jnp.int32), 1e4)


def test_outside_tests_nothing_is_checked():
    program = "import sys, plamo2_jax.engine.sampling; sys.exit('beartype' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
