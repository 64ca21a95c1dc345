"""Preference losses of the DPO family, computed from the log-probabilities of answers under policy and reference.

A loss is a function of `Pairs`, which are arrays [n], and returns the loss of each place, [n]. `preference_loss` returns the mean of a
weighted sum of losses. In the formulas, r_w = log π(y_w) − log π_ref(y_w) is the log-ratio of the chosen answer, r_l the log-ratio of the
rejected answer, and σ the logistic function.
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

PairLoss = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "apo_down", "dpop", "simpo", "orpo"]
"""Losses of pairs."""
AnswerLoss = Literal["bco", "nca_pair", "sppo_hard", "apo_zero", "kto", "nll"]
"""Losses of answers: sums of a term for the chosen and a term for the rejected answer. They also apply to single answers, which were
liked or disliked, without the other term."""
Loss = Literal[PairLoss, AnswerLoss]
WITHOUT_REFERENCE = frozenset({"simpo", "orpo", "nll"})
"""Losses that do not read the reference."""
BY_ANSWER = frozenset(get_args(AnswerLoss))
BY_BATCH = frozenset({"bco", "kto"})
"""Losses that use the mean log-ratio of a micro-batch."""
OVER: Mapping[str, str] = {
    **{
        f"{name}_{side}": f"count_{side}"
        for side in ("chosen", "rejected")
        for name in ("reward", "log_ratio", "log_prob", "length")
    },
    "reward_margin": "pairs",
    "reward_accuracy": "pairs",
}
"""Name of a sum of `preference_loss` → name of the count of its terms, where that is not `weight`."""


class Pairs(NamedTuple):
    """Log-probabilities and lengths of answers, [n] float32 each. A place holds a pair, a single answer, or nothing.

    A missing answer has length 0.
    """

    chosen: Float[Array, " n"]
    """log π of the chosen answer, summed over its tokens."""
    rejected: Float[Array, " n"]
    """log π of the rejected answer."""
    reference_chosen: Float[Array, " n"]
    """log π_ref of the chosen answer; 0 without a reference."""
    reference_rejected: Float[Array, " n"]
    """log π_ref of the rejected answer."""
    chosen_lengths: Float[Array, " n"]
    """Tokens of the chosen answer."""
    rejected_lengths: Float[Array, " n"]
    """Tokens of the rejected answer."""

    @property
    def has_chosen(self) -> Bool[Array, " n"]:
        """True where there is a chosen answer."""
        return self.chosen_lengths > 0

    @property
    def has_rejected(self) -> Bool[Array, " n"]:
        """True where there is a rejected answer."""
        return self.rejected_lengths > 0

    @property
    def chosen_ratio(self) -> Float[Array, " n"]:
        """Log-ratio r_w."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Float[Array, " n"]:
        """Log-ratio r_l."""
        return self.rejected - self.reference_rejected

    def add(self, chosen: Float[Array, " n"], rejected: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the sum of a value of the chosen and a value of the rejected answer. Missing answers add 0."""
        return jnp.where(self.has_chosen, chosen, 0) + jnp.where(self.has_rejected, rejected, 0)

    def mean_ratio(self) -> Float[Array, ""]:
        """Return the mean log-ratio of all answers, or 0 without answers."""
        answers = jnp.sum(self.has_chosen) + jnp.sum(self.has_rejected)
        return jnp.sum(self.add(self.chosen_ratio, self.rejected_ratio)) / jnp.maximum(answers, 1)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Losses of pairs or single answers. The settings of PLaMo 2 are not public; the default is DPO.

    A field that is out of range raises PlamoError.
    """

    losses: tuple[Loss, ...] = ("sigmoid",)
    """Terms of the loss (docs/post_training.md). RPO is sigmoid and nll; ORPO is nll and orpo."""
    weights: tuple[float, ...] = ()
    """Weight of each loss, in the same order; empty: all 1."""
    beta: float = 0.1
    """Scale β of the log-ratios. A larger value keeps the policy closer to the reference. SimPO needs 2 to 2.5."""
    label_smoothing: float = 0.0
    """sigmoid, sigmoid_norm, dpop, simpo, robust, exo_pair: probability that the labels of a pair are swapped."""
    ipo_average: bool = True
    """ipo: divide the log-ratios by the lengths of the answers; false: use sums, as in the paper."""
    simpo_gamma: float = 0.5
    """simpo: margin of the rewards."""
    dpop_lambda: float = 50.0
    """dpop: weight of the penalty on chosen answers that become less likely."""
    desirable_weight: float = 1.0
    """bco, nca_pair, sppo_hard, apo_zero, kto: weight of the terms of chosen answers."""
    undesirable_weight: float = 1.0
    """bco, nca_pair, sppo_hard, apo_zero, kto: weight of the terms of rejected answers."""

    def __post_init__(self) -> None:
        known = bool(self.losses) and all(name in get_args(Loss) for name in self.losses)
        require(self, "losses", known, f"one or several of {', '.join(get_args(Loss))}")
        require(self, "losses", len(set(self.losses)) == len(self.losses), "different terms")
        fits = not self.weights or len(self.weights) == len(self.losses)
        require(self, "weights", fits and all(map(math.isfinite, self.weights)), "finite, one a loss, or none")
        require(self, "weights", not self.weights or any(self.weights), "not all zero")
        require(self, "beta", 0 < self.beta < math.inf, "positive and finite")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, 0.5)")
        for name in ("simpo_gamma", "dpop_lambda", "desirable_weight", "undesirable_weight"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")

    @property
    def terms(self) -> dict[Loss, float]:
        """The weight of each loss, by name."""
        return dict(zip(self.losses, self.weights or [1.0] * len(self.losses), strict=True))

    @property
    def needs_reference(self) -> bool:
        """Whether a term reads the log-probabilities of the reference."""
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
    """IPO (arXiv:2310.12036): (r_w − r_l − 1 / (2β))². With `ipo_average`, r is divided by the length of the answer."""
    w, l = pairs.chosen_ratio, pairs.rejected_ratio
    if config.ipo_average:
        w, l = w / _at_least_one(pairs.chosen_lengths), l / _at_least_one(pairs.rejected_lengths)
    return jnp.square(w - l - 1 / (2 * config.beta))


def robust(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """Robust DPO (arXiv:2403.00409): (−(1 − ε) log σ(β(r_w − r_l)) + ε log σ(−β(r_w − r_l))) / (1 − 2ε).

    It is unbiased if a share ε of the labels is swapped.
    """
    x, e = config.beta * (pairs.chosen_ratio - pairs.rejected_ratio), config.label_smoothing
    return (-(1 - e) * jax.nn.log_sigmoid(x) + e * jax.nn.log_sigmoid(-x)) / (1 - 2 * e)


def exo_pair(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """EXO for pairs (arXiv:2402.00856, eq. 16): KL of (σ(x), σ(−x)) from (1 − ε, ε), with x = β(r_w − r_l).

    ε is the label smoothing, or 1e-3 if that is 0, because the divergence would be infinite.
    """
    x, e = config.beta * (pairs.chosen_ratio - pairs.rejected_ratio), config.label_smoothing or 1e-3
    win = jax.nn.sigmoid(x) * (jax.nn.log_sigmoid(x) - math.log(1 - e))
    return win + jax.nn.sigmoid(-x) * (jax.nn.log_sigmoid(-x) - math.log(e))


def bco(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """BCO (arXiv:2404.04656): −log σ(β r_w − δ) − log σ(−(β r_l − δ)), where δ is the mean β r of all answers.

    δ is the mean of the batch, without gradient. The paper uses a moving average.
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
    """APO-zero (arXiv:2408.06266): 1 − σ(β r_w) + σ(β r_l), for chosen answers that are better than the policy's own."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return _by_answer(pairs, config, jax.nn.sigmoid(-w), jax.nn.sigmoid(l))


def apo_down(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """APO-down (arXiv:2408.06266): σ(β r_w) + 1 − σ(β(r_w − r_l)), for chosen answers that are worse than the policy's own."""
    w, l = config.beta * pairs.chosen_ratio, config.beta * pairs.rejected_ratio
    return jax.nn.sigmoid(w) + jax.nn.sigmoid(l - w)


def dpop(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """DPO-Positive (arXiv:2402.13228): `sigmoid` of β(r_w − r_l − λ max(0, −r_w)), which keeps chosen answers likely."""
    penalty = config.dpop_lambda * jax.nn.relu(-pairs.chosen_ratio)
    return _smoothed(config.beta * (pairs.chosen_ratio - pairs.rejected_ratio - penalty), config.label_smoothing)


def kto(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """KTO (arXiv:2402.01306): λ_w (1 − σ(β(r_w − z))) + λ_l (1 − σ(β(z − r_l))), with λ_w the desirable and λ_l the undesirable weight.

    z estimates the distance of policy and reference: max(0, mean r of the answers of the batch), without gradient. The paper estimates it
    from answers paired with other prompts, which needs another forward pass of both models.
    """
    z = jax.lax.stop_gradient(jax.nn.relu(pairs.mean_ratio()))
    w, l = config.beta * (pairs.chosen_ratio - z), config.beta * (pairs.rejected_ratio - z)
    return _by_answer(pairs, config, jax.nn.sigmoid(-w), jax.nn.sigmoid(l))


def simpo(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """SimPO (arXiv:2405.14734): −log σ(β(log π(y_w) / |y_w| − log π(y_l) / |y_l|) − γ), without a reference."""
    margin = pairs.chosen / _at_least_one(pairs.chosen_lengths) - pairs.rejected / _at_least_one(pairs.rejected_lengths)
    return _smoothed(config.beta * margin - config.simpo_gamma, config.label_smoothing)


def orpo(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """Preference term of ORPO (arXiv:2403.07691): −log σ(log odds(y_w) − log odds(y_l)), without a reference.

    odds = p / (1 − p), where p is the geometric mean of the token probabilities of an answer. ORPO is nll + λ orpo.
    """
    del config

    def log_odds(log_p: Array) -> Array:
        # At a probability of 1 the odds are infinite.
        log_p = jnp.minimum(log_p, -1e-6)
        return log_p - jnp.log(-jnp.expm1(log_p))

    w = log_odds(pairs.chosen / _at_least_one(pairs.chosen_lengths))
    return -jax.nn.log_sigmoid(w - log_odds(pairs.rejected / _at_least_one(pairs.rejected_lengths)))


def nll(pairs: Pairs, config: PreferenceConfig) -> Float[Array, " n"]:
    """−log π(y_w) / |y_w|, the term that RPO (arXiv:2404.19733) adds to DPO, and the first term of ORPO."""
    del config
    return jnp.where(pairs.has_chosen, -pairs.chosen / _at_least_one(pairs.chosen_lengths), 0)


# Every name in `Loss` is the name of a function above.
LOSSES: Mapping[Loss, Callable[[Pairs, PreferenceConfig], Array]] = {name: globals()[name] for name in get_args(Loss)}


def preference_loss(pairs: Pairs, config: PreferenceConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the weighted sum of the losses, averaged over pairs and single answers, and sums for the log.

    Single answers are allowed only if all losses are in `BY_ANSWER`.

    Returns:
        The loss (0 without answers), and sums that can be added over batches; all are float32 scalars. Counts: `weight` (pairs and single
        answers), `pairs`, `count_chosen`, `count_rejected`. Sums over chosen and over rejected answers, with the suffixes `_chosen` and
        `_rejected`: `reward` (β r), `log_ratio` (r), `log_prob`, `length`. Sums over pairs: `reward_margin`, and `reward_accuracy` (1 for a
        margin above 0, ½ for a tie). If no loss reads a reference, there are no log-ratios, and the reward is defined as in SimPO: β times
        the mean log-probability of a token.
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
    has_any, has_both = pairs.has_chosen | pairs.has_rejected, pairs.has_chosen & pairs.has_rejected
    where = {"count_chosen": pairs.has_chosen, "count_rejected": pairs.has_rejected, "pairs": has_both}
    sums = {name: jnp.sum(jnp.where(where[OVER[name]], values, 0)) for name, values in figures.items()}
    counts = {name: jnp.sum(mask, dtype=jnp.float32) for name, mask in where.items()}
    weight = jnp.sum(has_any, dtype=jnp.float32)
    loss = jnp.sum(jnp.where(has_any, total, 0)) / jnp.maximum(weight, 1)
    return loss, {"weight": weight, **counts, **jax.lax.stop_gradient(sums)}


def _by_answer(pairs: Pairs, config: PreferenceConfig, chosen: Array, rejected: Array) -> Array:
    """Return the weighted sum of the terms of chosen and rejected answers. Missing answers add 0."""
    return pairs.add(config.desirable_weight * chosen, config.undesirable_weight * rejected)


def _smoothed(x: Array, e: float) -> Array:
    """Return −(1 − e) log σ(x) − e log σ(−x)."""
    loss = -jax.nn.log_sigmoid(x)
    # log σ(x) − log σ(−x) = x saves a second logistic function.
    return loss + e * x if e else loss


def _at_least_one(lengths: Array) -> Array:
    # A missing answer has length 0. It adds nothing to the loss, but division by 0 would make the gradient NaN.
    return jnp.maximum(lengths, 1)
