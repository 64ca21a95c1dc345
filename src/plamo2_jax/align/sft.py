"""Supervised fine-tuning: next-token cross-entropy on what the assistant says, in packed rows of whole conversations.

A configuration, a task and a data source for the train loop, which is that of pretraining.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import Example, Truncate, encode_all, read_conversations, require_marks
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.lora import with_adapters
from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError
from plamo2_jax.data.packing import Collator
from plamo2_jax.data.pipeline import mixed_batches, one_pass
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.pretraining import next_token, pretraining_task
from plamo2_jax.train.task import TaskContext, TrainTask

Weighting = Literal["token", "conversation"]
_SHOWN = 5
"""Bad records that are printed."""


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """How conversations become rows."""

    template: str = "chat"
    """Chat template: `chat`, `translate`, a Jinja file, or a folder with chat_template.jinja. It goes with the run."""
    truncate: Truncate = "last"
    """What becomes of conversations that are longer than a row. last: their last messages go. first: their first exchanges go, not the
    system message. end: as last, and an only answer that is too long is cut. refuse: they are left out. What fits by no rule is left
    out; all are counted."""
    weighting: Weighting = "token"
    """token: every trained token counts the same. conversation: every conversation does, however long its answers."""
    max_bad_rate: float = 0.01
    """Share of bad records above which reading fails. Up to it they are left out; their number and the first few are printed. 0: the first
    one ends the run."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_rate < 1:
            raise ValueError(f"ChatConfig.max_bad_rate={self.max_bad_rate!r} is not allowed: it must be in [0, 1)")

    def report(self) -> ReadReport:
        """The account of bad lines."""
        return ReadReport(max_bad_rate=self.max_bad_rate, judge_after=1000 if self.max_bad_rate else 1)


@dataclasses.dataclass(frozen=True)
class SftConfig(PretrainConfig):
    """One run of supervised fine-tuning: a PretrainConfig whose data.mixture and heldout name files of conversations instead of
    shards, and whose init_from may be of the public layout too.
    """

    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    """How conversations become rows."""
    neftune_alpha: float = 0.0
    """NEFTune (arXiv:2310.05914): embedded tokens get uniform noise of alpha / √(tokens of the conversation × hidden_size); 5 to 15
    is usual, 0 is off."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
    """What the model is asked at every evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("neftune_alpha", 0 <= self.neftune_alpha < math.inf, "zero or positive, and finite")
        refuse_unfit(self)
        self._require("lora", self.lora is None or self.init_from is not None, "none without init_from")


def refuse_unfit(config: PretrainConfig) -> None:
    """Raise ValueError for fields that only text has."""
    if config.data.long_document_tokens is not None:
        raise ValueError("data.long_document_tokens is not allowed here: it is for text")
    if config.distillation is not None:
        raise ValueError(f"distillation is not allowed in a {type(config).__name__}")


def noise_scale(segment_ids: Array, hidden_size: int, alpha: float) -> Float[Array, "b t"]:
    """NEFTune's alpha / √(L d), L the tokens of the segment that each token is in; 0 at padding."""
    t = segment_ids.shape[1]
    length = jax.vmap(lambda ids: jnp.zeros(t + 1, jnp.float32).at[ids].add(1.0)[ids])(segment_ids)
    return jnp.where(segment_ids != 0, alpha / jnp.sqrt(length * hidden_size), 0.0)


def neftune(hidden_size: int, alpha: float) -> Callable[[Batch, Array], Array]:
    """Return NEFTune's noise on embedded tokens as `train.pretraining.next_token` takes it."""

    def noise(batch: Batch, rng: Array) -> Float[Array, "b t d"]:
        scale = noise_scale(batch["segment_ids"], hidden_size, alpha)
        return scale[..., None] * jax.random.uniform(rng, (*scale.shape, hidden_size), jnp.float32, -1.0, 1.0)

    return noise


def sft_task(config: SftConfig, context: TaskContext) -> TrainTask:
    """Return the task of a fine-tuning run.

    Raises:
        ValueError: `init_from` is of another shape, damaged, or no model; or no matrix is a target of `lora`.
    """
    noise = neftune(config.model.hidden_size, config.neftune_alpha) if config.neftune_alpha else None
    loss_fn = next_token(context.model, context.byte_lengths, config.z_loss, config.loss_chunk, noise)
    task = dataclasses.replace(pretraining_task(config, context), loss_fn=loss_fn)
    if config.lora is None:
        return task
    adapters = Adapters(config.model, config.lora, config.seed)
    return with_adapters(task, adapters, context.load_params(config.init_from))


def to_element(example: Example, weighting: Weighting) -> dict[str, np.ndarray]:
    """An example as inputs, targets and weights of the loss [n - 1]."""
    trained = example.trained[1:].astype(np.float32)
    if weighting == "conversation":
        trained /= max(trained.sum(), 1)
    return {"tokens": example.ids[:-1], "targets": example.ids[1:], "weights": trained}


def _to_batch(packed: Mapping[str, np.ndarray]) -> Batch:
    return {
        "tokens": packed["tokens"],
        "targets": packed["targets"],
        "segment_ids": packed["tokens_segment_ids"],
        "positions": packed["tokens_positions"],
        "loss_weights": packed["weights"],
    }


LAYOUT = Collator(("tokens", "targets", "weights"), _to_batch)


class ChatSource:
    """Conversations as the train loop's source (`train.source.Source`).

    Held-out ones are read at once, so that bad ones end a run before it begins; those to train on when they are asked for, which
    who only measures does not.
    """

    def __init__(self, config: SftConfig, tokenizer: Tokenizer):
        self._config, self._tokenizer = config, tokenizer
        self._template = ChatTemplate.load(config.chat.template)
        require_marks(self._template)
        self._heldout = {name: self._read(path) for name, path in config.heldout.items()}
        self.files = {FILE_NAME: self._template.source}

    @functools.cached_property
    def _parts(self) -> list[Examples]:
        return [self._read(item.path) for item in self._config.data.mixture]

    @property
    def description(self) -> dict[str, list[str]]:
        """See `train.source.Source`."""
        return {"examples": [part.fingerprint for part in self._parts]}

    @property
    def targets(self) -> list[int]:
        """See `train.source.Source`."""
        return [part.targets for part in self._parts]

    def _read(self, path: Path) -> Examples:
        chat, report = self._config.chat, self._config.chat.report()
        # A row of t positions holds t + 1 ids: the first is never a target.
        limit = self._config.data.sequence_length + 1
        with naming_limit("chat.max_bad_rate"):
            conversations = read_conversations(path, report)
            examples, counts = encode_all(conversations, self._template, self._tokenizer, limit, chat.truncate, report)
        say_counts(path, "conversations", counts, report)
        if not examples:
            raise ValueError(f"{path} holds no conversation of at most {limit} tokens")
        return Examples([to_element(example, chat.weighting) for example in examples])

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """See `train.source.Source`."""
        return mixed_batches(
            self._config.data, self._parts, LAYOUT, process_index=process_index, process_count=process_count
        )

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """See `train.source.Source`."""
        return one_pass(
            self._config.data, self._heldout[name], LAYOUT, process_index=process_index, process_count=process_count
        )


@contextlib.contextmanager
def naming_limit(option: str) -> Iterator[None]:
    """Name the option that allows more bad records, where reading fails for them."""
    try:
        yield
    except TooManyBadRecordsError as error:
        raise TooManyBadRecordsError(f"{error}. Correct them, or raise {option}") from None


def say_counts(path: Path, what: str, counts: Mapping[str, int], report: ReadReport) -> None:
    """Print on stderr of the first process how many records were read, and the first bad ones."""
    if jax.process_index() == 0:
        others = [f"{counts[name]:,} {name}" for name in ("truncated", "too long") if counts.get(name)]
        others += [f"{report.bad:,} bad"] if report.bad else []
        kept = counts.get("whole", 0) + counts.get("truncated", 0)
        print(", ".join([f"{path}: {kept:,} {what}", *others]), file=sys.stderr)
        for record in report.first[:_SHOWN]:
            print(f"  {record}", file=sys.stderr)
        if report.bad > _SHOWN:
            print(f"  and {report.bad - _SHOWN:,} more bad records", file=sys.stderr)
        for change, count in report.changes.most_common(_SHOWN):
            print(f"  {change}: {count:,} times", file=sys.stderr)
