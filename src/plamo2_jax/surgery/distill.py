"""Distillation: a student learns from the text and from a teacher's distribution of the next token.

    loss = alpha * temperature² * KL(teacher ‖ student) + (1 - alpha) * cross-entropy + hidden_weight * hidden + z-loss

The forward KL of distributions softened by a temperature follows Hinton et al. (arXiv:1503.02531). Minitron (arXiv:2407.14679) found that
logits alone are enough for pruned models. With `top_k`, the k most likely tokens of the teacher are compared one by one, and all others as
one more token. This is a lower bound of the full divergence. It is zero exactly if student and teacher agree on these k + 1 probabilities.
(The k probabilities are not renormalized: the divergence from a renormalized teacher is not zero for an equal student.) The k logits and
their normalizer come from the teacher, or from disk (`surgery.teacher_logits`).

Logits of student and teacher exist for `chunk` positions of each row at a time. The backward pass computes them again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from plamo2_jax.checkpoint import TEACHER_FINGERPRINT, describe_frozen
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2
from plamo2_jax.model.loss import Prediction, cross_entropy, largest_chunk, map_logits, predict, prediction_sums
from plamo2_jax.surgery.teacher_logits import (
    TEACHER_IDS,
    TEACHER_LOG_Z,
    TEACHER_LOGITS,
    TeacherLogits,
    Top,
    logits_spec,
    teacher_shape,
    top_logits,
)
from plamo2_jax.train.config import FREE, RunConfig, TaskConfig
from plamo2_jax.train.pretraining import heldout_evaluator
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require


def kl_full(teacher_logits: jax.Array, student_logits: jax.Array, temperature: float) -> jax.Array:
    """Return KL(teacher ‖ student) of softened distributions [..., v]: [...] float32, in nats, not multiplied by temperature²."""
    log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def kl_top(teacher: Top, student_logits: jax.Array, temperature: float) -> jax.Array:
    """Return the KL divergence of the distributions over the teacher's k most likely tokens and "any other": [...] float32, in nats.

    Args:
        teacher: Result of `top_logits` at the same temperature.
        student_logits: [..., v], before the division by the temperature.
    """
    logits = student_logits.astype(jnp.float32) / temperature
    log_q = jnp.take_along_axis(logits, teacher.ids, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_p = teacher.logits - teacher.log_z[..., None]
    p = jnp.exp(log_p)
    total = jnp.sum(p * (log_p - log_q), axis=-1)
    if teacher.ids.shape[-1] == logits.shape[-1]:
        return total
    rest_p, rest_q = 1 - jnp.sum(p, axis=-1), 1 - jnp.sum(jnp.exp(log_q), axis=-1)
    smallest = 1e-6  # A smaller rest is only rounding error of the sum.
    rest_p, rest_q = jnp.maximum(rest_p, smallest), jnp.maximum(rest_q, smallest)
    return total + rest_p * (jnp.log(rest_p) - jnp.log(rest_q))


def hidden_distance(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Return the mean squared difference of two residual streams [..., d], each scaled to unit root mean square: [...] float32.

    If the widths differ, a fixed random projection maps the teacher's stream to the student's width. It approximately preserves distances
    (Johnson-Lindenstrauss), and a checkpoint needs no further parameters.
    """
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    wide, narrow = teacher.shape[-1], student.shape[-1]
    if wide != narrow:
        teacher = teacher @ (jax.random.normal(jax.random.key(0), (wide, narrow)) / math.sqrt(wide))

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    return jnp.mean(jnp.square(unit(jax.lax.stop_gradient(teacher)) - unit(student)), axis=-1)


TEACHER = "teacher"
"""Name of the teacher's parameters among the frozen arrays of the task."""


def distillation_loss(
    model: Plamo2,
    byte_lengths: jax.Array,
    config: Distill,
    teacher: Plamo2 | None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossFn:
    """Return the loss function of distillation.

    Its metrics are the metrics of `train.pretraining.next_token` and the sums `kl` and `hidden`, without their coefficients.

    Args:
        model: The student.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
        teacher: The teacher. Its parameters are the frozen arrays TEACHER. None: batches contain the teacher's logits.
        z_loss: Coefficient of the z-loss.
        chunk: Number of positions of each row whose logits exist at a time; None: at most 128.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        weights = batch["loss_weights"]
        inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
        student, _ = model.apply({"params": params}, *inputs, method="features")
        if teacher is None:
            compared = Top(*(batch[name] for name in (TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z)))
        else:
            features, _ = teacher.apply({"params": frozen[TEACHER]}, *inputs, method="features")
            compared = jax.lax.stop_gradient(features)

        def compare(logits: jax.Array, arrays: tuple[jax.Array, Any]) -> tuple[Prediction, jax.Array]:
            """Return the student's prediction of the targets at some positions, and its divergence from the teacher."""
            targets, top = arrays
            if teacher is not None:
                top = teacher.apply({"params": frozen[TEACHER]}, top, method="logits")
            # The divergence is traced before the prediction: another order changes the last bits on CPU.
            if teacher is not None and config.top_k is None:
                kl = kl_full(top, logits, config.temperature)
            else:
                top = top if teacher is None else top_logits(top, config.temperature, config.top_k)
                kl = kl_top(top, logits, config.temperature)
            return predict(logits, targets), kl

        size = chunk or largest_chunk(model, batch["tokens"].shape[1], 128)
        prediction, kl = map_logits(model, params, student, compare, (batch["targets"], compared), size)
        text_loss, z = cross_entropy(prediction, weights, 0.0)
        weight = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
        kl_sum = jnp.sum(weights * kl)
        loss = config.alpha * config.temperature**2 * kl_sum / weight + (1 - config.alpha) * text_loss
        loss += z_loss * z / weight
        metrics = {"weight": jnp.sum(weights), "z_loss": z_loss * z, "kl": kl_sum}
        if config.hidden_weight:
            distance = jnp.sum(weights * hidden_distance(compared, student))
            loss += config.hidden_weight * distance / weight
            metrics["hidden"] = distance
        sums = prediction_sums(prediction, batch["targets"], weights, byte_lengths)
        return loss, metrics | sums

    return loss_fn


@dataclasses.dataclass(frozen=True)
class Distill(TaskConfig):
    """Train all parameters of the model on text and on a teacher's distribution of the next token (arXiv:1503.02531).

    Raises:
        PlamoError: A field is out of range. The message names the field, its value and what is allowed.
    """

    kind: ClassVar[str] = "distill"

    teacher: Path = dataclasses.field(metadata=FREE)
    """Teacher model, with the same vocabulary as the student: a run folder or a folder in Hugging Face format."""
    temperature: float = 1.0
    """Temperature of the distributions of teacher and student."""
    alpha: float = 0.5
    """Weight of the KL divergence in the loss, from 0 to 1. The cross-entropy with the text has the weight 1 - alpha."""
    top_k: int | None = None
    """Number of most likely teacher tokens that are compared one by one; all others count as one token. None: compare all tokens one by
    one."""
    hidden_weight: float = 0.0
    """Coefficient of the distance between the final hidden states of teacher and student."""
    logits: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Folder of teacher logits that `plamo2 distill` wrote; none: the teacher runs together with the student."""
    z_loss: float = 1e-4
    """Coefficient of the z-loss log(Z)², which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 turns it off."""

    def __post_init__(self) -> None:
        require(self, "z_loss", 0 <= self.z_loss < math.inf, "zero or positive, and finite")
        require(self, "temperature", 0 < self.temperature < math.inf, "positive and finite")
        require(self, "alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        require(self, "top_k", self.top_k is None or self.top_k >= 1, "at least 1, or none")
        require(self, "hidden_weight", 0 <= self.hidden_weight < math.inf, "zero or positive")
        if self.logits is not None:
            require(self, "hidden_weight", self.hidden_weight == 0, "0 with precomputed logits")

    @property
    def inputs(self) -> Mapping[str, Path | None]:
        """Folders of the teacher and of its logits."""
        return {"teacher": self.teacher, "logits": self.logits}

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Return the train task.

        Raises:
            PlamoError: The vocabularies of teacher and student differ, or the precomputed logits belong to another teacher, to other data
                or to another temperature.
        """
        teacher = None
        if self.logits is None:
            # The teacher uses the student's implementations and mesh. It has no backward pass, so it needs no remat.
            shape = teacher_shape(self.teacher, self.top_k, run.model)
            teacher = context.model.clone(config=shape, remat="none")
            # The activation dtype would be enough for its matrices, but norms and decay rates need float32.
            frozen = {TEACHER: context.load_params(self.teacher, teacher)}
            described = describe_frozen(TEACHER_FINGERPRINT, teacher.config, frozen[TEACHER])
            added = {"frozen": frozen, "forward_only": (teacher.config,), "description": described}
        elif context.is_planned and self.top_k is not None:
            added = {"batch_spec": logits_spec(self.top_k)}
        else:
            store = TeacherLogits.open(self.logits)
            if not context.is_planned:
                wanted = (self.teacher, self.temperature, self.top_k)
                store.check(*wanted, context.tokenizer.fingerprint, run.data.sequence_length)
            added = {"batch_spec": store.batch_spec, "transform_batch": store.transform_batch}
        loss_fn = distillation_loss(context.model, context.byte_lengths, self, teacher, self.z_loss, run.loss_chunk)
        return TrainTask(
            loss_fn=loss_fn,
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=heldout_evaluator(context, run.loss_chunk),
            **added,
        )
