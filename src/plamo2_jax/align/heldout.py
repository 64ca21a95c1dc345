"""Conversations as held-out data: cross-entropy of the assistant's tokens."""

from __future__ import annotations

from pathlib import Path

from plamo2_jax.align.chat import read_records, require_marks
from plamo2_jax.align.sft import COLLATOR, ChatConfig, read_examples
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, one_pass
from plamo2_jax.eval.heldout import HeldOutSet
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer


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

    The first readable record decides: a record with a field `text` is a document. Data without records, such as plain text, are documents.
    """
    try:
        fields = next((fields for _, fields in read_records(path, ReadReport(max_bad_rate=1.0))), {"text": ""})
    except ValueError:
        return True
    return "text" in fields
