"""Held-out data of any kind for one model: shards, text, or conversations. In conversations, only the assistant's tokens are measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from plamo2_jax.adapters.open import open_model
from plamo2_jax.align.chat import read_records, require_marks
from plamo2_jax.align.forms import ANSWERS, conversation_field
from plamo2_jax.align.sft import COLLATOR, ChatConfig, read_examples
from plamo2_jax.checkpoint import read_config
from plamo2_jax.convert.names import ModelName
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, one_pass
from plamo2_jax.data.shards import MANIFEST
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.heldout import Comparison, HeldOutSet, compare, text_set
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def measure_heldout(
    model: str | os.PathLike[str],
    heldout: Mapping[str, str | os.PathLike[str]],
    *,
    step: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    template: str | None = None,
    sequence_length: int | None = None,
    batch_size: int = 8,
    dtype: str = "float32",
) -> dict[str, Comparison]:
    """Measure a model on held-out data, and the compressor xz on the same text.

    Args:
        model: run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters.
        heldout: paths by name: folders of shards, or text or conversations, which are tokenized.
        step: checkpoint of a run folder; None: the step in `model`, or else the newest.
        tokenizer: tokenizer.jsonl, or its folder, instead of the model's own.
        template: chat template of conversations; None: the model's own, or else `chat`.
        sequence_length: positions per row; None: see `training_length`.
        batch_size: rows per batch.
        dtype: dtype of activations.

    Raises:
        PlamoError: the model or held-out data cannot be read, or the model has no tokenizer.
    """
    loaded = open_model(model, step=step)
    vocabulary = loaded.tokenizer if tokenizer is None else Tokenizer.load(tokenizer)
    if vocabulary is None:
        raise PlamoError(f"{model} has no tokenizer.jsonl: add --tokenizer FILE")
    folder = ModelName.parse(model).folder
    length = training_length(folder) if sequence_length is None else sequence_length
    if template is None:
        template = str(folder) if (folder / FILE_NAME).is_file() else "chat"
    network = Plamo2(loaded.config, dtype=jnp.dtype(dtype), scan_layers=loaded.scan_layers)
    shape = {"sequence_length": length, "batch_size": batch_size}
    sets = {name: open_set(Path(path), template, vocabulary, **shape) for name, path in heldout.items()}
    return compare(network, loaded.params, vocabulary, sets, **shape)


def open_set(path: Path, template: str, tokenizer: Tokenizer, *, sequence_length: int, batch_size: int) -> HeldOutSet:
    """Read one held-out set: shards, text, or conversations.

    Raises:
        PlamoError: it cannot be read, is empty, or was tokenized with another tokenizer.
    """
    shape = {"sequence_length": sequence_length, "batch_size": batch_size}
    if (path / MANIFEST).is_file():
        return text_set(path, tokenizer, **shape)
    if holds_text(path):
        report = ReadReport(max_bad_rate=0.0, judge_after=1)
        return text_set(TokenizedText(read_documents([path], report=report), tokenizer, str(path)), tokenizer, **shape)
    return chat_set(path, template, tokenizer, **shape)


def training_length(model: Path) -> int:
    """Return the row length with which a run was trained, in tokens; 2048 if its config does not have it."""
    data = read_config(model).get("data")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    return length if isinstance(length, int) else 2048


def chat_set(path: Path, template: str, tokenizer: Tokenizer, *, sequence_length: int, batch_size: int) -> HeldOutSet:
    """Read conversations in any form that fine-tuning reads, and pack them into batches. The assistant's tokens have weight 1.

    Args:
        template: name or file of the chat template.
        sequence_length: positions of a row. A longer conversation loses its last messages.

    Raises:
        PlamoError: a record is no conversation, or no conversation fits into a row.
    """
    loaded = ChatTemplate.load(template)
    require_marks(loaded)
    examples, trained = read_examples(path, ChatConfig(max_bad_rate=0.0), sequence_length, loaded, tokenizer)
    data = DataConfig((MixtureItem(Path(path)),), sequence_length, batch_size)
    return HeldOutSet(one_pass(data, examples, COLLATOR), len(examples), trained)


def holds_text(path: Path) -> bool:
    """Return whether a file, a folder or a pattern holds documents, and not conversations.

    The first readable record decides: a record with a field `text`, and with neither messages nor an answer, is a document. Data without
    records, such as plain text, are documents.
    """
    try:
        fields = next((fields for _, fields in read_records(path, ReadReport(max_bad_rate=1.0))), {"text": ""})
    except ValueError:
        return True
    return "text" in fields and conversation_field(fields) is None and not any(fields.get(name) for name in ANSWERS)
