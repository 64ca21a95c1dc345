"""Training on preferences: the task Dpo, its loss function and its evaluation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import encode_all, require_marks
from plamo2_jax.align.dpo import BY_ANSWER, BY_BATCH, OVER, PreferenceConfig, preference_loss
from plamo2_jax.align.examples import Examples, ExampleSource
from plamo2_jax.align.logprobs import gather_pairs, token_log_probs
from plamo2_jax.align.lora import BASE, with_adapters
from plamo2_jax.align.pairs import REFERENCE, Pair, PairTruncate, encode_pair, pair_collator, read_pairs
from plamo2_jax.align.post_training import (
    RecordsConfig,
    log_record_counts,
    naming_limit,
    require_records,
    validate_post_training,
)
from plamo2_jax.align.reference import MANIFEST, ReferenceLogProbs, write_reference
from plamo2_jax.align.samples import SamplesConfig, SampleWriter
from plamo2_jax.checkpoint import REFERENCE_FINGERPRINT, describe_frozen, fingerprint
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.sharding.rules import batch_sharding
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import FREE, RunConfig, TaskConfig
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask, means
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require

MOST_KL_EXPONENT = 5.0
"""Upper limit of the exponent in the estimator `kl`."""


@dataclasses.dataclass(frozen=True)
class PairsConfig(RecordsConfig):
    """Packing of pairs into rows."""

    truncate: PairTruncate = "first"
    """How to shorten a pair or a single answer that is longer than a row. first: remove the first exchanges of the prompt. refuse: skip the
    record. Answers are never cut. Records that still do not fit are skipped and counted."""
    max_pairs: int = 16
    """Largest number of pairs or single answers in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "max_pairs", self.max_pairs >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class PreferenceResult:
    """Result of an evaluation on held-out pairs and single answers."""

    metrics: Mapping[str, float]
    """By name: the counts `pairs`, `count_chosen` and `count_rejected`; `loss`, a mean over records; and the means of the sums of
    `preference_loss`, without means over nothing."""


def preference_loss_fn(
    model: Plamo2, config: PreferenceConfig, max_pairs: int, chunk: int | None = None, reference: str | None = None
) -> LossFn:
    """Return the loss function of packed pairs. The loss is a mean over pairs and single answers.

    The sums are the same as in `dpo.preference_loss`, plus `tokens`, the number of answer tokens. With a reference there are two more sums
    over the answer tokens, where d = log π_ref − log π of a token. `log_ratio` is Σ −d. `kl` is Σ exp(d) − 1 − d, Schulman's estimator k3
    of KL(π ‖ π_ref). The answers come from the data and not from the policy, so `kl` is a distance and not an unbiased estimate. d is
    clipped at `MOST_KL_EXPONENT`, where a token adds 142 nats, because otherwise very unlikely tokens would dominate the sum.

    Args:
        chunk: positions of each row whose logits exist at a time; None: all.
        reference: name of the reference's parameters among the frozen arrays; None: the batches hold its log-probabilities under REFERENCE,
            if the losses need them.
    """

    def loss_fn(
        params: Any, batch: Mapping[str, Array], rng: Array | None, frozen: Mapping[str, Any]
    ) -> tuple[Array, Metrics]:
        policy = token_log_probs(model, params, batch, chunk)
        reference_values = None
        if config.needs_reference:
            reference_values = (
                batch[REFERENCE] if reference is None else token_log_probs(model, frozen[reference], batch, chunk)
            )
            reference_values = jax.lax.stop_gradient(jnp.where(batch["loss_weights"] != 0, reference_values, 0.0))
        loss, metrics = preference_loss(gather_pairs(policy, reference_values, batch, max_pairs), config)
        metrics["tokens"] = jnp.sum(batch["loss_weights"])
        if reference_values is not None:
            difference = reference_values - jax.lax.stop_gradient(policy)
            metrics["log_ratio"] = -jnp.sum(difference)
            difference = jnp.minimum(difference, MOST_KL_EXPONENT)
            metrics["kl"] = jnp.sum(jnp.expm1(difference) - difference)
        return loss, metrics

    return loss_fn


def preference_evaluator(loss_fn: LossFn) -> Callable[..., PreferenceResult]:
    """Return `TrainTask.evaluate` for a loss function of pairs: counts, and means over all pairs and answers of the batches."""

    @jax.jit
    def sums_of(params: Any, batch: Mapping[str, Array], frozen: Mapping[str, Any]) -> Metrics:
        loss, metrics = loss_fn(params, batch, None, frozen)
        return {**metrics, "loss": loss * metrics["weight"]}

    def evaluate(params: Any, batches: Iterable[Mapping[str, Array]], frozen: Mapping[str, Any]) -> PreferenceResult:
        sums = [jax.device_get(sums_of(params, batch, frozen)) for batch in batches]
        totals = {name: sum(float(some[name]) for some in sums) for name in (sums[0] if sums else {})}
        if not totals.get("weight"):
            raise PlamoError("the held-out data have no pair and no answer: at least one is needed")
        totals.pop("tokens")
        counts = {name: totals[name] for name in ("pairs", "count_chosen", "count_rejected")}
        return PreferenceResult(counts | means(totals, OVER))

    return evaluate


@dataclasses.dataclass(frozen=True)
class Dpo(TaskConfig):
    """Train on preferences: `data.mixture` and `heldout` of the run name files of pairs or single answers.

    A field that is out of range raises PlamoError.
    """

    kind: ClassVar[str] = "dpo"

    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    """Packing of pairs into rows."""
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    """The losses and their settings."""
    reference: Path | None = None
    """Reference model with the same shape: run folder or folder in Hugging Face format; none: init_from."""
    reference_log_probs: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Folder for the log-probabilities of the reference. The first run computes and writes them; later runs read them. None: the reference
    runs together with the policy, which costs its memory and a third of the time."""
    lora: LoraConfig | None = None
    """Train LoRA adapters instead of the model. The reference is then the model without adapters, which needs no extra memory."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig, metadata=FREE)
    """Prompts for sample answers at every evaluation."""

    def check(self, run: RunConfig) -> None:
        """Raise PlamoError if the other fields of the run do not fit the task, or a reference is missing or not needed."""
        validate_post_training(run, self.lora)
        needs = self.preference.needs_reference
        given = self.reference is not None or run.init_from is not None
        require(self, "reference", given or not needs, "given without init_from")
        for name in ("reference", "reference_log_probs"):
            require(self, name, needs or getattr(self, name) is None, "None, because no loss uses a reference")
        coupled = [loss for loss in self.preference.losses if loss in BY_BATCH]
        if coupled and run.sharding in ("zero1", "zero2"):
            raise PlamoError(
                f"sharding={run.sharding!r} is not allowed with the loss {coupled[0]}, which uses the mean of all answers of a "
                "micro-batch: choose fsdp or fsdp_tensor"
            )

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task. Write the log-probabilities of the reference if they are to be stored and do not exist yet.

        Raises:
            PlamoError: init_from or the reference has another shape, is damaged, or is no model; the stored log-probabilities belong to
                another reference, or several processes would have to write them; or no matrix is a target of `lora`.
        """
        base = None if self.lora is None else context.load_params(run.init_from)
        # Adapters do not change their base, so it can be the reference without more memory.
        is_base = base is not None and self.reference in (None, run.init_from)
        frozen, batch_spec, name, description = {}, {}, None, {}
        if self.preference.needs_reference and self.reference_log_probs is not None:
            batch_spec = {REFERENCE: ((), jnp.float32)}
            if not context.is_planned:
                self._store_reference(run, context, base if is_base else None)
        elif self.preference.needs_reference:
            name = BASE if is_base else REFERENCE
            if not is_base:
                frozen = {REFERENCE: context.load_params(self.reference or run.init_from)}
                description = describe_frozen(REFERENCE_FINGERPRINT, run.model, frozen[REFERENCE])
        loss_fn = preference_loss_fn(context.model, self.preference, self.pairs.max_pairs, run.loss_chunk, name)
        task = TrainTask(
            loss_fn=loss_fn,
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=preference_evaluator(loss_fn),
            frozen=frozen,
            batch_spec=batch_spec,
            denominators=OVER,
            description=description,
            forward_only=() if name is None else (run.model,),
        )
        return task if base is None else with_adapters(task, Adapters(run.model, self.lora, run.seed), base)

    def _store_reference(self, run: RunConfig, context: TaskContext, params: Any | None) -> None:
        """Write the log-probabilities of the reference unless they exist, and check that they belong to this reference."""
        folder, tokenizer = self.reference_log_probs, context.tokenizer
        if params is None:
            params = context.load_params(self.reference or run.init_from)
        if not (folder / MANIFEST).is_file():
            if jax.process_count() > 1:
                raise PlamoError(f"{folder} has no log-probabilities yet: write them with a job of one process first")
            print(
                f"computing the log-probabilities of the reference model and writing them to {folder}", file=sys.stderr
            )
            template = ChatTemplate.load(self.pairs.template)
            paths = dict.fromkeys([*(item.path for item in run.data.mixture), *run.heldout.values()])
            shape = (max(1, run.data.batch_size // run.accumulation), run.data.sequence_length)
            parts = [read_elements(path, self, shape[1], template, tokenizer) for path in paths]
            rows = batch_sharding(context.mesh, shape)
            write_reference(folder, context.model, params, tokenizer.fingerprint, parts, shape, rows, run.loss_chunk)
        store = ReferenceLogProbs.open(folder)
        store.check(fingerprint(run.model, params), tokenizer.fingerprint)

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> ExampleSource:
        """Make the source of packed pairs."""
        template = ChatTemplate.load(self.pairs.template)
        require_marks(template)
        folder = self.reference_log_probs
        # `make_task` has written it. Checks before the first start do without.
        store = ReferenceLogProbs.open(folder) if folder is not None and (folder / MANIFEST).is_file() else None

        def read(path: Path) -> Examples:
            return read_elements(path, self, run.data.sequence_length, template, tokenizer)

        def add_reference(part: Examples) -> Examples:
            return part if store is None else part.with_array(REFERENCE, store.of(part.fingerprint))

        collator = pair_collator(self.pairs.max_pairs, store is not None)
        described = {} if store is None else {REFERENCE_FINGERPRINT: store.manifest["reference"]}
        return ExampleSource(run.data, run.heldout, template, collator, read, add_reference, described)

    def on_evaluate(self, run: RunConfig) -> SampleWriter | None:
        """Return the writer of samples, or None without prompts."""
        return SampleWriter(run, self.samples, self.pairs.template) if self.asks_for_samples else None

    @property
    def asks_for_samples(self) -> bool:
        """Whether there are prompts."""
        return bool(self.samples.prompts)

    @property
    def inputs(self) -> Mapping[str, Path | None]:
        """The reference, and its stored log-probabilities if they exist: the first start writes them."""
        stored = self.reference_log_probs
        return {
            "reference": self.reference,
            "reference_log_probs": stored if stored is not None and stored.exists() else None,
        }


def read_elements(path: Path, task: Dpo, limit: int, template: ChatTemplate, tokenizer: Tokenizer) -> Examples:
    """Read and encode the pairs and single answers of a file, a folder or a pattern, and print their number on stderr.

    Records that do not fit into a row of `limit` positions are shortened or omitted.

    Raises:
        PlamoError: the file is missing or damaged, has too many bad records, no record that fits into a row, or a single answer that a loss
            cannot use.
    """
    report = task.pairs.report()
    with naming_limit("pairs.max_bad_rate"):
        pairs = _usable(read_pairs(path, report), task.preference)
        elements, counts = encode_all(pairs, template, tokenizer, limit, task.pairs.truncate, report, encode_pair)
    single = any(element["role"][0] == element["role"][-1] for element in elements)
    log_record_counts(path, "pairs and single answers" if single else "pairs", counts, report)
    require_records(path, "pair or single answer", counts, limit, "raise data.sequence_length")
    return Examples(elements)


def _usable(pairs: Iterable[Pair], config: PreferenceConfig) -> Iterator[Pair]:
    """Yield the pairs; raise PlamoError at a single answer that a loss cannot use."""
    wrong = ", ".join(name for name in config.losses if name not in BY_ANSWER)
    for pair in pairs:
        if wrong and not pair.is_whole:
            raise PlamoError(
                f"{pair.place} is a single answer (completion and label), which preference.losses={wrong} cannot use: with single answers "
                f"the losses must be some of {', '.join(sorted(BY_ANSWER))}"
            )
        yield pair
