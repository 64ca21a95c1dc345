"""A linear quality model of texts: hashed character n-grams, logistic regression, calibrated probabilities.

The features of a text are its character n-grams of `NGRAMS` lengths, hashed into 2^20 bins (Weinberger et al., arXiv:0902.2206). Its logit
is the mean of their weights, as in fastText (arXiv:1607.01759), so the length of a text has no direct influence. Runs of white space count
as one space, and case is folded. Platt scaling on held-out texts turns logits into probabilities.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import new_file
from plamo2_jax.user_cache import compile_function

NGRAMS = (2, 5)
"""Smallest and largest number of characters of a feature."""
BINS = 1 << 20
LONGEST = 1 << 16
"""Number of characters of a text that are read. The rest is ignored, which bounds the time for one text."""


def characters(text: str) -> np.ndarray:
    """Return the code points [n] uint32 of the beginning of a text, with folded case and white space."""
    folded = " ".join(text[:LONGEST].casefold().split())
    return np.frombuffer(f" {folded} ".encode("utf-32-le", "surrogatepass"), np.uint32)


def features(text: str) -> np.ndarray:
    """Return the bins [k] int32 of all n-grams of a text."""
    codes = characters(text)
    bins = np.empty(len(codes) * (NGRAMS[1] - NGRAMS[0] + 1), np.int32)
    return bins[: compile_function(_features)(codes, bins, *NGRAMS)]


@dataclasses.dataclass(frozen=True)
class QualityModel:
    """A trained model.

    Attributes:
        weights: weight of each bin, [BINS] float32.
        bias: added to the mean weight.
        scale, shift: calibration: the probability is sigmoid(scale * logit + shift).
        training: training data of the model, as JSON: files, numbers of texts, held-out AUC.
    """

    weights: np.ndarray
    bias: float
    scale: float
    shift: float
    training: dict

    def logit(self, text: str) -> float:
        """Return the uncalibrated logit of a text."""
        return float(compile_function(_mean_weight)(characters(text), self.weights, *NGRAMS)) + self.bias

    def probability(self, text: str) -> float:
        """Return the calibrated probability that a text is good."""
        return float(sigmoid(self.scale * self.logit(text) + self.shift))

    def save(self, path: Path) -> None:
        """Write the model as a safetensors file."""
        numbers = np.array([self.bias, self.scale, self.shift], np.float64)
        metadata = {"format": "plamo2 quality 1", "training": json.dumps(self.training, ensure_ascii=False)}
        with new_file(path) as partial:
            save_file({"weights": self.weights, "numbers": numbers}, partial, metadata)

    @classmethod
    def load(cls, path: Path) -> QualityModel:
        """Read a model.

        Raises:
            PlamoError: the file is not a quality model.
        """
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "plamo2 quality 1" or set(file.keys()) != {"weights", "numbers"}:
                    raise PlamoError(f"{path} is not a quality model: it must be a file that plamo2 data quality wrote")
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in ("weights", "numbers")}
                if shapes != {"weights": (BINS,), "numbers": (3,)}:
                    raise PlamoError(f"{path} is not a quality model: its tensors have the shapes {shapes}")
                weights, numbers = file.get_tensor("weights"), file.get_tensor("numbers")
                training = json.loads(metadata.get("training", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise PlamoError(f"{path} cannot be read as a quality model: {error}") from error
        if weights.dtype != np.float32 or not (np.isfinite(weights).all() and np.isfinite(numbers).all()):
            raise PlamoError(f"{path} has weights that are not finite float32 numbers")
        return cls(weights, *map(float, numbers), training)


def sigmoid(x: np.ndarray | float) -> np.ndarray | float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))


def auc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float:
    """Return the area under the ROC curve: the probability that a positive has a higher score than a negative; ties count half.

    Raises:
        PlamoError: all labels are equal.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise PlamoError("the AUC is not defined for texts of one class: both positive and negative texts are needed")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _features(codes, bins, shortest, longest):
    """Write the bins of all n-grams; return their number."""
    count = 0
    for start in range(len(codes)):
        value = np.uint64(0)
        for length in range(1, min(longest, len(codes) - start) + 1):
            value = (value + np.uint64(codes[start + length - 1]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            if length >= shortest:
                bins[count] = np.int32(
                    (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(44)
                )
                count += 1
    return count


def _mean_weight(codes, weights, shortest, longest):
    """Return the mean weight of all n-grams; 0 without any."""
    total, count = 0.0, 0
    for start in range(len(codes)):
        value = np.uint64(0)
        for length in range(1, min(longest, len(codes) - start) + 1):
            value = (value + np.uint64(codes[start + length - 1]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            if length >= shortest:
                total += weights[(value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(44)]
                count += 1
    return total / max(count, 1)
