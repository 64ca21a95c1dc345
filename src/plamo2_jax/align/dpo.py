"""The family of direct preference losses: from log-probabilities of answers under policy and reference to a loss and its figures.

All are functions of a `Pairs`, arrays [n] of sums over the tokens of an answer, and give a loss a place [n]; `preference_loss` adds
several up by weight and takes the mean. With r_w, r_l = log π(y_w) − log π_ref(y_w), log π(y_l) − log π_ref(y_l) for the chosen and
the rejected answer, and σ the logistic function, each docstring states its formula. DPO itself is arXiv:2305.18290.

Those of `BY_ANSWER` are sums of a term for the chosen answer and one for the rejected. They are as well defined where only one of the two
is there, a single answer that was liked or disliked: the other's term is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plamo2_jax.validation import require

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "bco",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "dpop",
    "kto",
    "simpo",
    "orpo",
    "nll",
]
WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "nll"})
"""Losses that read no reference; a run of these alone needs none."""
BY_ANSWER = frozenset({"bco", "nca_pair", "sppo_hard", "apo_zero", "kto", "nll"})
"""Losses that take single answers too."""
OVER: Mapping[str, str] = {
    **{f"{name}_chosen": "count_chosen" for name in ("reward", "log_ratio", "log_prob", "length")},
    **{f"{name}_rejected": "count_rejected" for name in ("reward", "log_ratio", "log_prob", "length")},
    "reward_margin": "pairs",
    "reward_accuracy": "pairs",
}
"""What the sums of `preference_loss` are sums over, where that is not the loss's weight: name of a figure → name of its count."""


class Pairs(NamedTuple):
    """Answers to prompts, [n] float32 each. A place holds a pair, or one answer of the two, or nothing: what is missing has length 0."""

    chosen: Float[Array, " n"]
    """log π of the chosen answer: the sum over its tokens."""
    rejected: Float[Array, " n"]
    """log π of the rejected answer."""
    reference_chosen: Float[Array, " n"]
    """log π_ref of the chosen answer; 0 where there is no reference."""
    reference_rejected: Float[Array, " n"]
    """log π_ref of the rejected answer."""
    chosen_lengths: Float[Array, " n"]
    """Tokens of the chosen answer."""
    rejected_lengths: Float[Array, " n"]
    """Tokens of the rejected answer."""

    @property
    def has_chosen(self) -> Bool[Array, " n"]:
        """Where there is a chosen answer."""
        return self.chosen_lengths > 0

    @property
    def has_rejected(self) -> Bool[Array, " n"]:
        """Where there is a rejected answer."""
        return self.rejected_lengths > 0

    @property
    def are_whole(self) -> Bool[Array, " n"]:
        """Where there are both."""
        return self.has_chosen & self.has_rejected

    @property
    def are_there(self) -> Bool[Array, " n"]:
        """Where there is any."""
        return self.has_chosen | self.has_rejected

    @property
    def chosen_ratio(self) -> Float[Array, " n"]:
        """r_w."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Float[Array, " n"]:
        """r_l."""
        return self.rejected - self.reference_rejected

    def add(self, chosen: Float[Array, " n"], rejected: Float[Array, " n"]) -> Float[Array, " n"]:
        """Of a figure an answer, the sum at each place; an answer that is missing adds nothing."""
        return jnp.where(self.has_chosen, chosen, 0) + jnp.where(self.has_rejected, rejected, 0)

    def mean_ratio(self) -> Float[Array, ""]:
        """The mean r of all answers that are there; 0 where there is none."""
        answers = jnp.sum(self.has_chosen) + jnp.sum(self.has_rejected)
        return jnp.sum(self.add(self.chosen_ratio, self.rejected_ratio)) / jnp.maximum(answers, 1)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """What is minimised over pairs of answers, or single ones. PLaMo 2's own settings are not public; the default is plain DPO.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    losses: tuple[Loss, ...] = ("sigmoid",)
    """Terms of the loss; see plamo2_jax.align.dpo. RPO is sigmoid and nll, ORPO is nll and orpo."""
    weights: tuple[float, ...] = ()
    """One a term, in order; none: all 1."""
    beta: float = 0.1
    """How far an answer's log-ratio counts: strength of the pull to the reference. SimPO wants 2 to 2.5."""
    label_smoothing: float = 0.0
    """sigmoid, sigmoid_norm, dpop, simpo, robust, exo_pair: probability that a pair is labelled the wrong way round."""
    ipo_average: bool = True
    """ipo: log-ratios are divided by the answers' lengths; off: sums, as in the paper."""
    simpo_gamma: float = 0.5
    """simpo: margin of the rewards."""
    dpop_lambda: float = 50.0
    """dpop: weight of the penalty on chosen answers that become less likely."""
    desirable_weight: float = 1.0
    """bco, nca_pair, sppo_hard, apo_zero, kto: of the terms of chosen answers."""
    undesirable_weight: float = 1.0
    """The same losses: of the terms of rejected answers."""

    def __post_init__(self) -> None:
        known = bool(self.losses) and all(name in get_args(Loss) for name in self.losses)
        require(self, "losses", known, f"one or several of {', '.join(get_args(Loss))}")
        require(self, "losses", len(set(self.losses)) == len(self.losses), "different terms")
        fits = not self.weights or len(self.weights) == len(self.losses)
        require(self, "weights", fits and all(map(math.isfinite, self.weights)), "finite, one a loss, or none")
        require(self, "beta", 0 < self.beta < math.inf, "positive and finite")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, 0.5)")
        for name in ("simpo_gamma", "dpop_lambda", "desirable_weight", "undesirable_weight"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")

    @property
    def terms(self) -> dict[Loss, float]:
        """Weights by loss."""
        return dict(zip(self.losses, self.weights or [1.0] * len(self.losses), strict=True))

    @property
    def needs_reference(self) -> bool:
        """Whether a term reads the reference's log-probabilities."""
        return not WITHOUT_REFERENCE.issuperset(self.losses)

    @property
    def takes_single_answers(self) -> bool:
        """Whether every term is defined where only one answer is there."""
        return BY_ANSWER.issuperset(self.losses)


def sigmoid(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """DPO (arXiv:2305.18290): −log σ(β(r_w − r_l)).

    With label smoothing ε, conservative DPO: −(1 − ε) log σ(β(r_w − r_l)) − ε log σ(−β(r_w − r_l)).
    """
    return _smoothed(config.beta * (pairs.chosen_ratio - pairs.rejected_ratio), config.label_smoothing)


def sigmoid_norm(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """Length-normalized DPO (Tülu 3, arXiv:2411.15124): `sigmoid` of r_w / |y_w| and r_l / |y_l|."""
    margin = pairs.chosen_ratio / _at_least_one(pairs.chosen_lengths)
    margin -= pairs.rejected_ratio / _at_least_one(pairs.rejected_lengths)
    return _smoothed(config.beta * margin, config.label_smoothing)


def hinge(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """SLiC on log-ratios (RSO, arXiv:2309.06657): max(0, 1 − β(r_w − r_l))."""
    return jax.nn.relu(1 - config.beta * (pairs.chosen_ratio - pairs.rejected_ratio))


def ipo(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """IPO (arXiv:2310.12036): (r_w − r_l − 1 / (2β))², r divided by the answers' lengths unless `ipo_average` is off."""
    w, l = pairs.chosen_ratio, pairs.rejected_ratio
    if config.ipo_average:
        w, l = w / _at_least_one(pairs.chosen_lengths), l / _at_least_one(pairs.rejected_lengths)
    return jnp.square(w - l - 1 / (2 * config.beta))


def robust(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """Robust DPO (arXiv:2403.00409): (−(1 − ε) log σ(β(r_w − r_l)) + ε log σ(−β(r_w − r_l))) / (1 − 2ε).

    Unbiased where a share ε of the labels is swapped.
    """
    x, e = config.beta * (pairs.chosen_ratio - pairs.rejected_ratio), config.label_smoothing
    return (-(1 - e) * jax.nn.log_sigmoid(x) + e * jax.nn.log_sigmoid(-x)) / (1 - 2 * e)


def exo_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """EXO for pairs (arXiv:2402.00856, eq. 16): KL of (σ(x), σ(−x)) from (1 − ε, ε), with x = β(r_w − r_l).

    ε is the label smoothing, or 1e-3 where that is 0, at which the divergence is infinite.
    """
    x, e = config.beta * (pairs.chosen_ratio - pairs.rejected_ratio), config.label_smoothing or 1e-3
    win = jax.nn.sigmoid(x) * (jax.nn.log_sigmoid(x) - math.log(1 - e))
    return win + jax.nn.sigmoid(-x) * (jax.nn.log_sigmoid(-x) - math.log(e))


def bco(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """BCO (arXiv:2404.04656): −log σ(β r_w − δ) − log σ(−(β r_l − δ)), δ the mean of all β r.

    δ is the batch's own mean over the answers that are there, without gradient; the paper keeps a moving average of it.
    """
    delta = jax.lax.stop_gradient(config.beta * pairs.mean_ratio())
    w, l = config.beta * pairs.chosen_ratio - delta, config.beta * pairs.rejected_ratio - delta
    return _by_answer(pairs, config, -jax.nn.log_sigmoid(w), -jax.nn.log_sigmoid(-l))


def nca_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """NCA (arXiv:2402.05369): −log σ(β r_w) − ½ log σ(−β r_w) − ½ log σ(−β r_l)."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    terms = -jax.nn.log_sigmoid(w) - 0.5 * jax.nn.log_sigmoid(-w), -0.5 * jax.nn.log_sigmoid(-l)
    return _by_answer(pairs, config, *terms)


def sppo_hard(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """SPPO with certain labels (arXiv:2405.00675): (r_w − 1 / (2β))² + (r_l + 1 / (2β))²."""
    target = 1 / (2 * config.beta)
    return _by_answer(pairs, config, jnp.square(pairs.chosen_ratio - target), jnp.square(pairs.rejected_ratio + target))


def apo_zero(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """APO-zero (arXiv:2408.06266): 1 − σ(β r_w) + σ(β r_l): for chosen answers better than the policy's own."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return _by_answer(pairs, config, jax.nn.sigmoid(-w), jax.nn.sigmoid(l))


def apo_down(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """APO-down (arXiv:2408.06266): σ(β r_w) + 1 − σ(β(r_w − r_l)): for chosen answers worse than the policy's own."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return jax.nn.sigmoid(w) + jax.nn.sigmoid(l - w)


def dpop(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """DPO-Positive (arXiv:2402.13228): `sigmoid` of β(r_w − r_l − λ max(0, −r_w)): chosen answers may not become less likely."""
    penalty = config.dpop_lambda * jax.nn.relu(-pairs.chosen_ratio)
    return _smoothed(config.beta * (pairs.chosen_ratio - pairs.rejected_ratio - penalty), config.label_smoothing)


def kto(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """KTO (arXiv:2402.01306): λ_w (1 − σ(β(r_w − z))) + λ_l (1 − σ(β(z − r_l))), λ the two weights.

    z, the distance of policy and reference, is max(0, mean r of the batch's answers that are there), without gradient: an estimate from
    answers that are labelled and not the policy's own. The paper takes it from answers set against other prompts, which would
    cost both models another pass.
    """
    z = jax.lax.stop_gradient(jax.nn.relu(pairs.mean_ratio()))
    w, l = config.beta * (pairs.chosen_ratio - z), config.beta * (pairs.rejected_ratio - z)
    return _by_answer(pairs, config, jax.nn.sigmoid(-w), jax.nn.sigmoid(l))


def simpo(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """SimPO (arXiv:2405.14734): −log σ(β(log π(y_w) / |y_w| − log π(y_l) / |y_l|) − γ); no reference."""
    margin = pairs.chosen / _at_least_one(pairs.chosen_lengths) - pairs.rejected / _at_least_one(pairs.rejected_lengths)
    return _smoothed(config.beta * margin - config.simpo_gamma, config.label_smoothing)


def orpo(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """ORPO's preference term (arXiv:2403.07691): −log σ(log odds(y_w) − log odds(y_l)); no reference.

    odds = p / (1 − p) with p the geometric mean of an answer's token probabilities. The whole of ORPO is nll + λ orpo.
    """
    del config

    def log_odds(log_p: Array) -> Array:
        # A probability of 1 has no odds.
        log_p = jnp.minimum(log_p, -1e-6)
        return log_p - jnp.log(-jnp.expm1(log_p))

    w = log_odds(pairs.chosen / _at_least_one(pairs.chosen_lengths))
    return -jax.nn.log_sigmoid(w - log_odds(pairs.rejected / _at_least_one(pairs.rejected_lengths)))


def nll(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """−log π(y_w) / |y_w|, the term that RPO adds to DPO (arXiv:2404.19733) and ORPO starts from."""
    del config
    return jnp.where(pairs.has_chosen, -pairs.chosen / _at_least_one(pairs.chosen_lengths), 0)


LOSSES: Mapping[Loss, Callable[[Pairs, PreferenceConfig], Array]] = {
    function.__name__: function
    for function in (
        sigmoid,
        sigmoid_norm,
        hinge,
        ipo,
        robust,
        exo_pair,
        bco,
        nca_pair,
        sppo_hard,
        apo_zero,
        apo_down,
        dpop,
        kto,
        simpo,
        orpo,
        nll,
    )
}


def preference_loss(pairs: Pairs, config: PreferenceConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of the terms, as a mean over places that hold a pair or a single answer, and figures about them.

    Single answers are for losses of `BY_ANSWER`; others make no sense of them.

    Returns:
        The loss, a float32 scalar, 0 where nothing is there; and sums, so that those of several batches add up. Counts: `weight`, places
        that hold anything; `pairs`, those that hold both answers; `count_chosen`, `count_rejected`. Over chosen and over rejected
        answers: `reward_chosen`, `reward_rejected` (β r); `log_ratio_chosen`, `log_ratio_rejected` (r); `log_prob_chosen`,
        `log_prob_rejected`; `length_chosen`, `length_rejected`. Over pairs: `reward_margin` and `reward_accuracy` (margins above 0; a tie
        counts half). `OVER` says the same. Where no term reads a reference, there are no log-ratios, and rewards are those of SimPO: β
        times the mean log-probability of a token.
    """
    total = sum(weight * LOSSES[name](pairs, config) for name, weight in config.terms.items())
    if config.needs_reference:
        chosen, rejected = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    else:
        chosen = config.beta * pairs.chosen / _at_least_one(pairs.chosen_lengths)
        rejected = config.beta * pairs.rejected / _at_least_one(pairs.rejected_lengths)
    figures = {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "reward_margin": chosen - rejected,
        "reward_accuracy": 0.5 * (1 + jnp.sign(chosen - rejected)),
        "log_prob_chosen": pairs.chosen,
        "log_prob_rejected": pairs.rejected,
        "length_chosen": pairs.chosen_lengths,
        "length_rejected": pairs.rejected_lengths,
    }
    if config.needs_reference:
        figures |= {"log_ratio_chosen": pairs.chosen_ratio, "log_ratio_rejected": pairs.rejected_ratio}
    where = {"count_chosen": pairs.has_chosen, "count_rejected": pairs.has_rejected, "pairs": pairs.are_whole}
    sums = {name: jnp.sum(jnp.where(where[OVER[name]], values, 0)) for name, values in figures.items()}
    counts = {name: jnp.sum(mask, dtype=jnp.float32) for name, mask in where.items()}
    weight = jnp.sum(pairs.are_there, dtype=jnp.float32)
    loss = jnp.sum(jnp.where(pairs.are_there, total, 0)) / jnp.maximum(weight, 1)
    return loss, {"weight": weight, **counts, **jax.lax.stop_gradient(sums)}


def _by_answer(pairs: Pairs, config: PreferenceConfig, chosen: Array, rejected: Array) -> Array:
    """The sum of the terms of the answers that are there, by their weights."""
    return pairs.add(config.desirable_weight * chosen, config.undesirable_weight * rejected)


def _smoothed(x: Array, e: float) -> Array:
    """−(1 − e) log σ(x) − e log σ(−x)."""
    loss = -jax.nn.log_sigmoid(x)
    # The same as the definition, since log σ(x) − log σ(−x) = x, and without a second logistic.
    return loss + e * x if e else loss


def _at_least_one(lengths: Array) -> Array:
    # An answer that is missing has length 0; it counts for nothing, but must not make a NaN of the gradient.
    return jnp.maximum(lengths, 1)
