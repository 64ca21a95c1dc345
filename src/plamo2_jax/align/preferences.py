"""Training on preferences: a configuration, a task and a data source for the train loop, which is that of pretraining."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import require_marks
from plamo2_jax.align.dpo import BY_ANSWER, OVER, PreferenceConfig, preference_loss
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.logprobs import gather_pairs, token_log_probs
from plamo2_jax.align.lora import BASE
from plamo2_jax.align.pairs import REFERENCE, Pair, PairTruncate, encode_pairs, pair_collator, read_pairs
from plamo2_jax.align.post_training import add_lora, log_record_counts, naming_limit, validate_post_training
from plamo2_jax.align.reference import MANIFEST, ReferenceLogProbs, write_reference
from plamo2_jax.align.samples import SamplesConfig, SampleWriter
from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.pipeline import DataConfig, mixed_batches, one_pass
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.sharding.rules import batch_sharding
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import FREE, RunConfig, TaskConfig
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask, means
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require

MOST_KL_EXPONENT = 5.0
"""Where the exponent of the `kl` estimator is clipped."""


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """How pairs become rows."""

    template: str = "chat"
    """Chat template: `chat`, `translate`, a Jinja file, or a folder with chat_template.jinja. It goes with the run."""
    truncate: PairTruncate = "first"
    """What becomes of pairs whose two answers with their prompts are longer than a row together, and of such single answers. first: the
    first exchanges of the prompt go. refuse: they are left out. Answers are never cut; what fits by no rule is left out, and all are
    counted."""
    max_pairs: int = 16
    """Pairs, or single answers, in a row at most."""
    max_bad_rate: float = dataclasses.field(default=0.01, metadata=FREE)
    """Share of bad records above which reading fails. Up to it they are left out; their number and the first few are printed. 0: the first
    one ends the run."""

    def __post_init__(self) -> None:
        require(self, "max_pairs", self.max_pairs >= 1, "at least 1")
        require(self, "max_bad_rate", 0 <= self.max_bad_rate < 1, "in [0, 1)")

    def report(self) -> ReadReport:
        """The account of bad lines."""
        return ReadReport(max_bad_rate=self.max_bad_rate, judge_after=1000 if self.max_bad_rate else 1)


@dataclasses.dataclass(frozen=True)
class PreferenceResult:
    """What was measured on held-out pairs and single answers."""

    metrics: Mapping[str, float]
    """By name: `pairs`, `count_chosen` and `count_rejected`; `loss`, a mean over lines; and the means of the sums of `preference_loss`,
    those over pairs only where there is a pair, and so on."""


def preference_loss_fn(
    model: Plamo2, config: PreferenceConfig, max_pairs: int, chunk: int | None = None, reference: str | None = None
) -> LossFn:
    """Return the loss function of packed pairs.

    Its loss is a mean over pairs and single answers. Its sums are those of `dpo.preference_loss`, and `tokens` of answers. With a
    reference, two more sums over the tokens of all answers, with d = log π_ref − log π of a token: `log_ratio` is Σ −d. `kl` is
    Σ exp(d) − 1 − d, Schulman's third estimator (k3) of KL(π ‖ π_ref). The answers come from the data and not from the policy, so it is
    a distance and not an unbiased estimate. Tokens that the policy has made very unlikely would dominate it, so d is clipped at
    `MOST_KL_EXPONENT`, where a token counts 142 nats.

    Args:
        model: policy and reference are of its shape.
        config: what is minimized.
        max_pairs: pairs, or single answers, in a row at most.
        chunk: positions of each row whose logits exist at a time; None: all.
        reference: name of the reference's parameters among the frozen arrays; None: batches hold its log-probabilities under REFERENCE,
            if the losses read them.
    """

    def loss_fn(
        params: Any, batch: Mapping[str, Array], rng: Array | None, frozen: Mapping[str, Any]
    ) -> tuple[Array, Metrics]:
        policy = token_log_probs(model, params, batch, chunk)
        theirs = None
        if config.needs_reference:
            theirs = batch[REFERENCE] if reference is None else token_log_probs(model, frozen[reference], batch, chunk)
            theirs = jax.lax.stop_gradient(jnp.where(batch["loss_weights"] != 0, theirs, 0.0))
        loss, metrics = preference_loss(gather_pairs(policy, theirs, batch, max_pairs), config)
        metrics["tokens"] = jnp.sum(batch["loss_weights"])
        if theirs is not None:
            difference = theirs - jax.lax.stop_gradient(policy)
            metrics["log_ratio"] = -jnp.sum(difference)
            difference = jnp.minimum(difference, MOST_KL_EXPONENT)
            metrics["kl"] = jnp.sum(jnp.expm1(difference) - difference)
        return loss, metrics

    return loss_fn


def preference_evaluator(loss_fn: LossFn) -> Callable[..., PreferenceResult]:
    """Return `TrainTask.evaluate` of a loss function of pairs: counts, and means over all pairs and answers of the batches."""

    @jax.jit
    def sums_of(params: Any, batch: Mapping[str, Array], frozen: Mapping[str, Any]) -> Metrics:
        loss, metrics = loss_fn(params, batch, None, frozen)
        return {**metrics, "loss": loss * metrics["weight"]}

    def evaluate(params: Any, batches: Iterable[Mapping[str, Array]], frozen: Mapping[str, Any]) -> PreferenceResult:
        sums = [jax.device_get(sums_of(params, batch, frozen)) for batch in batches]
        totals = {name: sum(float(some[name]) for some in sums) for name in (sums[0] if sums else {})}
        if not totals.get("weight"):
            raise PlamoError("the held-out data hold no pair and no answer")
        totals.pop("tokens")
        counts = {name: totals[name] for name in ("pairs", "count_chosen", "count_rejected")}
        return PreferenceResult(counts | means(totals, OVER))

    return evaluate


@dataclasses.dataclass(frozen=True)
class Dpo(TaskConfig):
    """Train on preferences: `data.mixture` and `heldout` of the run name files of pairs or single answers instead of shards.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    kind: ClassVar[str] = "dpo"

    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    """How pairs become rows."""
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    """What is minimized over them."""
    reference: Path | None = None
    """The reference, a model of this shape: run folder or folder of the public layout; none: init_from."""
    reference_log_probs: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Folder for the reference's log-probabilities: computed once and written there, read from there from then on. None: the reference
    runs beside the policy, which costs its memory and a third of the time."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model. The reference is then the model without them, at no cost of memory."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig, metadata=FREE)
    """What the model is asked at every evaluation."""

    def check(self, run: RunConfig) -> None:
        """Raise ValueError for fields of the run that only text has, and for a reference that is missing or not read."""
        validate_post_training(run, self.lora)
        needs = self.preference.needs_reference
        require(
            self, "reference", not needs or (self.reference or run.init_from) is not None, "given without init_from"
        )
        unread = "none where no loss reads a reference"
        for name in ("reference", "reference_log_probs"):
            require(self, name, needs or getattr(self, name) is None, unread)

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task. Write the reference's log-probabilities, where they are to be stored and are not there.

        Raises:
            ValueError: init_from or the reference is of another shape, damaged, or no model; the log-probabilities on disk are another
                reference's, or several processes would have to write them; or no matrix is a target of `lora`.
        """
        base = None if self.lora is None else context.load_params(run.init_from)
        # Adapters leave the model that they are added to as it is: it can be the reference at no cost.
        is_base = base is not None and self.reference in (None, run.init_from)
        frozen, batch_spec, name = {}, {}, None
        if self.preference.needs_reference and self.reference_log_probs is not None:
            batch_spec = {REFERENCE: ((), jnp.float32)}
            if not context.is_planned:
                self._store_reference(run, context, base if is_base else None)
        elif self.preference.needs_reference:
            name = BASE if is_base else REFERENCE
            frozen = {} if is_base else {REFERENCE: context.load_params(self.reference or run.init_from)}
        loss_fn = preference_loss_fn(context.model, self.preference, self.pairs.max_pairs, run.loss_chunk, name)
        task = TrainTask(
            loss_fn=loss_fn,
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=preference_evaluator(loss_fn),
            frozen=frozen,
            batch_spec=batch_spec,
            denominators=OVER,
            forward_only=() if name is None else (run.model,),
        )
        return add_lora(task, run, self.lora, base)

    def _store_reference(self, run: RunConfig, context: TaskContext, params: Any | None) -> None:
        """Write the reference's log-probabilities unless they are there, and check that they are this reference's."""
        folder, tokenizer = self.reference_log_probs, context.tokenizer
        if params is None:
            params = context.load_params(self.reference or run.init_from)
        if not (folder / MANIFEST).is_file():
            if jax.process_count() > 1:
                raise PlamoError(f"{folder} holds no log-probabilities yet; write them with a job of one process first")
            print(f"writing the reference's log-probabilities to {folder}", file=sys.stderr)
            template = ChatTemplate.load(self.pairs.template)
            paths = dict.fromkeys([*(item.path for item in run.data.mixture), *run.heldout.values()])
            shape = (max(1, run.data.batch_size // run.accumulation), run.data.sequence_length)
            parts = [read_elements(path, self, shape[1], template, tokenizer) for path in paths]
            rows = batch_sharding(context.mesh, shape)
            write_reference(folder, context.model, params, tokenizer.fingerprint, parts, shape, rows, run.loss_chunk)
        store = ReferenceLogProbs.open(folder)
        store.check(fingerprint(run.model, params), tokenizer.fingerprint)

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> PairSource:
        """Make the source of packed pairs."""
        return PairSource(run.data, run.heldout, self, tokenizer)

    def on_evaluate(self, run: RunConfig) -> SampleWriter | None:
        """Return what asks the model, where it is asked anything."""
        return SampleWriter(run, self.samples, self.pairs.template) if self.asks_for_samples else None

    @property
    def asks_for_samples(self) -> bool:
        """Whether there are prompts."""
        return bool(self.samples.prompts)

    @property
    def inputs(self) -> Mapping[str, Path | None]:
        """The reference and its log-probabilities."""
        return {"reference": self.reference, "reference_log_probs": self.reference_log_probs}


def read_elements(path: Path, task: Dpo, limit: int, template: ChatTemplate, tokenizer: Tokenizer) -> Examples:
    """Read and encode the pairs and single answers of a file; how many fitted goes to stderr.

    Args:
        path: a file, a folder or a pattern.
        task: how pairs become rows, and the losses that must be able to use them.
        limit: positions of a row.
        template: chat template.
        tokenizer: of the model.

    Raises:
        ValueError: the file is missing or damaged, has more bad lines than allowed, nothing that fits into a row, or a single answer
            where a loss takes pairs alone.
    """
    report = task.pairs.report()
    with naming_limit("pairs.max_bad_rate"):
        pairs = _usable(read_pairs(path, report), task.preference)
        elements, counts = encode_pairs(pairs, template, tokenizer, limit, task.pairs.truncate, report)
    single = any(element["role"][0] == element["role"][-1] for element in elements)
    log_record_counts(path, "pairs and single answers" if single else "pairs", counts, report)
    if not elements:
        raise PlamoError(f"{path} holds no pair and no answer that with its prompts comes to at most {limit} tokens")
    return Examples(elements)


def _usable(pairs: Iterable[Pair], config: PreferenceConfig) -> Iterator[Pair]:
    """The same, as long as the losses can use them."""
    for pair in pairs:
        if not (pair.is_whole or config.takes_single_answers):
            wrong = ", ".join(name for name in config.losses if name not in BY_ANSWER)
            raise PlamoError(
                f"{pair.place} is a single answer (completion and label), which preference.losses={wrong} cannot use: with single answers "
                f"they must be of {', '.join(sorted(BY_ANSWER))}"
            )
        yield pair


class PairSource:
    """Pairs as the source of batches (`train.source.Source`).

    Args:
        data: the files, how they are mixed, and the shape of a batch.
        heldout: held-out files by name.
        task: how pairs become rows.
        tokenizer: of the model.
    """

    def __init__(self, data: DataConfig, heldout: Mapping[str, Path], task: Dpo, tokenizer: Tokenizer):
        self._data = data
        template = ChatTemplate.load(task.pairs.template)
        require_marks(template)
        self._collator = pair_collator(task.pairs.max_pairs, task.reference_log_probs is not None)

        def read(path: Path) -> Examples:
            return read_elements(path, task, data.sequence_length, template, tokenizer)

        parts = [read(item.path) for item in data.mixture]
        heldout = {name: read(path) for name, path in heldout.items()}
        self.files = {FILE_NAME: template.source}
        self.description = {"examples": [part.fingerprint for part in parts]}
        if task.reference_log_probs is not None:
            store = ReferenceLogProbs.open(task.reference_log_probs)
            parts = [part.with_array(REFERENCE, store.of(part.fingerprint)) for part in parts]
            heldout = {name: part.with_array(REFERENCE, store.of(part.fingerprint)) for name, part in heldout.items()}
            self.description["reference_fingerprint"] = store.manifest["reference"]
        self._parts, self._heldout = parts, heldout
        self.targets = [part.targets for part in parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Batches without end, this process's rows of them."""
        return mixed_batches(
            self._data, self._parts, self._collator, process_index=process_index, process_count=process_count
        )

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Batches of one held-out file."""
        return one_pass(
            self._data,
            self._heldout[name],
            self._collator,
            process_index=process_index,
            process_count=process_count,
        )
