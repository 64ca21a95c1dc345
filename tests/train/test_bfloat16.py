"""Training with bfloat16 activations, from the configuration to the resumed run."""

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.train.loop import train
from support.runs import assert_same_params, params_of, record, stop_after


def test_a_bfloat16_run_follows_the_float32_run_and_resumes_to_the_same_bits(uninterrupted, make_config):
    fields = {"dtype": "bfloat16", "heldout": {}}
    whole, stopped = make_config("bfloat16", **fields), make_config("bfloat16-stopped", **fields)
    assert train(whole).step == 12
    assert train(stopped, on_step=stop_after(7)).step == 7
    assert train(stopped).step == 12
    assert record(stopped) == record(whole)
    assert_same_params(params_of(stopped), params_of(whole))
    # The activations are bfloat16, the parameters stay float32.
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(whole))} == {jnp.dtype(jnp.float32)}
    half, single = ([line["loss"] for line in record(run) if "loss" in line] for run in (whole, uninterrupted[0]))
    assert half != single
    np.testing.assert_allclose(half, single, rtol=5e-3)
