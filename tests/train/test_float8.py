"""Training with FP8 products: which matrices they are for, and runs that resume to the same bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.sft import Sft
from plamo2_jax.config import preset
from plamo2_jax.convert.hf import to_public
from plamo2_jax.convert.read import read_public_config
from plamo2_jax.model.float8 import Float8Weight, with_float8
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.train.loop import train
from plamo2_jax.train.optimizer import OptimizerConfig
from support.runs import assert_same_params, params_of, record, stop_after


def test_projections_and_mlp_are_multiplied_in_float8_and_nothing_else():
    model = Plamo2(preset("tiny", num_hidden_layers=2, vocab_size=320, tie_word_embeddings=False))
    wrapped = jax.eval_shape(lambda params: with_float8(params, logical_axes(model)), abstract_params(model))
    leaves = jax.tree_util.tree_leaves_with_path(wrapped, is_leaf=lambda leaf: isinstance(leaf, Float8Weight))
    scales = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.scales.shape
        for path, leaf in leaves
        if isinstance(leaf, Float8Weight)
    }
    assert scales == {
        "run_0/layer_0/mixer/in_proj": (1, 2),
        "run_0/layer_0/mixer/out_proj": (1,),
        **{f"run_0/layer_1/mixer/{name}": (1,) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{f"run_0/layer_{layer}/mlp/{name}": (1,) for layer in (0, 1) for name in ("gate", "up", "down")},
    }

    def logits(params):
        return model.apply({"params": params}, jnp.zeros((1, 128), jnp.int32))[0].sum()

    program = str(
        jax.make_jaxpr(jax.grad(lambda params: logits(with_float8(params, logical_axes(model)))))(
            abstract_params(model)
        )
    )
    # The scan's body is printed once. in_proj is two products; each has one more for each gradient.
    assert program.count(":f8_e5m2[") == sum(2 if len(shape) == 2 else 1 for shape in scales.values())


@pytest.mark.peer  # It compiles a program of its own, which takes longer than this file may.
def test_an_fp8_run_with_int8_moments_follows_the_float32_run_and_resumes_to_the_same_bits(
    uninterrupted, make_config, tmp_path
):
    moments = OptimizerConfig(mu_dtype="int8", nu_dtype="int8")
    fields = {"linear_type": "fp8", "optimizer": moments, "heldout": {}, "remat": "dots", "accumulation": 2}
    whole, stopped = make_config("float8", **fields), make_config("float8-stopped", **fields)
    assert train(whole).step == 12
    assert train(stopped, on_step=stop_after(7)).step == 7
    assert train(stopped).step == 12
    assert record(stopped) == record(whole)
    assert_same_params(params_of(stopped), params_of(whole))
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(whole))} == {jnp.dtype(jnp.float32)}
    rounded, single = ([line["loss"] for line in record(run) if "loss" in line] for run in (whole, uninterrupted[0]))
    assert rounded != single
    np.testing.assert_allclose(rounded, single, rtol=1e-2)
    to_public(whole.folder, tmp_path / "public")
    assert json.loads((tmp_path / "public" / "config.json").read_text())["linear_type"] == "fp8"
    assert read_public_config(tmp_path / "public") == whole.model


def test_products_that_do_not_exist_and_adapters_are_refused(make_config, tmp_path):
    with pytest.raises(
        ValueError, match=r"RunConfig\.linear_type='int4' is not allowed: it must be one of normal, fp8"
    ):
        make_config("bad", linear_type="int4")
    with pytest.raises(ValueError, match=r"linear_type='fp8' is not allowed with lora: it must be normal"):
        make_config("lora", linear_type="fp8", init_from=tmp_path, task=Sft(lora=LoraConfig()))
