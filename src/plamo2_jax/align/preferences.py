"""Training on preferences: a configuration, a task and a data source for the train loop, which is that of pretraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import require_marks
from plamo2_jax.align.dpo import BY_ANSWER, OVER, PreferenceConfig, preference_loss
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.logprobs import gather_pairs, token_log_probs
from plamo2_jax.align.lora import BASE, with_adapters
from plamo2_jax.align.pairs import REFERENCE, Pair, PairTruncate, encode_pairs, layout, read_pairs
from plamo2_jax.align.reference import ReferenceLogProbs
from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.align.sft import naming_limit, refuse_unfit, say_counts
from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.pipeline import mixed_batches, one_pass
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask, means
from plamo2_jax.train.trainable import full_params

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
    max_bad_rate: float = 0.01
    """Share of bad records above which reading fails. Up to it they are left out; their number and the first few are printed. 0: the first
    one ends the run."""

    def __post_init__(self) -> None:
        if self.max_pairs < 1:
            raise ValueError(f"PairsConfig.max_pairs={self.max_pairs!r} is not allowed: it must be at least 1")
        if not 0 <= self.max_bad_rate < 1:
            raise ValueError(f"PairsConfig.max_bad_rate={self.max_bad_rate!r} is not allowed: it must be in [0, 1)")

    def report(self) -> ReadReport:
        """The account of bad lines."""
        return ReadReport(max_bad_rate=self.max_bad_rate, judge_after=1000 if self.max_bad_rate else 1)


@dataclasses.dataclass(frozen=True)
class DpoConfig(PretrainConfig):
    """One run on preferences: a PretrainConfig whose data.mixture and heldout name files of pairs or single answers instead of
    shards, and whose init_from may be of the public layout too.
    """

    z_loss: float = 0.0
    """Has no part here: it must be 0."""
    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    """How pairs become rows."""
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    """What is minimised over them."""
    reference: Path | None = None
    """The reference, a model of this shape: run folder or folder of the public layout; none: init_from."""
    reference_log_probs: Path | None = None
    """Folder for the reference's log-probabilities: computed once and written there, read from there from then on. None: the reference
    runs beside the policy, which costs its memory and a third of the time."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model. The reference is then the model without them, at no cost of memory."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
    """What the model is asked at every evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("z_loss", self.z_loss == 0, "0: preferences have no such term")
        refuse_unfit(self)
        self._require("lora", self.lora is None or self.init_from is not None, "none without init_from")
        needs = self.preference.needs_reference
        self._require("reference", not needs or self.reference_folder is not None, "given where init_from is not")
        unread = "none where no loss reads a reference"
        for name in ("reference", "reference_log_probs"):
            self._require(name, needs or getattr(self, name) is None, unread)

    @property
    def reference_folder(self) -> Path | None:
        """Where the reference is."""
        return self.reference or self.init_from


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
            raise ValueError("the held-out data hold no pair and no answer")
        totals.pop("tokens")
        counts = {name: totals[name] for name in ("pairs", "count_chosen", "count_rejected")}
        return PreferenceResult(counts | means(totals, OVER))

    return evaluate


def preference_task(config: DpoConfig, context: TaskContext) -> TrainTask:
    """Return the task of a run on preferences.

    Raises:
        ValueError: init_from or the reference is of another shape, damaged, or no model; the log-probabilities on disk are another
        reference's; or no matrix is a target of `lora`.
    """
    start = None if config.lora is None else context.load_params(config.init_from)
    # Adapters leave the model that they are added to as it is: it can be the reference at no cost.
    is_start = start is not None and config.reference in (None, config.init_from)
    frozen, batch_spec, name = {}, {}, None
    if config.preference.needs_reference and config.reference_log_probs is not None:
        batch_spec = {REFERENCE: ((), jnp.float32)}
        if not context.is_planned:
            params = start if is_start else context.load_params(config.reference_folder)
            store = ReferenceLogProbs.open(config.reference_log_probs)
            store.check(fingerprint(config.model, params), context.tokenizer.fingerprint)
    elif config.preference.needs_reference:
        name = BASE if is_start else REFERENCE
        frozen = {} if is_start else {REFERENCE: context.load_params(config.reference_folder)}
    loss_fn = preference_loss_fn(context.model, config.preference, config.pairs.max_pairs, config.loss_chunk, name)
    task = TrainTask(
        loss_fn=loss_fn,
        trainable=full_params(context.model, config.init_from, config.seed),
        evaluate=preference_evaluator(loss_fn),
        frozen=frozen,
        batch_spec=batch_spec,
        denominators=OVER,
        forward_only=() if name is None else (config.model,),
    )
    return task if start is None else with_adapters(task, Adapters(config.model, config.lora, config.seed), start)


def read_elements(path: Path, config: DpoConfig, template: ChatTemplate, tokenizer: Tokenizer) -> Examples:
    """The pairs and single answers of a file, encoded; how many fitted goes to stderr.

    Raises:
        ValueError: the file is missing or damaged, has more bad lines than allowed, nothing that fits into a row, or a single answer
            where a loss takes pairs alone.
    """
    report, limit = config.pairs.report(), config.data.sequence_length
    with naming_limit("pairs.max_bad_rate"):
        pairs = _usable(read_pairs(path, report), config.preference)
        elements, counts = encode_pairs(pairs, template, tokenizer, limit, config.pairs.truncate, report)
    single = any(element["sides"][0] == element["sides"][-1] for element in elements)
    say_counts(path, "pairs and single answers" if single else "pairs", counts, report)
    if not elements:
        raise ValueError(f"{path} holds no pair and no answer that with its prompts comes to at most {limit} tokens")
    return Examples(elements)


def _usable(pairs: Iterable[Pair], config: PreferenceConfig) -> Iterator[Pair]:
    """The same, as long as the losses can use them."""
    for pair in pairs:
        if not (pair.is_whole or config.takes_single_answers):
            wrong = ", ".join(name for name in config.losses if name not in BY_ANSWER)
            raise ValueError(
                f"{pair.place} is a single answer (completion and label), which preference.losses={wrong} cannot use: with single answers "
                f"they must be of {', '.join(sorted(BY_ANSWER))}"
            )
        yield pair


class PairSource:
    """Pairs as the train loop's source (`train.source.Source`)."""

    def __init__(self, config: DpoConfig, tokenizer: Tokenizer):
        self._config = config
        template = ChatTemplate.load(config.pairs.template)
        require_marks(template)
        self._layout = layout(config.pairs.max_pairs, config.reference_log_probs is not None)
        parts = [read_elements(item.path, config, template, tokenizer) for item in config.data.mixture]
        heldout = {name: read_elements(path, config, template, tokenizer) for name, path in config.heldout.items()}
        self.files = {FILE_NAME: template.source}
        self.description = {"examples": [part.fingerprint for part in parts]}
        if config.reference_log_probs is not None:
            store = ReferenceLogProbs.open(config.reference_log_probs)
            parts = [part.with_array(REFERENCE, store.of(part.fingerprint)) for part in parts]
            heldout = {name: part.with_array(REFERENCE, store.of(part.fingerprint)) for name, part in heldout.items()}
            self.description["reference_fingerprint"] = store.manifest["reference"]
        self._parts, self._heldout = parts, heldout
        self.targets = [part.targets for part in parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """See `train.source.Source`."""
        return mixed_batches(
            self._config.data, self._parts, self._layout, process_index=process_index, process_count=process_count
        )

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """See `train.source.Source`."""
        return one_pass(
            self._config.data,
            self._heldout[name],
            self._layout,
            process_index=process_index,
            process_count=process_count,
        )
