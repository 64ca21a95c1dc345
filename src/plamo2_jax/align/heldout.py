"""Conversations as held-out data: what a model thinks of the assistant's tokens."""

from __future__ import annotations

from pathlib import Path

from plamo2_jax.align.chat import encode_all, read_conversations, read_records, require_marks
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.post_training import log_record_counts
from plamo2_jax.align.sft import COLLATOR, to_element
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, one_pass
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.heldout import HeldOutSet
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def chat_set(path: Path, template: str, tokenizer: Tokenizer, *, sequence_length: int, batch_size: int) -> HeldOutSet:
    """Read conversations and put them into batches; the assistant's tokens have weight 1. The first bad line ends the program.

    Args:
        path: a file, a folder or a pattern, in any form that fine-tuning reads.
        template: chat template.
        tokenizer: of the model.
        sequence_length: positions in a row; a conversation that is longer loses its last messages.
        batch_size: rows in a batch.

    Raises:
        ValueError: a line is no conversation, or none fits into a row.
    """
    loaded, report = ChatTemplate.load(template), ReadReport(max_bad_rate=0.0, judge_after=1)
    require_marks(loaded)
    limit = sequence_length + 1
    examples, counts = encode_all(read_conversations(path, report), loaded, tokenizer, limit, "last", report)
    log_record_counts(path, "conversations", counts, report)
    if not examples:
        raise PlamoError(f"{path} holds no conversation of at most {limit} tokens")
    elements = Examples([to_element(example, "token") for example in examples])
    data = DataConfig((MixtureItem(Path(path)),), sequence_length, batch_size)
    trained = sum(int(example.trained[1:].sum()) for example in examples)
    return HeldOutSet(one_pass(data, elements, COLLATOR), len(examples), trained)


def holds_text(path: Path) -> bool:
    """Whether a file, a folder or a pattern holds documents and not conversations, by its first record that can be read: one with a field
    `text` is a document, and so is what is no record at all, such as plain text.
    """
    try:
        fields = next((fields for _, fields in read_records(path, ReadReport(max_bad_rate=1.0))), {"text": ""})
    except ValueError:
        return True
    return "text" in fields
