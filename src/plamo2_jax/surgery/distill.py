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

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

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
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.distillation import DistillationConfig
from plamo2_jax.train.pretraining import pretraining_task
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask


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


TEACHER = "teacher"
"""Name of the teacher's parameters among the frozen arrays of the task."""


def distillation_loss(
    model: Plamo2,
    byte_lengths: jax.Array,
    config: DistillationConfig,
    teacher: Plamo2 | None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossFn:
    """Return the loss function of distillation.

    Its sums are those of `train.pretraining.next_token`, `kl` and `hidden` (unweighted by their coefficients).

    Args:
        model: the student.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
        config: how to distil.
        teacher: the teacher's network; its parameters are frozen under TEACHER. None where batches hold its logits.
        z_loss: coefficient of the z-loss.
        chunk: positions of each row whose logits exist at a time; None: at most 128.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        weights = batch["loss_weights"]
        inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
        student, _ = model.apply({"params": params}, *inputs, method="features")
        streams = {"student": student}
        if teacher is not None:
            theirs, _ = teacher.apply({"params": frozen[TEACHER]}, *inputs, method="features")
            streams["teacher"] = jax.lax.stop_gradient(theirs)
        prediction, kl = compare(params, frozen, streams, batch)
        text_loss, z = cross_entropy(prediction, weights, 0.0)
        weight = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
        kl_sum = jnp.sum(weights * kl)
        loss = config.alpha * config.temperature**2 * kl_sum / weight + (1 - config.alpha) * text_loss
        loss += z_loss * z / weight
        metrics = {"weight": jnp.sum(weights), "z_loss": z_loss * z, "kl": kl_sum}
        if config.hidden_weight:
            distance = jnp.sum(weights * hidden_distance(streams["teacher"], student))
            loss += config.hidden_weight * distance / weight
            metrics["hidden"] = distance
        sums = prediction_sums(prediction, batch["targets"], weights, byte_lengths)
        return loss, metrics | sums

    def compare(
        params: Any, frozen: Mapping[str, Any], streams: Mapping[str, jax.Array], batch: Batch
    ) -> tuple[Prediction, jax.Array]:
        """Return the student's prediction of the targets [b, t], and its divergence from the teacher [b, t]."""
        names = (TEACHER_IDS, TEACHER_LOGITS, TEACHER_LOG_Z)
        arrays = streams["teacher"] if teacher is not None else Top(*(batch[name] for name in names))

        def compare_logits(logits: jax.Array, pieces: tuple[jax.Array, Any]) -> tuple[Prediction, jax.Array]:
            targets, theirs = pieces
            if teacher is not None:
                theirs = teacher.apply({"params": frozen[TEACHER]}, theirs, method="logits")
            if teacher is not None and config.top_k is None:
                kl = kl_full(theirs, logits, config.temperature)
            else:
                top = theirs if teacher is None else top_logits(theirs, config.temperature, config.top_k)
                kl = kl_top(top, logits, config.temperature)
            return predict(logits, targets), kl

        size = chunk or largest_chunk(batch["tokens"].shape[1], 128)
        return map_logits(model, params, streams["student"], compare_logits, (batch["targets"], arrays), size)

    return loss_fn


def distillation_task(config: PretrainConfig, context: TaskContext) -> TrainTask:
    """Return the task of a run that distils.

    Raises:
        ValueError: teacher and student have other vocabularies, or the precomputed logits are not of this teacher, data or
        temperature.
    """
    distillation, task = config.distillation, pretraining_task(config, context)
    if distillation.logits is not None:
        teacher = None
        if context.is_planned and distillation.top_k is not None:
            added = {"batch_spec": logits_spec(distillation.top_k)}
        else:
            store = TeacherLogits.open(distillation.logits)
            if not context.is_planned:
                store.check(distillation, context.tokenizer.fingerprint, config.data.sequence_length)
            added = {"batch_spec": store.batch_spec, "transform_batch": store.transform_batch}
    else:
        # Implementations and mesh are those of the student; nothing is kept for a backward pass.
        teacher = context.model.clone(config=teacher_shape(distillation, config.model), remat="none")
        # Its matrices are only read: the activations' dtype would do, but norms and decay rates are wanted in float32.
        frozen = {TEACHER: context.load_params(distillation.teacher, teacher)}
        added = {"frozen": frozen, "forward_only": (teacher.config,)}
    loss_fn = distillation_loss(
        context.model, context.byte_lengths, distillation, teacher, config.z_loss, config.loss_chunk
    )
    return dataclasses.replace(task, loss_fn=loss_fn, **added)
