"""A folder written by `plamo2 quantize`, served: the chat answers are those of the local engine."""

import dataclasses
import functools

import jax
import openai
import pytest

from plamo2_jax import checkpoint, models
from plamo2_jax.cli.main import main
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.model.quantized import has_quantized
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.logprobs import token_text
from plamo2_jax.serve.opening import open_models
from support.http_server import running
from support.tiny_generator import CONFIG

MESSAGES = [{"role": "user", "content": "吾輩は猫である。\n ab the"}]
LENGTH, TOKENS = 128, 24


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Matrices of 4 bits in groups, and of 8 bits: embedding, head and Mamba. Two layers compile faster than four."""
    root = tmp_path_factory.mktemp("quantized")
    config = dataclasses.replace(CONFIG, num_hidden_layers=2)
    params = jax.jit(functools.partial(init_params, Plamo2(config)))(jax.random.key(0))
    checkpoint.save_model(root / "float", config, params, tokenizer)
    assert main(["quantize", str(root / "float"), str(root / "four"), "--bits", "4", "--group-size", "32"]) == 0
    return root / "four"


def test_a_quantized_model_answers_over_http_as_it_does_locally(folder):
    config = ServeConfig(port=0, slots=2, max_length=LENGTH, prefill_size=16, warm_up=False)
    options = {"slots": 2, "max_length": LENGTH, "warm_up": False}
    with (
        running(None, load=lambda: open_models(folder, config, template="chat"), **options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        (served,) = server.engine.models.values()
        assert has_quantized(served.scheduler.engine._params)
        answer = client.chat.completions.create(
            model="four", messages=MESSAGES, max_tokens=TOKENS, temperature=0, logprobs=True
        )
    request = models.ChatRequest("0", MESSAGES, sampling=SamplingConfig(0.0), stop=StopConfig(TOKENS))
    with models.open(folder, template="chat", batch_size=2) as local:
        (((expected,),),) = (local.chat([request]),)
        texts = [token_text(local.tokenizer, token) for token in expected.token_ids]
    (choice,) = answer.choices
    assert len(expected.token_ids) > 4
    assert [token.token for token in choice.logprobs.content] == texts
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason
