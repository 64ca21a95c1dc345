"""Supervised fine-tuning: next-token cross-entropy on what the assistant says, in packed rows of whole conversations.

A configuration, a task and a data source for the train loop, which is that of pretraining.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import Example, Truncate, encode_all, read_conversations, require_marks
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.post_training import add_lora, log_record_counts, naming_limit, validate_post_training
from plamo2_jax.align.samples import SamplesConfig, SampleWriter
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.packing import Collator
from plamo2_jax.data.pipeline import DataConfig, mixed_batches, one_pass
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import FREE, RunConfig, TaskConfig
from plamo2_jax.train.pretraining import heldout_evaluator, next_token
from plamo2_jax.train.task import TaskContext, TrainTask
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require

Weighting = Literal["token", "conversation"]


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
    max_bad_rate: float = dataclasses.field(default=0.01, metadata=FREE)
    """Share of bad records above which reading fails. Up to it they are left out; their number and the first few are printed. 0: the first
    one ends the run."""

    def __post_init__(self) -> None:
        require(self, "max_bad_rate", 0 <= self.max_bad_rate < 1, "in [0, 1)")

    def report(self) -> ReadReport:
        """The account of bad lines."""
        return ReadReport(max_bad_rate=self.max_bad_rate, judge_after=1000 if self.max_bad_rate else 1)


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


@dataclasses.dataclass(frozen=True)
class Sft(TaskConfig):
    """Fine-tune on conversations: `data.mixture` and `heldout` of the run name files of them instead of shards.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    kind: ClassVar[str] = "sft"

    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    """How conversations become rows."""
    z_loss: float = 1e-4
    """Coefficient of log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 turns it off."""
    neftune_alpha: float = 0.0
    """NEFTune (arXiv:2310.05914): embedded tokens get uniform noise of alpha / √(tokens of the conversation × hidden_size); 5 to 15
    is usual, 0 is off."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig, metadata=FREE)
    """What the model is asked at every evaluation."""

    def __post_init__(self) -> None:
        for name in ("z_loss", "neftune_alpha"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")

    def check(self, run: RunConfig) -> None:
        """Raise ValueError for fields of the run that only text has."""
        validate_post_training(run, self.lora)

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task.

        Raises:
            ValueError: `init_from` is of another shape, damaged, or no model; or no matrix is a target of `lora`.
        """
        noise = neftune(run.model.hidden_size, self.neftune_alpha) if self.neftune_alpha else None
        task = TrainTask(
            loss_fn=next_token(context.model, context.byte_lengths, self.z_loss, run.loss_chunk, noise),
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=heldout_evaluator(context, run.loss_chunk),
        )
        return add_lora(task, run, self.lora, self.lora and context.load_params(run.init_from))

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> ChatSource:
        """Make the source of packed conversations."""
        return ChatSource(run.data, run.heldout, self.chat, tokenizer)

    def on_evaluate(self, run: RunConfig) -> SampleWriter | None:
        """Return what asks the model, where it is asked anything."""
        return SampleWriter(run, self.samples, self.chat.template) if self.asks_for_samples else None

    @property
    def asks_for_samples(self) -> bool:
        """Whether there are prompts."""
        return bool(self.samples.prompts)


def to_element(example: Example, weighting: Weighting) -> dict[str, np.ndarray]:
    """An example as inputs, targets and weights of the loss [n - 1]."""
    trained = example.trained[1:].astype(np.float32)
    if weighting == "conversation":
        trained /= max(trained.sum(), 1)
    return {"tokens": example.ids[:-1], "targets": example.ids[1:], "weights": trained}


COLLATOR = Collator(("tokens", "targets", "weights"))


class ChatSource:
    """Conversations as the source of batches (`train.source.Source`).

    Held-out ones are read at once, so that bad ones end a run before it begins; those to train on are read when they are asked for, and
    never by a program that only measures.

    Args:
        data: the files, how they are mixed, and the shape of a batch.
        heldout: held-out files by name.
        chat: how conversations become rows.
        tokenizer: of the model.
    """

    def __init__(self, data: DataConfig, heldout: Mapping[str, Path], chat: ChatConfig, tokenizer: Tokenizer):
        self._data, self._chat, self._tokenizer = data, chat, tokenizer
        self._template = ChatTemplate.load(chat.template)
        require_marks(self._template)
        self._heldout = {name: self._read(path) for name, path in heldout.items()}
        self.files = {FILE_NAME: self._template.source}

    @functools.cached_property
    def _parts(self) -> list[Examples]:
        return [self._read(item.path) for item in self._data.mixture]

    @property
    def description(self) -> dict[str, list[str]]:
        """Fingerprints of the conversations to train on."""
        return {"examples": [part.fingerprint for part in self._parts]}

    @property
    def targets(self) -> list[int]:
        """Tokens in each file of the mixture."""
        return [part.targets for part in self._parts]

    def _read(self, path: Path) -> Examples:
        chat, report = self._chat, self._chat.report()
        # A row of t positions holds t + 1 ids: the first is never a target.
        limit = self._data.sequence_length + 1
        with naming_limit("chat.max_bad_rate"):
            conversations = read_conversations(path, report)
            examples, counts = encode_all(conversations, self._template, self._tokenizer, limit, chat.truncate, report)
        log_record_counts(path, "conversations", counts, report)
        if not examples:
            raise PlamoError(f"{path} holds no conversation of at most {limit} tokens")
        return Examples([to_element(example, chat.weighting) for example in examples])

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Batches without end, this process's rows of them."""
        return mixed_batches(
            self._data, self._parts, COLLATOR, process_index=process_index, process_count=process_count
        )

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Batches of one held-out file."""
        return one_pass(
            self._data, self._heldout[name], COLLATOR, process_index=process_index, process_count=process_count
        )
