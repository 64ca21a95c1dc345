"""Supervised fine-tuning: next-token cross-entropy on the assistant's tokens, in packed rows of whole conversations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.chat import Example, Truncate, encode_all, read_conversations, require_marks
from plamo2_jax.align.examples import Examples, ExampleSource
from plamo2_jax.align.lora import with_adapters
from plamo2_jax.align.post_training import (
    RecordsConfig,
    log_record_counts,
    naming_limit,
    require_records,
    validate_post_training,
)
from plamo2_jax.align.samples import SamplesConfig, SampleWriter
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.packing import Collator
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import FREE, RunConfig, TaskConfig
from plamo2_jax.train.pretraining import heldout_evaluator, next_token
from plamo2_jax.train.task import TaskContext, TrainTask
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require

Weighting = Literal["token", "conversation"]

COLLATOR = Collator(("tokens", "targets", "weights"))
"""Data collator of the elements of `to_element`."""


@dataclasses.dataclass(frozen=True)
class ChatConfig(RecordsConfig):
    """Packing of conversations into rows."""

    truncate: Truncate = "last"
    """How to shorten a conversation that is longer than a row. last: remove its last messages. first: remove its first exchanges and keep
    the system message. end: as last, and cut a single answer that is too long. refuse: skip it. Conversations that still do not fit are
    skipped and counted."""
    weighting: Weighting = "token"
    """Weights in the loss. token: every trained token has the same weight. conversation: every conversation has the same weight."""


def noise_scale(segment_ids: Array, hidden_size: int, alpha: float) -> Float[Array, "b t"]:
    """Return NEFTune's scale alpha / √(L d) for each token. L is the length of its segment in tokens. Padding has scale 0."""
    t = segment_ids.shape[1]
    length = jax.vmap(lambda ids: jnp.zeros(t + 1, jnp.float32).at[ids].add(1.0)[ids])(segment_ids)
    return jnp.where(segment_ids != 0, alpha / jnp.sqrt(length * hidden_size), 0.0)


def neftune(hidden_size: int, alpha: float) -> Callable[[Batch, Array], Array]:
    """Return the function that makes NEFTune's noise, for the argument `noise` of `train.pretraining.next_token`."""

    def noise(batch: Batch, rng: Array) -> Float[Array, "b t d"]:
        scale = noise_scale(batch["segment_ids"], hidden_size, alpha)
        return scale[..., None] * jax.random.uniform(rng, (*scale.shape, hidden_size), jnp.float32, -1.0, 1.0)

    return noise


@dataclasses.dataclass(frozen=True)
class Sft(TaskConfig):
    """Fine-tune on conversations: `data.mixture` and `heldout` name files of conversations. A field out of range raises PlamoError."""

    kind: ClassVar[str] = "sft"

    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    """Packing of conversations into rows."""
    z_loss: float = 1e-4
    """Coefficient of the z-loss log(Z)², which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 turns it off."""
    neftune_alpha: float = 0.0
    """NEFTune (arXiv:2310.05914): adds uniform noise of alpha / √(tokens of the conversation × hidden_size) to the embedded tokens.
    Usual values are 5 to 15; 0 turns it off."""
    lora: LoraConfig | None = None
    """Train LoRA adapters instead of the model."""
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig, metadata=FREE)
    """Prompts for sample answers at every evaluation."""

    def __post_init__(self) -> None:
        for name in ("z_loss", "neftune_alpha"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")

    def check(self, run: RunConfig) -> None:
        """Raise PlamoError if the other fields of the run do not fit the task."""
        validate_post_training(run, self.lora)

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task.

        Raises:
            PlamoError: `init_from` holds a model of another shape, is damaged or holds no model; or no matrix is a target of `lora`.
        """
        noise = neftune(run.model.hidden_size, self.neftune_alpha) if self.neftune_alpha else None
        task = TrainTask(
            loss_fn=next_token(context.model, context.byte_lengths, self.z_loss, run.loss_chunk, noise),
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=heldout_evaluator(context, run.loss_chunk),
        )
        if self.lora is None:
            return task
        return with_adapters(task, Adapters(run.model, self.lora, run.seed), context.load_params(run.init_from))

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> ExampleSource:
        """Make the source of packed conversations."""
        template = ChatTemplate.load(self.chat.template)
        require_marks(template)

        def read(path: Path) -> Examples:
            with naming_limit("chat.max_bad_rate"):
                return read_examples(path, self.chat, run.data.sequence_length, template, tokenizer)[0]

        return ExampleSource(run.data, run.heldout, template, COLLATOR, read)

    def on_evaluate(self, run: RunConfig) -> SampleWriter | None:
        """Return the writer of samples, or None without prompts."""
        return SampleWriter(run, self.samples, self.chat.template) if self.asks_for_samples else None

    @property
    def asks_for_samples(self) -> bool:
        """Whether there are prompts."""
        return bool(self.samples.prompts)


def to_element(example: Example, weighting: Weighting) -> dict[str, np.ndarray]:
    """Return an example of n ids as arrays [n - 1]: `tokens` and `targets` int32, `weights` of the loss float32."""
    trained = example.trained[1:].astype(np.float32)
    if weighting == "conversation":
        trained /= max(trained.sum(), 1)
    return {"tokens": example.ids[:-1], "targets": example.ids[1:], "weights": trained}


def read_examples(
    path: Path, config: ChatConfig, sequence_length: int, template: ChatTemplate, tokenizer: Tokenizer
) -> tuple[Examples, int]:
    """Read and encode the conversations of a file, a folder or a pattern, and print their number on stderr.

    Conversations that do not fit into `sequence_length` positions are shortened or omitted.

    Returns:
        The examples, and the number of trained tokens.

    Raises:
        PlamoError: the file is missing or damaged, has too many bad records, or has no conversation that fits into a row.
    """
    report = config.report()
    limit = sequence_length + 1  # A row of t positions holds t + 1 ids, because the first id is never a target.
    conversations = read_conversations(path, report)
    examples, counts = encode_all(conversations, template, tokenizer, limit, config.truncate, report)
    log_record_counts(path, "conversations", counts, report)
    require_records(path, "conversation", counts, limit, "raise data.sequence_length, or use another chat.truncate")
    trained = sum(int(example.trained[1:].sum()) for example in examples)
    return Examples([to_element(example, config.weighting) for example in examples]), trained
