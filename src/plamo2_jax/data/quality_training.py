"""Training of the quality model on texts with labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.data.quality import BINS, QualityModel, auc, features, sigmoid
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.validation import require

_POSITIONS = 8192  # Features of a text that are trained on in one step, drawn at random from longer texts.


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Settings of training.

    Attributes:
        epochs: Passes over the training texts.
        batch_size: Texts per step.
        learning_rate: Learning rate of Adam, decayed to 0.
        weight_decay: Decay of the weights in each step, relative to the learning rate.
        heldout_fraction: Share of texts for the calibration and the AUC.
        seed: Random seed of the split and the order.
    """

    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 0.3
    weight_decay: float = 1e-4
    heldout_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "learning_rate", self.learning_rate > 0, "positive")
        require(self, "weight_decay", self.weight_decay >= 0, "zero or positive")
        require(self, "heldout_fraction", 0 < self.heldout_fraction < 1, "between 0 and 1")


def train_quality(texts: Sequence[str], targets: Sequence[float], config: QualityConfig | None = None) -> QualityModel:
    """Train a model.

    Args:
        texts: the texts.
        targets: probability that each text is good, in [0, 1]: 0 and 1 for given classes, score / 5 for the scores of a judge. Texts
            with a target of at least 0.5 are the positives of the AUC.

    Raises:
        PlamoError: there are not at least ten texts on each side of 0.5, or `heldout_fraction` leaves one side without training texts.
    """
    config = config or QualityConfig()
    wanted = np.asarray(targets, np.float32)
    if wanted.shape != (len(texts),) or not ((wanted >= 0) & (wanted <= 1)).all():
        raise PlamoError("the targets are not allowed: a quality model needs one target in [0, 1] for each text")
    positives = int(np.count_nonzero(wanted >= 0.5))
    if min(positives, len(wanted) - positives) < 10:
        raise PlamoError(
            f"{positives} good and {len(wanted) - positives} bad texts are too few: a quality model needs at least 10 of each"
        )
    rng = np.random.default_rng(config.seed)
    heldout = _stratified(wanted >= 0.5, config.heldout_fraction, rng)
    train = np.flatnonzero(~heldout)
    for side, name in ((True, "good"), (False, "bad")):
        if not np.any((wanted[train] >= 0.5) == side):
            raise PlamoError(
                f"heldout_fraction={config.heldout_fraction:g} leaves no {name} text for training ({positives} good and "
                f"{len(wanted) - positives} bad texts): both classes need at least one. Lower heldout_fraction, or give more texts"
            )
    bins = [features(text) for text in texts]
    steps = config.epochs * -(-len(train) // config.batch_size)
    optimizer = optax.adamw(optax.linear_schedule(config.learning_rate, 0.0, steps), weight_decay=config.weight_decay)
    params = {"weights": jnp.zeros(BINS), "bias": jnp.zeros(())}
    state = optimizer.init(params)
    with tqdm(total=steps, desc="train the quality model", unit="step") as progress:
        for _ in range(config.epochs):
            order = rng.permutation(train)
            for start in range(0, len(order), config.batch_size):
                chosen = order[start : start + config.batch_size]
                batch, mask = _batch([bins[i] for i in chosen], config.batch_size, rng)
                labels = np.pad(wanted[chosen], (0, config.batch_size - len(chosen)))
                params, state = _step(params, state, batch, mask, labels, optimizer=optimizer)
                progress.update()
    weights, bias = np.asarray(params["weights"]), float(params["bias"])
    logits = np.array([weights[bins[i]].mean() + bias for i in np.flatnonzero(heldout)])
    scale, shift = platt(logits, wanted[heldout])
    probabilities = sigmoid(scale * logits + shift)
    training = {
        "texts": len(texts),
        "good": positives,
        "heldout": int(heldout.sum()),
        "heldout_auc": round(auc(logits, wanted[heldout] >= 0.5), 6),
        "length_auc": round(auc([len(texts[i]) for i in np.flatnonzero(heldout)], wanted[heldout] >= 0.5), 6),
        "calibration_error": round(calibration_error(probabilities, wanted[heldout]), 6),
        **dataclasses.asdict(config),
    }
    return QualityModel(weights, bias, scale, shift, training)


def _stratified(good: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which texts are held out, [n] bool: the share of both classes, at least one of each."""
    heldout = np.zeros(len(good), bool)
    for side in (True, False):
        members = rng.permutation(np.flatnonzero(good == side))
        heldout[members[: max(1, round(share * len(members)))]] = True
    return heldout


def _batch(bins: Sequence[np.ndarray], rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [b, k] int32 of a batch and which of them count, [b, k] bool. Few different k occur."""
    chosen = [rng.choice(some, _POSITIONS, replace=False) if len(some) > _POSITIONS else some for some in bins]
    size = max(256, 1 << (max(map(len, chosen)) - 1).bit_length())
    batch, mask = np.zeros((rows, size), np.int32), np.zeros((rows, size), bool)
    for i, some in enumerate(chosen):
        batch[i, : len(some)], mask[i, : len(some)] = some, True
    return batch, mask


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnames=("params", "state"))
def _step(
    params: dict,
    state: optax.OptState,
    bins: Int[Array, "b k"],
    mask: Bool[Array, "b k"],
    targets: Float[Array, " b"],
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[dict, optax.OptState]:
    counts = jnp.sum(mask, axis=1)

    def loss(params: dict) -> Float[Array, ""]:
        logits = jnp.sum(jnp.where(mask, params["weights"][bins], 0), axis=1) / jnp.maximum(counts, 1) + params["bias"]
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        # Rows of padding have no features.
        return jnp.sum(jnp.where(counts > 0, losses, 0)) / jnp.maximum(jnp.sum(counts > 0), 1)

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def platt(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return scale and shift of sigmoid(scale * logit + shift) with the smallest cross-entropy, by Newton's method with a weak prior.

    The prior, Normal(1, 10) and Normal(0, 10), keeps the numbers finite where the classes are separated.
    """
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    found, prior = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    for _ in range(50):
        p = sigmoid(design @ found)
        gradient = design.T @ (p - targets) + (found - prior) / 100
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.eye(2) / 100
        step = np.linalg.solve(hessian, gradient)
        # Newton's steps overshoot far from the minimum.
        found = found - step * min(1.0, 2.0 / max(1e-12, np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return float(found[0]), float(found[1])


def calibration_error(probabilities: np.ndarray, targets: np.ndarray, groups: int = 10) -> float:
    """Return the expected calibration error: the mean distance of predicted and actual shares in groups of equal size."""
    order = np.argsort(probabilities)
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return float(sum(len(p) * abs(probabilities[p].mean() - targets[p].mean()) for p in parts) / len(order))
