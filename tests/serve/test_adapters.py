"""Models on disk: a base, and LoRA adapters that are served beside it on the same arrays."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import openai
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.peft import merged_model, write_peft
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import cast_matrices
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.opening import open_models
from support.http_server import running
from support.tiny_generator import CONFIG as TINY

CONFIG = ServeConfig(port=0, slots=2, max_length=128, prefill_size=16)
# Two layers instead of four: each of the engines compiles all its programs.
SHAPE = dataclasses.replace(TINY, num_hidden_layers=2)
PROMPT = "吾輩は猫である。\n ab the"


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A run folder and two adapters to it, of one rank and two scales: they share what is compiled."""
    root = tmp_path_factory.mktemp("served")
    params = jax.jit(functools.partial(init_params, Plamo2(SHAPE)))(jax.random.key(0))
    checkpoint.save_model(root / "base", SHAPE, params, tokenizer)
    for alpha in (4, 8):
        lora = LoraConfig(rank=2, alpha=alpha, targets=("/mixer/", "/mlp/"))
        adapters = Adapters(SHAPE, lora)
        rng = np.random.default_rng(alpha)
        tree = jax.tree.map(
            lambda leaf, rng=rng: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) / math.sqrt(leaf.shape[-1]),
            adapters.abstract,
        )
        write_peft(root / f"alpha{alpha}", SHAPE, lora, tree, "base")
    return root


@pytest.fixture(scope="module")
def client(folders):
    def load():
        adapters = {f"a{alpha}": folders / f"alpha{alpha}" for alpha in (4, 8)}
        return open_models(folders / "base", CONFIG, template="chat", adapters=adapters)

    with (
        running(None, load=load, slots=2, max_length=128) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        client.server = server
        yield client


def test_each_adapter_is_a_model(client, folders):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["base", "a4", "a8"]
    assert [models[name].parent for name in models] == [None, "base", "base"]
    texts, prints = {}, {}
    for name in (*models, *models):
        answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0, logprobs=0)
        text, logprobs = answer.choices[0].text, answer.choices[0].logprobs.token_logprobs
        # The second time, the prefix cache holds the prompt, and only this model's.
        assert texts.setdefault(name, (text, logprobs)) == (text, logprobs)
        prints[name] = answer.system_fingerprint
    assert len({text for text, _ in texts.values()}) == 3
    assert len(set(prints.values())) == 3
    for alpha in (4, 8):
        loaded = merged_model(folders / "base", folders / f"alpha{alpha}")
        network = Plamo2(loaded.config)
        merged = Generator(network, cast_matrices(network, loaded.params), loaded.tokenizer, prefill_size=16)
        (expected,) = merged.generate([PROMPT], sampling=SamplingConfig(temperature=0), stop=StopConfig(24))
        text, logprobs = texts[f"a{alpha}"]
        assert text == expected.text
        np.testing.assert_allclose(logprobs, expected.logprobs, atol=1e-4)


def test_adapters_share_the_arrays_of_the_base(client):
    base, a4, _ = client.server.engine.models.values()
    arrays = [{id(leaf) for leaf in jax.tree.leaves(model.scheduler.engine._params)} for model in (base, a4)]
    assert arrays[0] < arrays[1]


def test_nothing_is_compiled_after_the_warm_up(client):
    assert client.server.engine.compilations == 0


def test_an_adapter_that_does_not_fit_is_refused(folders, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    about = json.loads((folders / "alpha4" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**about, "use_dora": True}))
    (folder / "adapter_model.safetensors").write_bytes((folders / "alpha4" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(PlamoError, match="use_dora"):
        open_models(folders / "base", CONFIG, adapters={"bad": folder})
    with pytest.raises(PlamoError, match="the model itself has this name"):
        open_models(folders / "base", CONFIG, adapters={"base": folders / "alpha4"})
