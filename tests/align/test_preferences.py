"""Training on preferences: the objective, the reference beside the policy and from disk, and runs."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.dpo import PreferenceConfig
from plamo2_jax.align.logprobs import token_log_probs
from plamo2_jax.align.lora import BASE
from plamo2_jax.align.pairs import REFERENCE
from plamo2_jax.align.preferences import (
    Dpo,
    PairsConfig,
    preference_evaluator,
    preference_loss_fn,
)
from plamo2_jax.align.reference import ReferenceLogProbs, ReferenceLogProbsError
from plamo2_jax.cli.dpo import in_words
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.project.check import check_run, one_device_program
from plamo2_jax.sharding.mesh import make_mesh
from plamo2_jax.storage import lock_folder
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.flops import PEAK_FLOPS
from plamo2_jax.train.loop import train
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.task import TaskContext
from support.runs import record, stop_after


@pytest.fixture(scope="module")
def make_config(tmp_path_factory, data, fields, rows_of):
    output = tmp_path_factory.mktemp("runs")

    def make(name, **other):
        names = {field.name for field in dataclasses.fields(Dpo)}
        of_task = {field: other.pop(field) for field in names & other.keys()}
        return RunConfig(
            **{
                **fields,
                "name": name,
                "task": Dpo(**{"pairs": PairsConfig(max_pairs=2), **of_task}),
                "data": rows_of(data / "pairs.jsonl", sequence_length=192, batch_size=1),
                "heldout": {"pairs": data / "pairs-heldout.jsonl"},
                "output": output,
                **other,
            }
        )

    return make


@pytest.fixture(scope="module")
def stored(make_config, tmp_path_factory, tokenizer):
    """A configuration whose reference has written its log-probabilities."""
    config = make_config("stored", reference_log_probs=tmp_path_factory.mktemp("reference") / "log_probs")
    task_of(config, tokenizer)
    return config


@pytest.fixture(scope="module")
def policy(small_params):
    """A model some way from the reference."""
    leaves, structure = jax.tree.flatten(small_params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture(scope="module")
def measured(small, small_params, policy, stored, tokenizer):
    """Loss and sums of one batch: reference beside, from disk, and policy equal to it."""
    batch = next(iter(source_of(stored, tokenizer).train(0, 1)))
    config = PreferenceConfig(losses=("sigmoid", "nll"), weights=(1.0, 0.1))
    beside = preference_loss_fn(small, config, 2, reference=REFERENCE)
    disk = preference_loss_fn(small, config, 2)
    plain = with_task(stored, reference_log_probs=None, lora=LoraConfig(rank=2))
    adapters = task_of(plain, tokenizer)
    # The reference of adapters is the model without them: no second copy of it.
    assert list(adapters.frozen) == [BASE]
    assert adapters.batch_spec == {}
    assert adapters.forward_only == (small.config,)
    new = adapters.trainable.create(None)

    @jax.jit
    def all_three(policy, params, batch):
        return (
            beside(policy, batch, None, {REFERENCE: params}),
            disk(policy, batch, None, {}),
            adapters.loss_fn(new, batch, jax.random.key(0), {BASE: params}),
        )

    return batch, all_three(policy, small_params, batch)


def task_of(config, tokenizer):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = Plamo2(config.model, mesh=mesh)
    context = TaskContext(model, jnp.ones(864, jnp.int32), mesh, config.sharding, tokenizer)
    return config.task.make_task(config, context)


def source_of(config, tokenizer):
    return config.task.make_source(config, tokenizer)


def with_task(config, **fields):
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **fields))


def test_a_task_holds_the_reference_that_it_reads(make_config, stored, small, tokenizer):
    beside, disk = (task_of(config, tokenizer) for config in (make_config("beside"), stored))
    assert (list(beside.frozen), beside.batch_spec, beside.forward_only) == ([REFERENCE], {}, (small.config,))
    assert (disk.frozen, disk.batch_spec, disk.forward_only) == ({}, {REFERENCE: ((), jnp.float32)}, ())


def test_the_reference_says_the_same_from_disk(measured):
    _, ((loss, sums), (from_disk, disk_sums), _) = measured
    np.testing.assert_allclose(from_disk, loss, rtol=1e-5)
    assert sums.keys() == disk_sums.keys()
    for name, value in sums.items():
        np.testing.assert_allclose(disk_sums[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    assert abs(sums["log_ratio_chosen"]) > 0.01
    assert sums["kl"] > 0


def test_a_policy_equal_to_its_reference_has_no_margin(measured):
    batch, (_, _, (loss, sums)) = measured
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-5)
    assert abs(sums["reward_margin"]) < 1e-4
    assert abs(sums["kl"]) < 1e-6
    pairs = sum(row.max() // 2 for row in batch["segment_ids"])
    assert sums["weight"] == pairs > 1
    assert sums["tokens"] == sums["length_chosen"] + sums["length_rejected"] == batch["loss_weights"].sum()


def test_what_was_written_is_checked(stored, tokenizer, tmp_path):
    store = ReferenceLogProbs.open(stored.task.reference_log_probs)
    store.check(store.manifest["reference"], tokenizer.fingerprint)
    with pytest.raises(ReferenceLogProbsError, match=r"was written for the reference .* but this run uses other"):
        store.check("other", tokenizer.fingerprint)
    with pytest.raises(ReferenceLogProbsError, match="was written for the tokenizer"):
        store.check(store.manifest["reference"], "other")
    rows = dataclasses.replace(stored.data, sequence_length=400)
    other = with_task(dataclasses.replace(stored, data=rows), pairs=PairsConfig(template="translate"))
    with pytest.raises(ReferenceLogProbsError, match="has no log-probabilities for these pairs"):
        source_of(other, tokenizer)
    with pytest.raises(ReferenceLogProbsError, match=r"it has no manifest.json"):
        ReferenceLogProbs.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "x"}')
    with pytest.raises(ReferenceLogProbsError, match="format is 'x'"):
        ReferenceLogProbs.open(tmp_path)


def test_the_kl_estimate_is_clipped_and_the_log_ratio_is_not(measured, small, small_params, policy, stored, tokenizer):
    batch, ((_, near), _, _) = measured
    np.testing.assert_allclose(near["log_ratio"], near["log_ratio_chosen"] + near["log_ratio_rejected"], rtol=1e-5)
    # A policy that finds nearly every answer far less likely than its reference does.
    far = {**policy, "embedding": -20 * policy["embedding"]}
    log_ratio = log_probs(small, far, batch) - log_probs(small, small_params, batch)
    log_ratio = np.float64(log_ratio)[batch["loss_weights"] != 0]
    assert log_ratio.min() < -50
    loss_fn = preference_loss_fn(small, PreferenceConfig(), 2, reference=REFERENCE)
    _, sums = jax.jit(lambda params, batch, reference: loss_fn(params, batch, None, {REFERENCE: reference}))(
        far, batch, small_params
    )
    np.testing.assert_allclose(sums["log_ratio"], log_ratio.sum(), rtol=1e-4)
    d = np.minimum(-log_ratio, 5.0)
    np.testing.assert_allclose(sums["kl"], np.sum(np.exp(d) - 1 - d), rtol=1e-4)
    assert sums["kl"] < 143 * len(log_ratio)


def log_probs(model, params, batch):
    return jax.jit(lambda params: token_log_probs(model, params, batch, None))(params)


def test_a_run_learns_to_prefer(make_config, tokenizer, monkeypatch):
    """The whole model, the reference beside it."""
    config = make_config("beside", preference=PreferenceConfig(beta=0.5))
    monkeypatch.setitem(PEAK_FLOPS, jax.devices()[0].device_kind, 1e12)
    outcome = train(config)
    lines = [line for line in record(config) if "loss" in line]
    np.testing.assert_allclose(lines[0]["loss"], math.log(2), rtol=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["reward_accuracy"] > 0.9
    assert lines[-1]["kl"] > 0
    lines = [line for line in read_metrics(config.folder / "metrics.jsonl") if "loss" in line]
    # Steps 1 to 3 are written together, and have one speed.
    batches = list(itertools.islice(source_of(config, tokenizer).train(0, 1), 3))
    read = [np.count_nonzero(batch["segment_ids"]) for batch in batches]
    assert [line["tokens"] for line in lines[:3]] == read
    answers = sum(batch["loss_weights"].sum() for batch in batches)
    speed = lines[0]["tokens_per_second"]
    assert speed == lines[2]["tokens_per_second"]
    assert speed == pytest.approx(sum(read) / sum(line["step_seconds"] for line in lines[:3]))
    assert speed / lines[0]["trained_tokens_per_second"] == pytest.approx(sum(read) / answers)
    assert sum(read) > answers > 0
    # Three forward passes of the policy and one of the reference.
    flops = 4 * config.model.flops_per_token(192) * speed
    assert lines[0]["mfu"] == pytest.approx(flops / 1e12)
    figures = outcome.heldout["pairs"].metrics
    assert figures["pairs"] == figures["count_chosen"] == figures["count_rejected"] == 2
    assert figures["reward_accuracy"] in (0.0, 0.5, 1.0)
    assert load_model(config.folder).tokenizer is not None
    assert "{%- generation -%}" in (config.folder / "chat_template.jinja").read_text()


def test_adapters_on_a_stored_reference_through_the_command_line(stored, tmp_path, capsys):
    shorter = dataclasses.replace(stored, name="cli", steps=3, checkpoint_every=3, evaluate_every=3)
    config = with_task(shorter, lora=LoraConfig(rank=2))
    path = tmp_path / "config.py"
    path.write_text(
        "from pathlib import *\nfrom plamo2_jax.align.dpo import *\nfrom plamo2_jax.adapters.config import *\n"
        "from plamo2_jax.align.preferences import *\nfrom plamo2_jax.align.samples import *\nfrom plamo2_jax.config import *\n"
        "from plamo2_jax.data.pipeline import *\nfrom plamo2_jax.engine.sampling import *\n"
        "from plamo2_jax.sharding.mesh import *\nfrom plamo2_jax.train.config import *\nfrom plamo2_jax.train.loss_guard import *\n"
        "from plamo2_jax.train.optimizer import *\n"
        f"from plamo2_jax.train.schedule import *\nconfig = {config!r}\n"
    )
    losses = ["--preference.losses", "sigmoid", "nll", "--preference.weights", "1", "0.2"]
    assert main(["dpo", str(path), *losses, "--samples.prompts", "a?", "--samples.max-new-tokens", "4"]) == 0
    (sample,) = (json.loads(line) for line in (config.folder / "samples.jsonl").read_text().splitlines())
    assert (sample["step"], sample["prompt"]) == (3, "a?")
    assert "of 2 pairs right" in capsys.readouterr().out
    first, *_, last = (line["loss"] for line in record(config) if "loss" in line)
    assert last < first
    assert (config.folder / "adapter" / "adapter_model.safetensors").is_file()
    described = json.loads((config.folder / "config.json").read_text())
    assert (
        described["reference_fingerprint"]
        == ReferenceLogProbs.open(config.task.reference_log_probs).manifest["reference"]
    )

    manifest = config.task.reference_log_probs / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(described["reference_fingerprint"], "0" * 32))
    assert main(["dpo", str(path), "--name", "again"]) == 2
    assert "was written for the reference 000" in capsys.readouterr().err
    manifest.write_text(text)


def test_the_reference_of_a_resumed_run_must_be_the_same(make_config, policy, small, tmp_path):
    config = make_config("other_reference")
    train(config, on_step=stop_after(1))
    checkpoint.save_model(tmp_path / "other", small.config, policy, Tokenizer.load(config.tokenizer))
    with pytest.raises(PlamoError, match=r"a different configuration.*reference_fingerprint"):
        train(dataclasses.replace(config, init_from=tmp_path / "other"))


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_a_mean_of_the_micro_batch_needs_all_its_rows(make_config, loss):
    config = make_config("whole", preference=PreferenceConfig(losses=(loss,)))
    with pytest.raises(PlamoError, match=f"sharding='zero2' is not allowed with the loss {loss}"):
        dataclasses.replace(config, sharding="zero2")


def test_a_run_in_use_is_refused_before_its_reference_is_read(make_config, tmp_path):
    """`plamo2 dpo` computes the reference's log-probabilities at the first start: not for a run that another process trains."""
    config = make_config("used", output=tmp_path, reference_log_probs=tmp_path / "reference")
    with lock_folder(config.folder), pytest.raises(ValueError, match="used is in use by another process"):
        train(config)
    assert not config.task.reference_log_probs.exists()
    # A check before the first start does not need what the start writes.
    assert "init_from" in dict(check_run(config, one_device_program(config)))
    assert not config.task.reference_log_probs.exists()


UNPAIRED = PreferenceConfig(losses=("kto",), beta=0.5, desirable_weight=0.8, undesirable_weight=1.2)


@pytest.fixture(scope="module")
def unpaired(data, tmp_path_factory):
    """Folder with the answers of the pairs by themselves: liked and disliked ones on lines of their own, in files of the same names."""
    folder = tmp_path_factory.mktemp("unpaired")
    for name in ("pairs", "pairs-heldout"):
        pairs = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        lines = [
            json.dumps({"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"})
            for side in ("chosen", "rejected")
            for pair in pairs
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_pairs_are_their_answers_on_lines_of_their_own(
    make_config, data, unpaired, rows_of, small, small_params, policy, tokenizer
):
    # All in one batch: z is a batch's own.
    rows = rows_of(data / "pairs.jsonl", sequence_length=192, batch_size=4)
    evaluate = preference_evaluator(preference_loss_fn(small, UNPAIRED, 2, reference=REFERENCE))
    found = []
    for folder in (data, unpaired):
        config = make_config("x", data=rows, heldout={"x": folder / "pairs-heldout.jsonl"}, preference=UNPAIRED)
        batches = list(source_of(config, tokenizer).heldout("x", 0, 1))
        assert len(batches) == 1
        found.append((evaluate(policy, batches, {REFERENCE: small_params}).metrics, batches[0]["segment_ids"]))
    (pairs, in_pairs), (single, in_single) = found
    assert np.count_nonzero(in_pairs.max(axis=1)) == 1 < np.count_nonzero(in_single.max(axis=1))
    assert (pairs["pairs"], pairs["count_chosen"], pairs["count_rejected"]) == (2, 2, 2)
    assert (single["pairs"], single["count_chosen"], single["count_rejected"]) == (0, 2, 2)
    # Means over lines, of which there are twice as many.
    for name in ("loss", "kl", "log_ratio"):
        np.testing.assert_allclose(2 * single[name], pairs[name], rtol=1e-6, err_msg=name)
    # There is no margin without a pair. All else is over the same answers.
    assert pairs.keys() - single.keys() == {"reward_margin", "reward_accuracy"}
    for name in single.keys() - {"loss", "kl", "log_ratio", "pairs"}:
        # Log ratios are differences of sums near 100, which float32 rounds to 8e-6.
        np.testing.assert_allclose(single[name], pairs[name], rtol=1e-5, atol=2e-5, err_msg=name)
    assert in_words(pairs).endswith(f"of 2 pairs right, margin {pairs['reward_margin']:.4f}")
    rewards = [f"reward {single[f'reward_{side}']:.4f} of 2 {side} answers" for side in ("chosen", "rejected")]
    assert in_words(single) == ", ".join([f"loss {single['loss']:.4f}", *rewards])


def test_adapters_learn_from_single_answers_on_a_stored_reference(make_config, unpaired, rows_of, tmp_path):
    path = unpaired / "pairs.jsonl"
    config = make_config(
        "unpaired",
        data=rows_of(path, sequence_length=96, batch_size=4),
        heldout={"all": path},
        preference=UNPAIRED,
        pairs=PairsConfig(max_pairs=3),
        reference_log_probs=tmp_path / "reference",
        lora=LoraConfig(rank=4),
        accumulation=2,
    )
    outcome = train(config)
    first, *_, last = (line for line in record(config) if "loss" in line)
    assert abs(first["log_ratio_chosen"]) < 1e-4
    np.testing.assert_allclose(first["loss"], (0.8 + 1.2) / 2 / 2, rtol=0.2)  # by how many of each are in the batch
    assert last["loss"] < first["loss"]
    assert last["log_ratio_chosen"] > 0 > last["log_ratio_rejected"]
    assert not any("margin" in name or "accuracy" in name for name in last)
    figures = outcome.heldout["all"].metrics
    assert (figures["pairs"], figures["count_chosen"], figures["count_rejected"]) == (0, 8, 8)
    # At the beginning both are 0.
    assert figures["reward_chosen"] > 0.01
    assert figures["reward_rejected"] < -0.01


@pytest.mark.parametrize("where", ["data", "heldout"])
def test_single_answers_are_for_some_losses(make_config, data, rows_of, tokenizer, tmp_path, where):
    path = tmp_path / "mixed.jsonl"
    line = json.dumps({"prompt": "a?", "completion": "a", "label": True})
    path.write_text((data / "pairs.jsonl").read_text() + line + "\n")
    changes = {"heldout": {"x": path}} if where == "heldout" else {"data": rows_of(path, sequence_length=192)}
    config = make_config("x", preference=PreferenceConfig(losses=("kto", "sigmoid", "nll", "hinge")), **changes)
    allowed = "apo_zero, bco, kto, nca_pair, nll, sppo_hard"
    message = f"mixed.jsonl, line 9 is a single answer .* preference.losses=sigmoid, hinge cannot use: .* of {allowed}"
    with pytest.raises(ValueError, match=message):
        source_of(config, tokenizer).train(0, 1)
    source_of(with_task(config, preference=PreferenceConfig(losses=("kto", "nll"))), tokenizer).train(0, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (0, r"empty.jsonl has no pair or single answer: at least one is needed"),
        (1, r"empty.jsonl has no pair or single answer of at most 8 tokens: raise data.sequence_length"),
    ],
    ids=["no lines", "too long"],
)
def test_without_pairs_the_file_is_named(make_config, data, tokenizer, rows_of, tmp_path, lines, message):
    path = tmp_path / "empty.jsonl"
    path.write_text("".join((data / "pairs.jsonl").read_text().splitlines(keepends=True)[:lines]))
    config = make_config("x", data=rows_of(path, sequence_length=8, batch_size=1), heldout={"pairs": path})
    with pytest.raises(PlamoError, match=message):
        source_of(config, tokenizer).train(0, 1)


def test_losses_without_reference_load_none(make_config, small, tokenizer):
    config = make_config("x", preference=PreferenceConfig(losses=("simpo", "nll"), beta=2.0), reference=None)
    task = task_of(config, tokenizer)
    assert (task.frozen, task.batch_spec, task.forward_only) == ({}, {}, ())
    batch = next(itertools.islice(source_of(config, tokenizer).train(0, 1), 1))
    assert REFERENCE not in batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None}, "given without init_from"),
        (
            {"preference": PreferenceConfig(losses=("simpo",)), "reference": "x"},
            "None, because no loss uses a reference",
        ),
    ],
)
def test_settings_out_of_range(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config("x", **changes)


def test_rows_and_bad_lines_have_limits():
    with pytest.raises(ValueError, match="max_pairs=0"):
        PairsConfig(max_pairs=0)
    with pytest.raises(ValueError, match=r"max_bad_rate=1.0"):
        PairsConfig(max_bad_rate=1.0)
