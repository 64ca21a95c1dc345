"""`load_model`: either kind of folder, told apart by content."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.hf import from_public
from plamo2_jax.convert.load import load_model
from support.checkpoints import CONFIG


def test_parameters_are_float32_unless_asked(public, tmp_path):
    from_public(public, tmp_path / "run", dtype="bfloat16")
    for folder in (public, tmp_path / "run"):
        loaded = load_model(folder)
        assert loaded.config == CONFIG
        assert loaded.tokenizer is None
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
        assert load_model(folder, dtype=jnp.bfloat16).params["embedding"].dtype == jnp.bfloat16


def test_steps_belong_to_run_folders(public, tmp_path):
    from_public(public, tmp_path / "run")
    load_model(tmp_path / "run", step=0)
    with pytest.raises(ValueError, match="no finished checkpoint of step 3: it has 0"):
        load_model(tmp_path / "run", step=3)
    with pytest.raises(ConvertError, match="has no steps"):
        load_model(public, step=0)


def test_a_folder_of_neither_kind(tmp_path):
    with pytest.raises(ConvertError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConvertError, match=r"has no file config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "demo"}))
    with pytest.raises(ConvertError, match='does not describe a model: it must have the key "model"'):
        load_model(tmp_path)
