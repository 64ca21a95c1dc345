"""GGUF files in llama.cpp: the same logits, the same greedy tokens, the same ids, the same prompts."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.convert.gguf import to_gguf, write_gguf
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.corpus import documents
from plamo2_jax.model import Plamo2, axes, declarations, init_params
from plamo2_jax.model.quantized import quantize_params
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.template_files import built_in_template
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.llama_server import llama_server
from support.vocabularies import CONTROLS, GOLDEN

pytestmark = pytest.mark.peer

DEMO = Path(__file__).parents[2] / "runs" / "demo"
SMALL = Tokenizer.load(GOLDEN)
NEW = 48
# Random weights with rows past the tokenizer's and grouped queries.
UNTIED = preset(
    "tiny",
    hidden_size=128,
    num_hidden_layers=4,
    intermediate_size=256,
    hidden_size_per_head=32,
    mamba_num_heads=4,
    mamba_d_state=16,
    attention_window_size=200,
    vocab_size=SMALL.vocab_size + 13,
    initializer_range=0.1,
    tie_word_embeddings=False,
)
CONFIGS = {
    "untied": UNTIED,
    # An odd number of layers, one key/value head, another RoPE base.
    "tied": dataclasses.replace(
        UNTIED, tie_word_embeddings=True, num_hidden_layers=3, num_key_value_heads=1, rope_theta=1e6
    ),
    # Texts are longer than the window, which no layer has.
    "full": dataclasses.replace(UNTIED, attention_window_size=16, full_attention_idx=(1, 3), rope_theta=5e5),
}


@pytest.fixture(scope="module")
def demo():
    assert DEMO.exists(), "run make demo first (make peers does)"
    return load_model(DEMO)


@pytest.fixture(scope="module")
def demo_prompts(demo):
    """Five beginnings of held-out texts. With the new tokens they are within the window."""
    texts = [next(documents(language, "heldout"))["text"] for language in ("ja", "en")]
    pieces = [texts[0][:40], texts[1][:120], texts[0][200:260], texts[1][500:540], texts[0][:3]]
    return [demo.tokenizer.encode(piece, bos=True).tolist() for piece in pieces]


@functools.cache
def applied(config):
    model = Plamo2(config)
    return jax.jit(lambda params, tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)[0]))


def compare(path, config, params, prompts, tokenizer):
    """Continue prompts in llama.cpp greedily, and compare each step with the log-probabilities of our model of the same text.

    Tokens that are not whole characters are excluded, since the server reports several of them as one step.

    Returns:
        For each step whether ours prefers the same token, and the differences of the log-probabilities of its 5 likeliest tokens.
    """
    excluded = [i for i in range(tokenizer.vocab_size) if not whole_character(tokenizer, i)]
    excluded += range(tokenizer.vocab_size, config.vocab_size)
    options = {"temperature": 0, "n_predict": NEW, "n_probs": 5, "cache_prompt": False, "ignore_eos": True}
    options["logit_bias"] = [[i, False] for i in excluded]
    same, differences = [], []
    with llama_server(path) as ask:
        for prompt in prompts:
            steps = ask("completion", prompt=prompt, **options)["completion_probabilities"]
            assert len(steps) == NEW
            text = np.zeros((1, 160), np.int32)
            whole = prompt + [step["id"] for step in steps]
            text[0, : len(whole)] = whole
            ours = np.array(applied(config)(params, text)[0, len(prompt) - 1 : len(whole) - 1])
            for scores, step in zip(ours, steps, strict=True):
                differences.append([abs(top["logprob"] - scores[top["id"]]) for top in step["top_logprobs"]])
                scores[excluded] = -np.inf
                same.append(scores.argmax() == step["id"])
    print(
        f"{path.stem}: {sum(same)} of {len(same)} tokens, log-probs {np.mean(differences):.1e}, {np.max(differences):.1e}"
    )
    return np.array(same), np.array(differences)


def whole_character(tokenizer, id):
    """Whether an id is text that ends with a whole character."""
    if tokenizer.is_special(id):
        return False
    try:
        return bool(tokenizer.token_bytes(id).decode())
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("kind", "mean", "most"),
    [("f32", 1e-5, 1e-4), ("f16", 1e-3, 1e-2), ("bf16", 1e-2, 0.1), ("q8_0", 0.03, 0.15), ("q4_0", 0.1, 1)],
)
def test_the_demo_in_each_type(tmp_path, demo, demo_prompts, kind, mean, most):
    to_gguf(DEMO, tmp_path / f"{kind}.gguf", kind=kind)
    same, differences = compare(tmp_path / f"{kind}.gguf", demo.config, demo.params, demo_prompts, demo.tokenizer)
    if kind == "f32":
        assert same.all()
    assert differences.mean() < mean
    assert differences.max() < most


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_demo(tmp_path, demo, demo_prompts, bits):
    """llama.cpp multiplies by our integers: its results are those of our quantized model, up to its rounding of the activations."""
    scan = {axes.STATE, axes.DT_RANK}

    def select(declared):
        return axes.is_matrix(declared.names) and not scan & {*declared.names}

    params = quantize_params(demo.params, declarations(Plamo2(demo.config)), bits, 32, select=select)
    path = tmp_path / f"int{bits}.gguf"
    write_gguf(path, demo.config, params, demo.tokenizer)
    _, differences = compare(path, demo.config, params, demo_prompts, demo.tokenizer)
    assert differences.mean() < 0.02
    if bits == 4:
        # The float model is further away. Of 8 bits, the rounding of the weights is less than that of the activations.
        _, of_floats = compare(path, demo.config, demo.params, demo_prompts, demo.tokenizer)
        assert of_floats.mean() > 4 * differences.mean()


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_of_the_network(tmp_path, name):
    config = CONFIGS[name]
    params = jax.jit(functools.partial(init_params, Plamo2(config)))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    prompts = [rng.integers(5, SMALL.vocab_size, length).tolist() for length in (1, 7, 40, 100)]
    write_gguf(tmp_path / f"{name}.gguf", config, params, SMALL, kind="f32", context_length=1024)
    same, differences = compare(tmp_path / f"{name}.gguf", config, params, prompts, SMALL)
    assert same.all()
    assert differences.max() < 1e-4


def test_ids_and_prompts(tmp_path, demo):
    """The tokenizer and the chat template that the file contains."""
    texts = [case["text"] for case in json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))]
    for language in ("ja", "en"):
        text = next(documents(language, "heldout"))["text"]
        texts += [text[i : i + 37] for i in range(0, 4000, 37)]
    texts += ["[PAD0]", "𩸽🐟[PAD0]", "<0x41>", "a\n\n\nb   c\t", *CONTROLS]
    assert len(texts) > 300
    template = built_in_template("chat").source
    write_gguf(tmp_path / "demo.gguf", demo.config, demo.params, demo.tokenizer, kind="q8_0", template=template)
    with llama_server(tmp_path / "demo.gguf") as ask:
        for text in texts:
            ids = ask("tokenize", content=text, parse_special=False, add_special=False)["tokens"]
            # llama.cpp drops a byte order mark at the beginning.
            assert ids == demo.tokenizer.encode(text.removeprefix("\ufeff")).tolist(), repr(text)
            ids = ask("tokenize", content=text, parse_special=True, add_special=True)["tokens"]
            ours = demo.tokenizer.encode(text.removeprefix("\ufeff"), allow_control=True, bos=True)
            assert ids == ours.tolist(), repr(text)
        messages = [
            {"role": "system", "content": "簡潔に答えてください。"},
            {"role": "user", "content": "What is\n  the capital of Japan?"},
        ]
        chat = ChatTemplate(template)
        prompt = ask("apply-template", messages=messages)["prompt"]
        ids = ask("tokenize", content=prompt, parse_special=True, add_special=True)["tokens"]
        assert ids == chat.encode(demo.tokenizer, messages, add_generation_prompt=True).ids.tolist()
        answer = ask("v1/chat/completions", messages=messages, max_tokens=4, temperature=0)
        assert answer["usage"]["prompt_tokens"] == len(ids)
        # llama.cpp encodes an answer together with the line before it, and we encode it apart: the same text in other tokens.
        messages += [{"role": "assistant", "content": "Tokyo."}, {"role": "user", "content": "ありがとう"}]
        prompt = ask("apply-template", messages=messages)["prompt"]
        ours = chat.encode(demo.tokenizer, messages, add_generation_prompt=True).ids
        assert "<|plamo:bos|>" + prompt == demo.tokenizer.decode(ours)
