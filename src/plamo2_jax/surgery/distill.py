"""Distillation: a student learns a teacher's distribution of the next token beside the text itself.

    loss = alpha * temperature² * KL(teacher ‖ student) + (1 - alpha) * cross-entropy + hidden_weight * hidden + z-loss

The forward KL of distributions softened by a temperature is Hinton et al.'s (arXiv:1503.02531); Minitron (arXiv:2407.14679) found
logits alone to do for pruned models. With `top_k` the teacher's k likeliest tokens count one by one and all others as one more
token: a lower bound of the whole divergence, which is still zero exactly where student and teacher agree on these k + 1 (a teacher
cut to k and renormalised would pull an equal student away from it). The k logits and their normaliser may come from disk
(`surgery.teacher_logits`) instead of from the teacher.

Logits of student and teacher exist for `chunk` positions of each row at a time, in the backward pass too, which makes them again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import load_model, read_shape
from plamo2_jax.eval.perplexity import Prediction, predict, prediction_sums
from plamo2_jax.model import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.rules import Strategy, param_shardings
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.distillation import Beside, DistillationConfig
from plamo2_jax.train.objective import Batch, Metrics, cross_entropy

TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z = "teacher_ids", "teacher_logits", "teacher_log_z"
"""What a batch holds of precomputed logits: [b, t, k] int32, [b, t, k] float32 divided by the temperature, [b, t] float32, the log
of their softmax's normaliser over the whole vocabulary."""


class Top(NamedTuple):
    """A teacher's likeliest tokens: ids [..., k], logits over the temperature [..., k], log-normaliser [...]."""

    ids: jax.Array
    logits: jax.Array
    log_z: jax.Array


def top_logits(logits: jax.Array, temperature: float, top_k: int) -> Top:
    """The `top_k` likeliest of softened logits [..., v], float32."""
    logits = logits.astype(jnp.float32) / temperature
    values, ids = jax.lax.top_k(logits, top_k)
    return Top(ids, values, jax.nn.logsumexp(logits, axis=-1))


def kl_full(teacher_logits: jax.Array, student_logits: jax.Array, temperature: float) -> jax.Array:
    """KL(teacher ‖ student) of softened distributions [..., v], in nats [...], float32; not multiplied by temperature²."""
    log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def kl_top(teacher: Top, student_logits: jax.Array, temperature: float) -> jax.Array:
    """KL of the distributions over the teacher's k likeliest tokens and "any other", in nats [...], float32.

    Args:
        teacher: from `top_logits`, at the same temperature.
        student_logits: [..., v].
        temperature: of the student.
    """
    logits = student_logits.astype(jnp.float32) / temperature
    log_q = jnp.take_along_axis(logits, teacher.ids, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_p = teacher.logits - teacher.log_z[..., None]
    p = jnp.exp(log_p)
    total = jnp.sum(p * (log_p - log_q), axis=-1)
    if teacher.ids.shape[-1] == logits.shape[-1]:
        return total
    rest_p, rest_q = 1 - jnp.sum(p, axis=-1), 1 - jnp.sum(jnp.exp(log_q), axis=-1)
    # Below this nothing is left but the rounding of a sum to one.
    smallest = 1e-6
    rest_p, rest_q = jnp.maximum(rest_p, smallest), jnp.maximum(rest_q, smallest)
    return total + rest_p * (jnp.log(rest_p) - jnp.log(rest_q))


def hidden_distance(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Mean squared difference of two residual streams [..., d] brought to unit root mean square, [...] float32.

    A student of another width is compared with the teacher's stream under a fixed random projection, which keeps distances up to a
    factor (Johnson-Lindenstrauss) and adds no parameters that a checkpoint would have to carry.
    """
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    wide, narrow = teacher.shape[-1], student.shape[-1]
    if wide != narrow:
        projection = jax.random.normal(jax.random.key(0), (wide, narrow)) / math.sqrt(wide)
        teacher = teacher @ projection

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    return jnp.mean(jnp.square(unit(jax.lax.stop_gradient(teacher)) - unit(student)), axis=-1)


class Distillation:
    """The objective. `frozen` holds the teacher's parameters, which the train step hands back at each call: they are an argument of
    the compiled step, not constants in it.

    Args:
        model: the student.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
        config: how to distil.
        teacher: the teacher's network and parameters; None where batches hold its logits.
        z_loss: coefficient of the z-loss.
        chunk: positions of each row whose logits exist at a time; None: at most 128.
    """

    def __init__(
        self,
        model: Plamo2,
        byte_lengths: jax.Array,
        config: DistillationConfig,
        teacher: tuple[Plamo2, Any] | None,
        z_loss: float = 0.0,
        chunk: int | None = None,
    ):
        self._model, self._lengths, self._config = model, byte_lengths, config
        self._teacher, self.frozen = (None, {}) if teacher is None else teacher
        self.forward_only = () if teacher is None else (self._teacher.config,)
        self._z_loss, self._chunk = z_loss, chunk
        self.extra: Mapping[str, tuple[tuple[int, ...], Any]] = {}
        """What `augment` adds to a batch: name → (shape after [b, t], dtype)."""

    def augment(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """A batch on the host with what the objective wants besides."""
        return batch

    def __call__(self, params: Any, batch: Batch, rng: jax.Array, frozen: Any = None) -> tuple[jax.Array, Metrics]:
        """The loss, and sums: those of `train.objective.next_token`, `kl` and `hidden` (unweighted by their coefficients)."""
        del rng
        config, weights = self._config, batch["loss_weights"]
        frozen = self.frozen if frozen is None else frozen
        inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
        student, _ = self._model.apply({"params": params}, *inputs, method="features")
        teacher = None
        if self._teacher is not None:
            teacher, _ = self._teacher.apply({"params": frozen}, *inputs, method="features")
            teacher = jax.lax.stop_gradient(teacher)
        prediction, kl = self._by_chunks(params, frozen, student, teacher, batch)
        text_loss, z = cross_entropy(prediction, weights, 0.0)
        weight = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
        kl_sum = jnp.sum(weights * kl)
        loss = config.alpha * config.temperature**2 * kl_sum / weight + (1 - config.alpha) * text_loss
        loss += self._z_loss * z / weight
        metrics = {"weight": jnp.sum(weights), "z_loss": self._z_loss * z, "kl": kl_sum}
        if config.hidden_weight:
            distance = jnp.sum(weights * hidden_distance(teacher, student))
            loss += config.hidden_weight * distance / weight
            metrics["hidden"] = distance
        sums = prediction_sums(prediction, batch["targets"], weights, self._lengths)
        return loss, metrics | sums

    def _by_chunks(
        self, params: Any, frozen: Any, student: jax.Array, teacher: jax.Array | None, batch: Batch
    ) -> tuple[Prediction, jax.Array]:
        """What the student says of the targets [b, t], and its divergence from the teacher [b, t]."""
        b, t = batch["tokens"].shape
        chunk = self._chunk or max(size for size in range(1, min(t, 128) + 1) if t % size == 0)
        if t % chunk:
            raise ValueError(f"loss_chunk={chunk} is not allowed: it must divide the {t} positions of a row")
        config = self._config
        pieces = {"x": student, "targets": batch["targets"]}
        if teacher is None:
            pieces |= {name: batch[name] for name in (TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z)}
        else:
            pieces["teacher"] = teacher

        def cut(array: jax.Array) -> jax.Array:
            return jnp.moveaxis(array.reshape(b, t // chunk, chunk, *array.shape[2:]), 1, 0)

        @jax.checkpoint
        def step(carry: None, piece: Mapping[str, jax.Array]) -> tuple[None, tuple[Prediction, jax.Array]]:
            logits = self._model.apply({"params": params}, piece["x"], method="logits")
            if teacher is None:
                top = Top(piece[TEACHER_IDS], piece[TEACHER_LOGITS], piece[TEACHER_LOG_Z])
                kl = kl_top(top, logits, config.temperature)
            else:
                theirs = self._teacher.apply({"params": frozen}, piece["teacher"], method="logits")
                if config.top_k is None:
                    kl = kl_full(theirs, logits, config.temperature)
                else:
                    kl = kl_top(top_logits(theirs, config.temperature, config.top_k), logits, config.temperature)
            return carry, (predict(logits, piece["targets"]), kl)

        _, (prediction, kl) = jax.lax.scan(step, None, jax.tree.map(cut, pieces))

        def join(array: jax.Array) -> jax.Array:
            return jnp.moveaxis(array, 0, 1).reshape(b, t)

        return Prediction(*map(join, prediction)), join(kl)


def load_teacher(
    config: DistillationConfig, mesh: jax.sharding.Mesh | None, sharding: Strategy, dtype: Any
) -> tuple[Plamo2, Any]:
    """The teacher's network and parameters, divided over the mesh as the student's are.

    Raises:
        ValueError: its folder is missing, damaged or no model.
    """
    folder = config.teacher
    model = Plamo2(read_shape(folder), dtype=jnp.dtype(dtype), mesh=mesh)
    shardings = None
    if mesh is not None:
        shardings = param_shardings(logical_axes(model), abstract_params(model), mesh, sharding)
    # Its matrices are only read: the activations' dtype would do, but norms and decay rates are wanted in float32.
    return model, load_model(folder, shardings=shardings).params


def make_objective(config: PretrainConfig, beside: Beside) -> Distillation:
    """The objective of a run whose configuration has `distillation`: what the train loop is handed.

    Raises:
        ValueError: teacher and student have other vocabularies, or the precomputed logits are not of this teacher, data or
        temperature.
    """
    distillation = config.distillation
    if distillation.logits is not None:
        from plamo2_jax.surgery.teacher_logits import TeacherLogits

        store = TeacherLogits.open(distillation.logits)
        store.check(distillation, beside.tokenizer.fingerprint, config.data.sequence_length)
        objective = Distillation(
            beside.model, beside.byte_lengths, distillation, None, config.z_loss, config.loss_chunk
        )
        objective.augment, objective.extra = store.augment, store.extra
        return objective
    model, params = load_teacher(distillation, beside.mesh, config.sharding, config.dtype)
    check_vocabulary(model.config, config.model, distillation)
    return Distillation(
        beside.model, beside.byte_lengths, distillation, (model, params), config.z_loss, config.loss_chunk
    )


def check_vocabulary(teacher: ModelConfig, student: ModelConfig, config: DistillationConfig) -> None:
    """Raise ValueError unless the logits of both stand for the same tokens, and there are k of them."""
    if teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f"{config.teacher} has vocab_size={teacher.vocab_size} and the student {student.vocab_size}; distillation compares logits of "
            "the same tokens"
        )
    if config.top_k is not None and config.top_k > teacher.vocab_size:
        raise ValueError(
            f"distillation.top_k={config.top_k} is not allowed: it must be at most vocab_size={teacher.vocab_size}"
        )


def fingerprint(config: ModelConfig, params: Any, samples: int = 512) -> str:
    """Of a teacher: BLAKE2b of its shape and of values spread over every parameter. Tells models apart, does not certify them."""
    digest = hashlib.blake2b(json.dumps(checkpoint.model_json(config), sort_keys=True).encode(), digest_size=16)
    for path, leaf in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        places = np.unique(np.linspace(0, leaf.size - 1, samples).astype(np.int64))
        values = leaf[np.unravel_index(places, leaf.shape)]
        digest.update(path.encode() + np.asarray(jax.device_get(values), np.float32).tobytes())
    return digest.hexdigest()
