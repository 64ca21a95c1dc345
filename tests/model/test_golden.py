"""Float64 logits of an independent implementation, for tiny checkpoints in the public layout (tests/golden/{window,full}).

`window`: a window of 16, tied embeddings, one key/value head. `full`: untied, two key/value heads, full attention in layers 1 and 3
with a RoPE base of 1e6, windows of 8 elsewhere. Every case is a row of 61 tokens; they run as one batch.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax.convert.load import load_model
from plamo2_jax.model import Plamo2

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("single", "packed", "left_padded", "packed_right_padded")
T = 61
TOLERANCE = 2e-5
PIECES = (11, 4, 1)  # lengths to cut rows into; each compiles once a model


@functools.cache
def golden(name):
    """Tokens, segment ids [4, 61] and logits [4, 61, v]."""
    with np.load(GOLDEN / name / "cases.npz", allow_pickle=False) as cases:
        return tuple(
            np.stack([cases[f"{case}.{key}"] for case in CASES]) for key in ("tokens", "segment_ids", "logits")
        )


@pytest.fixture(scope="module", params=["window", "full"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(name):
    return load_model(GOLDEN / name)


@pytest.fixture(scope="module", params=["reference", "xla"])
def model(loaded, request):
    return Plamo2(loaded.config, implementation=request.param)


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@pytest.fixture(scope="module")
def apply_cached(model):
    def call(params, tokens, segment_ids, cache):
        return model.apply({"params": params}, tokens, segment_ids, cache=cache)

    return jax.jit(call)


def assert_close(logits, name):
    """Relative L2 distance over the positions that are not padding, case by case."""
    _, segment_ids, expected = golden(name)
    for case, actual, wanted, real in zip(CASES, np.asarray(logits), expected, segment_ids != 0, strict=True):
        distance = np.linalg.norm(actual[real] - wanted[real]) / np.linalg.norm(wanted[real])
        assert distance <= TOLERANCE, f"{name}/{case}: {distance:.2e}"


def in_pieces(apply_cached, model, params, name, lengths):
    tokens, segment_ids, _ = golden(name)
    cache, logits, start = model.init_cache(len(CASES), T), [], 0
    for length in lengths:
        piece = slice(start, start + length)
        y, cache = apply_cached(params, tokens[:, piece], segment_ids[:, piece], cache)
        logits.append(y)
        start += length
    assert start == T
    return np.concatenate(logits, axis=1)


def random_lengths(seed):
    rng = np.random.default_rng(seed)
    lengths, left = [], T
    while left:
        lengths.append(int(rng.choice([length for length in PIECES if length <= left])))
        left -= lengths[-1]
    return lengths


def test_the_cases_are_the_ones_they_should_be(name):
    tokens, segment_ids, logits = golden(name)
    assert tokens.shape == segment_ids.shape == (4, T)
    assert logits.shape == (4, T, 256)
    assert [row[0] for row in segment_ids] == [1, 1, 0, 1]
    assert [row.max() for row in segment_ids] == [1, 4, 1, 2]


def test_full_forward(loaded, apply, name):
    tokens, segment_ids, _ = golden(name)
    assert_close(apply(loaded.params, tokens, segment_ids)[0], name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prefill_in_random_pieces(loaded, model, apply_cached, name, seed):
    lengths = random_lengths(seed)
    assert 1 in lengths
    assert len(set(lengths)) == 3
    assert_close(in_pieces(apply_cached, model, loaded.params, name, lengths), name)


def test_decoding_one_token_at_a_time(loaded, model, apply_cached, name):
    assert_close(in_pieces(apply_cached, model, loaded.params, name, [1] * T), name)


def test_prefill_then_decode(loaded, model, apply_cached, name):
    assert_close(in_pieces(apply_cached, model, loaded.params, name, [11, 11, 11] + [1] * 28), name)


@pytest.mark.parametrize(
    ("name", "change"),
    [("window", {"attention_window_size": 15}), ("full", {"rope_theta": 1e4})],
    ids=["one key fewer in the window", "one RoPE base for all layers"],
)
def test_the_tolerance_notices_known_mistakes_of_ports(name, change):
    loaded = load_model(GOLDEN / name)
    wrong = Plamo2(dataclasses.replace(loaded.config, **change))
    tokens, segment_ids, _ = golden(name)
    with pytest.raises(AssertionError, match=f"{name}/"):
        assert_close(wrong.apply({"params": loaded.params}, tokens, segment_ids)[0], name)
