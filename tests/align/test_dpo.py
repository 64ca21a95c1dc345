"""The preference losses: against TRL's figures, finite differences, formulas by hand, and known limits."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.align import dpo
from plamo2_jax.align.dpo import Pairs, PreferenceConfig, preference_loss

TRL = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text())


def make_pairs(rng, n=6, **fields):
    lengths = rng.integers(2, 9, (2, n)).astype(np.float32)
    policy = (-rng.uniform(0.2, 3.0, (2, n)) * lengths).astype(np.float32)
    reference = (policy + rng.normal(size=(2, n))).astype(np.float32)
    return Pairs(*policy, *reference, *lengths)._replace(**fields)


def swapped(pairs):
    w, l, ref_w, ref_l, length_w, length_l = pairs
    return Pairs(l, w, ref_l, ref_w, length_l, length_w)


def apart(pairs):
    """The answers of pairs, each by itself: first all chosen ones, then all rejected ones."""
    zeros = np.zeros_like(pairs.chosen)
    chosen, rejected = (np.concatenate(halves) for halves in ((pairs.chosen, zeros), (zeros, pairs.rejected)))
    w, l = np.concatenate([pairs.reference_chosen, zeros]), np.concatenate([zeros, pairs.reference_rejected])
    lengths = np.concatenate([pairs.chosen_lengths, zeros]), np.concatenate([zeros, pairs.rejected_lengths])
    return Pairs(chosen, rejected, w, l, *lengths)


def value(pairs, *losses, **fields):
    return float(preference_loss(pairs, PreferenceConfig(losses=losses, **fields))[0])


@pytest.fixture(scope="module")
def ours():
    """Our values and gradients of TRL's cases, all in one program."""

    def one(case, pairs):
        known = {field.name for field in dataclasses.fields(PreferenceConfig)}
        config = PreferenceConfig(losses=(case["loss"],), **{name: case[name] for name in known & case.keys()})
        loss, gradient = jax.value_and_grad(lambda pairs: preference_loss(pairs, config)[0])(pairs)
        return loss, (gradient.chosen, gradient.rejected)

    given = [Pairs(*(jnp.asarray(column, jnp.float32) for column in case["pairs"].values())) for case in TRL]
    return jax.jit(lambda given: [one(*each) for each in zip(TRL, given, strict=True)])(given)


@pytest.mark.parametrize(
    "number", range(len(TRL)), ids=lambda i: f"{TRL[i]['loss']}-{TRL[i]['beta']}" + "-single" * ("single" in TRL[i])
)
def test_the_value_and_the_gradient_are_trls(ours, number):
    (value, gradient), case = ours[number], TRL[number]
    np.testing.assert_allclose(value, case["value"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-4, atol=1e-6)


def test_gradients_are_finite_differences(rng):
    with jax.enable_x64(True):
        pairs = Pairs(*(jnp.asarray(column, jnp.float64) for column in make_pairs(rng)))
        config = PreferenceConfig(beta=0.3, label_smoothing=0.1, dpop_lambda=2.0)

        @jax.jit
        def totals(shift):
            # Statistics over the batch carry no gradient: this moves the pairs, but not their mean.
            moved = pairs._replace(chosen=pairs.chosen + shift, rejected=pairs.rejected - shift)
            return jnp.stack([jnp.sum(loss(moved, config)) for loss in dpo.LOSSES.values()])

        step = 1e-6
        numeric = (totals(step) - totals(-step)) / (2 * step)
        analytic = jax.jit(jax.jacfwd(totals))(0.0)
        assert analytic.shape == (len(get_args(dpo.Loss)),)
        np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-7)


def test_a_policy_equal_to_its_reference(rng):
    pairs = make_pairs(rng)
    pairs = pairs._replace(reference_chosen=pairs.chosen, reference_rejected=pairs.rejected)
    assert math.isclose(value(pairs, "sigmoid"), math.log(2), rel_tol=1e-6)
    assert math.isclose(value(pairs, "dpop"), math.log(2), rel_tol=1e-6)
    assert math.isclose(value(pairs, "bco"), 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(value(pairs, "nca_pair"), 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(value(pairs, "hinge"), 1.0)
    assert math.isclose(value(pairs, "apo_zero"), 1.0)
    assert math.isclose(value(pairs, "ipo", beta=0.5), 1.0)
    _, figures = preference_loss(pairs, PreferenceConfig())
    assert figures["reward_margin"] == 0
    assert figures["reward_accuracy"] == 3.0  # six ties


def test_a_beta_that_goes_to_zero_forgets_the_answers(rng):
    pairs = make_pairs(rng)
    assert math.isclose(value(pairs, "sigmoid", beta=1e-6), math.log(2), rel_tol=1e-5)
    # The gradient over beta is half the negative mean margin.
    slope = (value(pairs, "sigmoid", beta=2e-2) - math.log(2)) / 2e-2
    margin = float(np.mean(pairs.chosen_ratio - pairs.rejected_ratio))
    np.testing.assert_allclose(slope, -margin / 2, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "hinge", "simpo"])
def test_swapped_pairs_have_the_opposite_margin(rng, name):
    pairs = make_pairs(rng)
    config = PreferenceConfig(losses=(name,), simpo_gamma=0.0)
    _, ours = preference_loss(pairs, config)
    _, theirs = preference_loss(swapped(pairs), config)
    np.testing.assert_allclose(ours["reward_margin"], -theirs["reward_margin"], rtol=1e-6)
    assert ours["reward_accuracy"] == 6 - theirs["reward_accuracy"]
    if name != "hinge":
        # −log σ(x) + log σ(−x) = −x.
        losses = dpo.LOSSES[name](pairs, config) - dpo.LOSSES[name](swapped(pairs), config)
        margins = (
            config.beta
            * {
                "sigmoid": pairs.chosen_ratio - pairs.rejected_ratio,
                "sigmoid_norm": pairs.chosen_ratio / pairs.chosen_lengths
                - pairs.rejected_ratio / pairs.rejected_lengths,
                "simpo": pairs.chosen / pairs.chosen_lengths - pairs.rejected / pairs.rejected_lengths,
            }[name]
        )
        np.testing.assert_allclose(losses, -margins, atol=1e-6)


def test_dpo_positive_by_hand(rng):
    pairs, beta, strength = make_pairs(rng), 0.2, 5.0
    x = pairs.chosen_ratio - pairs.rejected_ratio - strength * np.maximum(0, -pairs.chosen_ratio)
    expected = np.mean(np.log1p(np.exp(-beta * x)))
    np.testing.assert_allclose(value(pairs, "dpop", beta=beta, dpop_lambda=strength), expected, rtol=1e-5)
    assert math.isclose(
        value(pairs, "dpop", beta=beta, dpop_lambda=0.0), value(pairs, "sigmoid", beta=beta), rel_tol=1e-6
    )


def test_bco_takes_the_mean_reward_off(rng):
    pairs = make_pairs(rng)
    shifted = pairs._replace(
        reference_chosen=pairs.reference_chosen + 7, reference_rejected=pairs.reference_rejected + 7
    )
    np.testing.assert_allclose(value(pairs, "bco"), value(shifted, "bco"), rtol=1e-5)


def test_label_smoothing_is_the_mean_over_labels(rng):
    pairs = make_pairs(rng)
    right, wrong = value(pairs, "sigmoid"), value(swapped(pairs), "sigmoid")
    np.testing.assert_allclose(value(pairs, "sigmoid", label_smoothing=0.2), 0.8 * right + 0.2 * wrong, rtol=1e-5)
    noisy = 0.8 * value(pairs, "robust", label_smoothing=0.2) + 0.2 * value(
        swapped(pairs), "robust", label_smoothing=0.2
    )
    np.testing.assert_allclose(noisy, right, rtol=1e-5)  # unbiased


def test_terms_add_up_by_weight(rng):
    pairs = make_pairs(rng)
    expected = value(pairs, "sigmoid") + 0.3 * value(pairs, "nll")
    np.testing.assert_allclose(value(pairs, "sigmoid", "nll", weights=(1.0, 0.3)), expected, rtol=1e-6)


def test_places_without_a_pair_change_nothing(rng):
    pairs = make_pairs(rng)
    empty = Pairs(*(np.concatenate([column, np.zeros(3, np.float32)]) for column in pairs))
    config = PreferenceConfig(losses=get_args(dpo.Loss))
    step = jax.jit(jax.value_and_grad(lambda pairs: preference_loss(pairs, config), has_aux=True))
    (loss, figures), gradient = step(jax.tree.map(jnp.asarray, pairs))
    (padded, padded_figures), padded_gradient = step(jax.tree.map(jnp.asarray, empty))
    np.testing.assert_allclose(padded, loss, rtol=1e-6)
    for name, figure in figures.items():
        np.testing.assert_allclose(padded_figures[name], figure, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(padded_gradient.chosen[:6], gradient.chosen, atol=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in padded_gradient)
    assert not np.any(padded_gradient.chosen[6:])


def test_no_pair_at_all_is_a_loss_of_zero(rng):
    nothing = np.zeros(6, np.float32)
    pairs = make_pairs(rng, chosen_lengths=nothing, rejected_lengths=nothing)
    loss, figures = preference_loss(pairs, PreferenceConfig())
    assert loss == 0
    assert all(figure == 0 for figure in figures.values())


def test_figures_by_hand(rng):
    pairs = make_pairs(rng)
    _, figures = preference_loss(pairs, PreferenceConfig(beta=0.3))
    margins = 0.3 * (pairs.chosen_ratio - pairs.rejected_ratio)
    np.testing.assert_allclose(figures["reward_margin"], margins.sum(), rtol=1e-5)
    assert figures["reward_accuracy"] == np.count_nonzero(margins > 0)
    assert figures["length_chosen"] == pairs.chosen_lengths.sum()
    np.testing.assert_allclose(figures["log_prob_rejected"], pairs.rejected.sum(), rtol=1e-6)


def test_single_answers_by_hand():
    # Two chosen answers and a rejected one, with log-ratios 1, 3 and −1 (their mean is 1).
    pairs = Pairs(
        chosen=np.array([-4.0, -6.0, 0.0], np.float32),
        rejected=np.array([0.0, 0.0, -5.0], np.float32),
        reference_chosen=np.array([-5.0, -9.0, 0.0], np.float32),
        reference_rejected=np.array([0.0, 0.0, -4.0], np.float32),
        chosen_lengths=np.array([4.0, 3.0, 0.0], np.float32),
        rejected_lengths=np.array([0.0, 0.0, 5.0], np.float32),
    )
    weights = {"beta": 0.5, "desirable_weight": 0.6, "undesirable_weight": 2.0}
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    # Where z is 1, x = β(r − z) is 0, 1 and −1.
    expected = (0.6 * (logistic(0) + logistic(-1)) + 2.0 * logistic(-1)) / 3
    np.testing.assert_allclose(value(pairs, "kto", **weights), expected, rtol=1e-6)
    expected = -(0.6 * (math.log(logistic(0)) + math.log(logistic(1))) + 2.0 * math.log(logistic(1))) / 3
    np.testing.assert_allclose(value(pairs, "bco", **weights), expected, rtol=1e-6)
    expected = (0.6 * (logistic(-0.5) + logistic(-1.5)) + 2.0 * logistic(-0.5)) / 3
    np.testing.assert_allclose(value(pairs, "apo_zero", **weights), expected, rtol=1e-6)
    np.testing.assert_allclose(value(pairs, "nll"), (4 / 4 + 6 / 3) / 3, rtol=1e-6)

    _, figures = preference_loss(pairs, PreferenceConfig(losses=("kto",), beta=0.5))
    assert {name: float(figures[name]) for name in ("weight", "count_chosen", "count_rejected", "pairs")} == {
        "weight": 3,
        "count_chosen": 2,
        "count_rejected": 1,
        "pairs": 0,
    }
    assert (figures["reward_chosen"], figures["reward_rejected"]) == (2.0, -0.5)
    assert (figures["log_prob_chosen"], figures["length_rejected"]) == (-10.0, 5.0)
    assert figures["reward_margin"] == figures["reward_accuracy"] == 0


@pytest.mark.parametrize("name", sorted(dpo.BY_ANSWER))
def test_a_pair_is_its_two_answers(rng, name):
    """Of twice as many places the mean is half as large, and so are the gradients; figures over answers are the same."""
    pairs = make_pairs(rng)
    config = PreferenceConfig(losses=(name,), beta=0.4, desirable_weight=0.7, undesirable_weight=1.4)
    step = jax.value_and_grad(lambda pairs: preference_loss(pairs, config), has_aux=True)
    (loss, figures), gradient = step(jax.tree.map(jnp.asarray, pairs))
    (half, apart_figures), apart_gradient = step(jax.tree.map(jnp.asarray, apart(pairs)))
    np.testing.assert_allclose(2 * half, loss, rtol=1e-6)
    np.testing.assert_allclose(2 * apart_gradient.chosen[:6], gradient.chosen, atol=1e-6)
    np.testing.assert_allclose(2 * apart_gradient.rejected[6:], gradient.rejected, atol=1e-6)
    assert not np.any(apart_gradient.chosen[6:])
    assert not np.any(apart_gradient.rejected[:6])
    assert (apart_figures["weight"], apart_figures["pairs"]) == (12, 0)
    for figure in set(figures) - {"weight", "pairs", "reward_margin", "reward_accuracy"}:
        np.testing.assert_allclose(apart_figures[figure], figures[figure], rtol=1e-6, err_msg=figure)


def test_figures_of_pairs_leave_single_answers_out(rng):
    pairs = make_pairs(rng)
    mixed = Pairs(*(np.concatenate(columns) for columns in zip(pairs, apart(make_pairs(rng)), strict=True)))
    config = PreferenceConfig(losses=("kto",))
    _, alone = preference_loss(pairs, config)
    _, figures = preference_loss(mixed, config)
    assert (figures["weight"], figures["pairs"], figures["count_chosen"], figures["count_rejected"]) == (18, 6, 12, 12)
    for name in ("reward_margin", "reward_accuracy"):
        np.testing.assert_allclose(figures[name], alone[name], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_answers_worlds_apart_stay_finite(rng, scale):
    pairs = make_pairs(rng)
    far = pairs._replace(reference_chosen=pairs.chosen + scale, reference_rejected=pairs.rejected - scale)
    # Squares of such numbers are none.
    names = sorted(set(get_args(dpo.Loss)) - ({"ipo", "sppo_hard"} if scale > 1e10 else set()))

    @jax.jit
    def each(pairs):
        one = (lambda p, name=name: preference_loss(p, PreferenceConfig(losses=(name,)))[0] for name in names)
        return [jax.value_and_grad(loss)(pairs) for loss in one]

    for name, (loss, gradient) in zip(names, each(jax.tree.map(jnp.asarray, far)), strict=True):
        assert np.isfinite(loss), name
        assert all(np.all(np.isfinite(leaf)) for leaf in gradient), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"losses": ()}, "losses="),
        ({"losses": ("dpo",)}, "losses="),
        ({"losses": ("nll", "nll")}, "different terms"),
        ({"weights": (1.0, 2.0)}, "weights="),
        ({"beta": 0.0}, "beta=0.0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"simpo_gamma": -1.0}, "simpo_gamma=-1.0"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PreferenceConfig(), **fields)
