"""Runs that distil: the teacher beside the student, and its logits from disk."""

import dataclasses

import jax
import numpy as np
import pytest

from plamo2_jax.surgery.distill import Distill
from plamo2_jax.surgery.teacher_logits import write_teacher_logits
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.loop import train
from support.models import tiny
from support.runs import params_of, record


def test_logits_from_disk_make_the_updates_of_a_teacher_beside(make_config, tmp_path):
    short = {"model": tiny(num_hidden_layers=1), "heldout": {}, "checkpoint_every": 3}
    teacher = make_config("teacher", steps=3, **short)
    train(teacher)
    distillation = Distill(teacher=teacher.folder, temperature=2.0, alpha=0.7, top_k=16)
    beside = make_config("beside", steps=3, task=distillation, accumulation=2, seed=1, **short)
    train(beside)
    tokenizer = Tokenizer.load(beside.tokenizer)
    assert write_teacher_logits(beside, teacher.folder, 2.0, tmp_path / "logits", tokenizer, steps=3, top_k=16) <= 3 * 8
    from_disk = dataclasses.replace(
        beside, name="from_disk", task=dataclasses.replace(distillation, logits=tmp_path / "logits")
    )
    train(from_disk)
    losses = [[line["loss"] for line in record(config) if "loss" in line] for config in (beside, from_disk)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert next(line["kl"] for line in record(beside) if "kl" in line) > 0
    # Two compiled programs, one of which makes the logits that the other reads.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params_of(beside), params_of(from_disk)
    )

    colder = dataclasses.replace(from_disk.task, temperature=1.0)
    other = dataclasses.replace(from_disk.task, teacher=beside.folder)
    for fields, message in (
        ({"task": colder}, r"was written for temperature 2\.0, not for this run's 1\.0"),
        ({"task": other}, "was written for teacher"),
        ({"steps": 9}, "has no logits for"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(from_disk, name="refused", **fields))
