"""The family of direct preference losses: from log-probabilities of answers under policy and reference to a loss and its figures.

All are functions of a `Pairs`, arrays [n] of sums over the tokens of an answer, and give a loss a pair [n]; `preference_loss` adds
several up by weight and takes the mean. With r_w, r_l = log π(y_w) − log π_ref(y_w), log π(y_l) − log π_ref(y_l) for the chosen and
the rejected answer, and σ the logistic function, each docstring states its formula. DPO itself is arXiv:2305.18290.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "bco_pair",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "dpop",
    "kto_pair",
    "simpo",
    "orpo",
    "nll",
]
WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "nll"})
"""Losses that read no reference; a run of these alone needs none."""


class Pairs(NamedTuple):
    """Pairs of answers to the same prompts, [n] float32 each."""

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
    weights: Float[Array, " n"]
    """1 for a pair, 0 for a place that holds none."""

    @property
    def chosen_ratio(self) -> Float[Array, " n"]:
        """r_w."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Float[Array, " n"]:
        """r_l."""
        return self.rejected - self.reference_rejected

    def mean(self, values: Float[Array, " n"]) -> Float[Array, ""]:
        """Of a figure a pair, over the pairs that are there; 0 where there is none."""
        total = jnp.sum(jnp.where(self.weights > 0, self.weights * values, 0))
        return total / jnp.maximum(jnp.sum(self.weights), jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """What is minimised over pairs of answers. PLaMo 2's own settings are not public; the default is plain DPO.

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
    """kto_pair: of chosen answers."""
    undesirable_weight: float = 1.0
    """kto_pair: of rejected answers."""

    def __post_init__(self) -> None:
        known = bool(self.losses) and all(name in get_args(Loss) for name in self.losses)
        self._require("losses", known, f"one or several of {', '.join(get_args(Loss))}")
        self._require("losses", len(set(self.losses)) == len(self.losses), "different terms")
        fits = not self.weights or len(self.weights) == len(self.losses)
        self._require("weights", fits and all(map(math.isfinite, self.weights)), "finite, one a loss, or none")
        self._require("beta", 0 < self.beta < math.inf, "positive and finite")
        self._require("label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, 0.5)")
        for name in ("simpo_gamma", "dpop_lambda", "desirable_weight", "undesirable_weight"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"PreferenceConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")

    @property
    def terms(self) -> dict[Loss, float]:
        """Weights by loss."""
        return dict(zip(self.losses, self.weights or [1.0] * len(self.losses), strict=True))

    @property
    def needs_reference(self) -> bool:
        """Whether a term reads the reference's log-probabilities."""
        return not WITHOUT_REFERENCE.issuperset(self.losses)


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


def bco_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """BCO (arXiv:2404.04656): −log σ(β r_w − δ) − log σ(−(β r_l − δ)), δ the mean of all β r.

    δ is the batch's own mean, without gradient; the paper keeps a moving average of it.
    """
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    delta = jax.lax.stop_gradient(pairs.mean((w + l) / 2))
    return -jax.nn.log_sigmoid(w - delta) - jax.nn.log_sigmoid(delta - l)


def nca_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """NCA (arXiv:2402.05369): −log σ(β r_w) − ½ log σ(−β r_w) − ½ log σ(−β r_l)."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return -jax.nn.log_sigmoid(w) - 0.5 * (jax.nn.log_sigmoid(-w) + jax.nn.log_sigmoid(-l))


def sppo_hard(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """SPPO with certain labels (arXiv:2405.00675): (r_w − 1 / (2β))² + (r_l + 1 / (2β))²."""
    target = 1 / (2 * config.beta)
    return jnp.square(pairs.chosen_ratio - target) + jnp.square(pairs.rejected_ratio + target)


def apo_zero(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """APO-zero (arXiv:2408.06266): 1 − σ(β r_w) + σ(β r_l): for chosen answers better than the policy's own."""
    return jax.nn.sigmoid(-config.beta * pairs.chosen_ratio) + jax.nn.sigmoid(config.beta * pairs.rejected_ratio)


def apo_down(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """APO-down (arXiv:2408.06266): σ(β r_w) + 1 − σ(β(r_w − r_l)): for chosen answers worse than the policy's own."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return jax.nn.sigmoid(w) + jax.nn.sigmoid(l - w)


def dpop(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """DPO-Positive (arXiv:2402.13228): `sigmoid` of β(r_w − r_l − λ max(0, −r_w)): chosen answers may not become less likely."""
    penalty = config.dpop_lambda * jax.nn.relu(-pairs.chosen_ratio)
    return _smoothed(config.beta * (pairs.chosen_ratio - pairs.rejected_ratio - penalty), config.label_smoothing)


def kto_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """KTO (arXiv:2402.01306) on both answers of a pair: λ_w (1 − σ(β(r_w − z))) + λ_l (1 − σ(β(z − r_l))).

    z, the distance of policy and reference, is max(0, mean of all r of the batch), without gradient. The paper takes it from answers
    paired with other prompts, which would cost another pass; see `kto` for a z of one's own.
    """
    z = jax.lax.stop_gradient(jax.nn.relu(pairs.mean((pairs.chosen_ratio + pairs.rejected_ratio) / 2)))
    wins = kto(pairs.chosen_ratio, jnp.ones_like(pairs.chosen, bool), z, config)
    return wins + kto(pairs.rejected_ratio, jnp.zeros_like(pairs.chosen, bool), z, config)


def kto(ratios: Float[Array, " n"], desirable: Array, z: Array, config: PreferenceConfig) -> Float[Array, " n"]:
    """KTO (arXiv:2402.01306) of single answers: λ_w (1 − σ(β(r − z))) where desirable, λ_l (1 − σ(β(z − r))) elsewhere.

    Args:
        ratios: r [n].
        desirable: [n] bool.
        z: scalar, an estimate of KL(π ‖ π_ref) of at least 0; no gradient is taken through it.
        config: beta and the two weights.
    """
    x = config.beta * (ratios - jax.lax.stop_gradient(z))
    good, bad = config.desirable_weight * jax.nn.sigmoid(-x), config.undesirable_weight * jax.nn.sigmoid(x)
    return jnp.where(desirable, good, bad)


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
    return -pairs.chosen / _at_least_one(pairs.chosen_lengths)


LOSSES: Mapping[Loss, Callable[[Pairs, PreferenceConfig], Array]] = {
    function.__name__: function
    for function in (
        sigmoid,
        sigmoid_norm,
        hinge,
        ipo,
        robust,
        exo_pair,
        bco_pair,
        nca_pair,
        sppo_hard,
        apo_zero,
        apo_down,
        dpop,
        kto_pair,
        simpo,
        orpo,
        nll,
    )
}


def preference_loss(pairs: Pairs, config: PreferenceConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of the terms, as a mean over pairs, and figures about them.

    Returns:
        The loss, a float32 scalar, 0 where no pair is there; and sums over pairs, so that those of several batches add up: `weight`,
        the number of pairs; `reward_chosen`, `reward_rejected` (β r), `reward_margin` and `reward_accuracy` (margins above 0; a tie
        counts half); `log_ratio_chosen`, `log_ratio_rejected` (r); `log_prob_chosen`, `log_prob_rejected`; `length_chosen`,
        `length_rejected`. Where no term reads a reference, rewards are those of SimPO: β times the mean log-probability of a token.
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
    sums = {name: jnp.sum(jnp.where(pairs.weights > 0, values, 0)) for name, values in figures.items()}
    return pairs.mean(total), {"weight": jnp.sum(pairs.weights), **jax.lax.stop_gradient(sums)}


def _smoothed(x: Array, e: float) -> Array:
    """−(1 − e) log σ(x) − e log σ(−x)."""
    loss = -jax.nn.log_sigmoid(x)
    # The same as the definition, since log σ(x) − log σ(−x) = x, and without a second logistic.
    return loss + e * x if e else loss


def _at_least_one(lengths: Array) -> Array:
    # A place without a pair has length 0; it is weighed 0, but must not make a NaN of the gradient.
    return jnp.maximum(lengths, 1)
