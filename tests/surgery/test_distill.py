"""The distillation objective against NumPy, and its corner cases."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.cli.main import main
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.surgery.distill import TEACHER, Distill, distillation_loss, hidden_distance, kl_full, kl_top
from plamo2_jax.surgery.teacher_logits import top_logits
from plamo2_jax.train.pretraining import next_token
from support.models import tiny

V = 96
STUDENT = tiny(vocab_size=V)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_divergence_and_its_gradient_by_hand(rng):
    teacher, student = rng.normal(size=(2, 5, V)) * 3
    tau = 2.0
    p, q = softmax(teacher / tau), softmax(student / tau)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(kl_full(jnp.asarray(teacher), x, tau)))(jnp.asarray(student))
    np.testing.assert_allclose(value, (p * np.log(p / q)).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, (q - p) / tau, atol=1e-6)


def test_the_divergence_over_k_and_the_rest_by_hand(rng):
    teacher, student = rng.normal(size=(2, 5, V)) * 3
    tau, k = 1.5, 7
    p, q = softmax(teacher / tau), softmax(student / tau)
    top = np.argsort(-p, -1)[:, :k]
    merged_p, merged_q = (
        np.concatenate([np.take_along_axis(d, top, -1), 1 - np.take_along_axis(d, top, -1).sum(-1, keepdims=True)], -1)
        for d in (p, q)
    )
    expected = (merged_p * np.log(merged_p / merged_q)).sum(-1)
    actual = kl_top(top_logits(jnp.asarray(teacher), tau, k), jnp.asarray(student), tau)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    full = np.asarray(kl_full(jnp.asarray(teacher), jnp.asarray(student), tau))
    assert np.all(actual <= full + 1e-6)
    whole = kl_top(top_logits(jnp.asarray(teacher), tau, V), jnp.asarray(student), tau)
    np.testing.assert_allclose(whole, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, V])
def test_an_equal_student_has_nothing_to_learn(rng, k):
    logits = jnp.asarray(rng.normal(size=(5, V)) * 3)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(kl_top(top_logits(logits, 1.0, k), x, 1.0)))(logits)
    assert abs(value) < 1e-5
    assert jnp.max(jnp.abs(gradient)) < 1e-5


def test_hidden_streams_of_equal_and_of_other_widths(rng):
    x = jnp.asarray(rng.normal(size=(3, 8)))
    assert jnp.max(hidden_distance(x, 5 * x)) < 1e-5
    assert hidden_distance(jnp.asarray(rng.normal(size=(3, 16))), x).shape == (3,)


@pytest.fixture(scope="module")
def material():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (2, 16))
    segments = np.array([[1] * 9 + [2] * 7, [1] * 10 + [0] * 6])
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segment_ids": segments,
        "positions": np.tile(np.arange(16), (2, 1)),
        "loss_weights": (segments != 0).astype(np.float32),
    }
    model = Plamo2(STUDENT)
    keys = jax.random.split(jax.random.key(0))
    init = jax.jit(lambda key: init_params(model, key))
    return model, init(keys[0]), init(keys[1]), {name: jnp.asarray(array) for name, array in batch.items()}


def run(material, config, student=0, chunk=4):
    model, *params, batch = material
    loss_fn = distillation_loss(model, jnp.ones(V, jnp.int32), config, model, 1e-4, chunk)
    step = jax.jit(jax.value_and_grad(lambda p, b, f: loss_fn(p, b, None, f), has_aux=True))
    return step(params[student], batch, {TEACHER: params[1]})


CONFIG = Distill(teacher="none", temperature=2.0, alpha=1.0)


def test_a_student_equal_to_its_teacher_learns_nothing(material):
    (loss, metrics), gradients = run(material, dataclasses.replace(CONFIG, hidden_weight=1.0), student=1, chunk=None)
    assert abs(loss - metrics["z_loss"] / metrics["weight"]) < 1e-6
    assert metrics["hidden"] < 1e-6
    # What is left is the z-loss.
    assert max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradients)) < 1e-2


def test_all_tokens_one_by_one_is_the_whole_divergence(material):
    (full, _), full_gradients = run(material, CONFIG)
    (top, _), top_gradients = run(material, dataclasses.replace(CONFIG, top_k=V), chunk=8)
    assert full > 1e-3
    # The divergence is a small difference of large sums.
    np.testing.assert_allclose(top, full, rtol=5e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), full_gradients, top_gradients)


def test_without_alpha_it_is_pretraining(material):
    model, params, _, batch = material
    (loss, metrics), gradients = run(material, dataclasses.replace(CONFIG, alpha=0.0))
    plain = next_token(model, jnp.ones(V, jnp.int32), 1e-4)
    (expected, sums), expected_gradients = jax.jit(jax.value_and_grad(lambda p: plain(p, batch, None), has_aux=True))(
        params
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected_gradients)
    assert {name: float(metrics[name]) for name in ("tokens", "weight")} == {
        name: float(sums[name]) for name in ("tokens", "weight")
    }


def test_a_fingerprint_tells_models_apart(material):
    model, a, b, _ = material
    assert fingerprint(model.config, a) != fingerprint(model.config, b)
    assert fingerprint(model.config, a) == fingerprint(model.config, jax.tree.map(jnp.copy, a))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"logits": "x", "hidden_weight": 1.0}, "0 with precomputed logits"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        Distill(teacher="none", **fields)


@pytest.mark.parametrize(("set_", "options", "expected"), [(None, (), 32), (64, (), 64), (64, ("--top-k", "8"), 8)])
def test_the_command_writes_as_many_logits_as_the_config_reads(tmp_path, monkeypatch, set_, options, expected):
    written = []
    run = SimpleNamespace(tokenizer="none", steps=1, task=Distill(teacher="none", top_k=set_))
    monkeypatch.setattr("plamo2_jax.cli.run_options.load_run", lambda *arguments: run)
    monkeypatch.setattr("plamo2_jax.tokenizer.tokenizer.Tokenizer.load", lambda path: None)
    monkeypatch.setattr(
        "plamo2_jax.surgery.teacher_logits.write_teacher_logits",
        lambda *arguments, top_k, **options: written.append(top_k) or 1,
    )
    assert main(["distill", "config.py", str(tmp_path / "out"), *options]) == 0
    assert written == [expected]
