"""What is damaged: a sound folder for every reader of files that may come from elsewhere, and a function that reads it whole."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.peft import CONFIG as ADAPTER_CONFIG
from plamo2_jax.adapters.peft import read_peft, write_peft
from plamo2_jax.align.chat import encode_all, read_conversations
from plamo2_jax.align.pairs import read_pairs
from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.entries import is_entry, read_identity, read_report
from plamo2_jax.align.preference_data.files import write_files
from plamo2_jax.align.preference_data.prompts import Prompt, read_prompts
from plamo2_jax.align.reference import ReferenceLogProbs
from plamo2_jax.cli.logits import check_tokens, read_input
from plamo2_jax.convert.hf import write_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.quantized import save_quantized
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.data.shards import open_shards
from plamo2_jax.data.sources import read_documents
from plamo2_jax.journal import Journal
from plamo2_jax.manifest import find_damage, write_manifest
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.model.plamo2 import declarations
from plamo2_jax.model.quantized import quantize_params
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.pipeline.state import Record, State
from plamo2_jax.report.page import write_report
from plamo2_jax.surgery.merge.sources import open_source
from plamo2_jax.surgery.shapes import read_shape
from plamo2_jax.surgery.teacher_logits import TeacherLogits
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.models import tiny

CONFIG = tiny(vocab_size=864)
MESSAGES = [{"role": "user", "content": "吾輩は猫ですか。"}, {"role": "assistant", "content": "はい。"}]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        write: makes a sound folder.
        read: reads all of a folder, sound or damaged.
        names: further words that tell a user where an error lies.
        follows_links: the user names the files, which may be links to anywhere.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    names: tuple[str, ...] = ()
    follows_links: bool = False


def files(seeds: Path, target: str) -> list[str]:
    """Names of the files of a sound folder, relative to it."""
    folder = seeds / target
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_seeds(folder: Path) -> None:
    """Make the sound folder of every target."""
    for name, target in TARGETS.items():
        (folder / name).mkdir(parents=True)
        target.write(folder / name)


def tokenizer() -> Tokenizer:
    """The small vocabulary of the tests."""
    return Tokenizer.load(Path(__file__).parents[2] / "golden" / "tokenizer")


def _params() -> Any:
    model = Plamo2(CONFIG)
    return jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def _lines(path: Path, records: list[Any]) -> None:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# --- models


def _write_model(folder: Path) -> None:
    write_public(folder / "model", CONFIG, _params(), tokenizer(), max_shard_bytes=60_000)
    (folder / "model" / "chat_template.jinja").write_bytes(
        b"{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )


def _read_model(folder: Path) -> None:
    load_model(folder / "model")
    chat_template_files(folder / "model")


def _write_run(folder: Path) -> None:
    checkpoint.save_model(folder / "run", CONFIG, _params(), tokenizer())


def _read_run(folder: Path) -> None:
    load_model(folder / "run")


def _write_quantized(folder: Path) -> None:
    params = quantize_params(_params(), declarations(Plamo2(CONFIG)), 4, 16, symmetric=False)
    save_quantized(folder / "quantized", CONFIG, params, tokenizer(), method="rtn")
    # Without the checksums, so that damage reaches the reader.
    for path in folder.rglob("manifest.json"):
        path.unlink()


def _read_quantized(folder: Path) -> None:
    load_model(folder / "quantized", quantized=True)


def _read_source(folder: Path) -> None:
    open_source(str(folder / "model"))


def _write_shape(folder: Path) -> None:
    checkpoint.write_json(folder / "shape.json", CONFIG.to_hf())


def _write_adapter(folder: Path) -> None:
    from plamo2_jax.adapters.attach import Adapters

    lora = LoraConfig(rank=2)
    shapes = Adapters(CONFIG, lora).abstract
    adapters = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    write_peft(folder / "adapter", CONFIG, lora, adapters, "base")
    about = json.loads((folder / "adapter" / ADAPTER_CONFIG).read_text())
    about["alpha_pattern"] = {r"layers\.1\.mixer\.in_proj": 4.0}
    checkpoint.write_json(folder / "adapter" / ADAPTER_CONFIG, about)


def _read_adapter(folder: Path) -> None:
    read_peft(folder / "adapter", CONFIG)


def _read_tokenizer(folder: Path) -> None:
    Tokenizer.load(folder / "tokenizer.jsonl").encode("吾輩は猫である。 The cat.")


TEMPLATE = """{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{% endgeneration %}
{% else %}{{ message['content'] ~ loop.index }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"""


def _read_template(folder: Path) -> None:
    ChatTemplate.load(folder / "chat_template.jinja").encode(tokenizer(), MESSAGES)


# --- text and conversations

_RECORDS = [
    {"text": f"吾輩は猫である。名前は{i}番。", "id": f"n{i}", "language": "ja", "extra": [{"a": i}, {"a": None}]}
    for i in range(6)
]


def _write_text(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    _lines(folder / "a.jsonl", _RECORDS)
    _lines(folder / "b.jsonl.gz", _RECORDS)
    (folder / "c.txt").write_text("plain text\n" * 5)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_RECORDS), folder / "d.parquet")


def _read_text(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.parquet"):
        for document in read_documents([str(folder / name)], report=ReadReport()):
            json.dumps(document.to_json(), ensure_ascii=False, allow_nan=False).encode()


_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
_CONVERSATIONS = [
    {"messages": [{"role": "system", "content": "s"}, *MESSAGES]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {
        "messages": [
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
            {"role": "assistant", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
    },
]


def _write_chats(folder: Path) -> None:
    _lines(folder / "chats.jsonl", _CONVERSATIONS)


def _read_chats(folder: Path) -> None:
    template = ChatTemplate.load("chat")
    report = ReadReport(max_bad_rate=0.0)
    list(encode_all(read_conversations(folder / "chats.jsonl", report), template, tokenizer(), 256, "last", report))


_PAIRS = [
    {"prompt": MESSAGES[:1], "chosen": "はい。", "rejected": "いいえ。"},
    {"prompt": "a", "chosen": "b", "rejected": "c", "system": "s"},
    {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "いいえ。"}]},
    {"prompt": "a", "completion": "b", "label": True},
]


def _write_pairs(folder: Path) -> None:
    _lines(folder / "pairs.jsonl", _PAIRS)


def _read_pairs(folder: Path) -> None:
    list(read_pairs(folder / "pairs.jsonl", ReadReport(max_bad_rate=0.0)))


def _write_prompts(folder: Path) -> None:
    rules = {"language": "ja", "characters": [1, 50], "contains": ["a"], "matches": "a+", "json": True}
    _lines(folder / "prompts.jsonl", [{"id": "p", "prompt": "a", "rules": rules}, {"messages": MESSAGES[:1]}])


def _read_prompts(folder: Path) -> None:
    read_prompts([folder / "prompts.jsonl"], {})


# --- what the program wrote earlier


def _write_shards(folder: Path) -> None:
    documents = [Document(record["text"], record["id"]) for record in _RECORDS]
    write_shards(documents, tokenizer(), folder / "shards", tokens_per_shard=20, progress=False)


def _read_shards(folder: Path) -> None:
    shards = open_shards(folder / "shards", tokenizer())
    for i in range(len(shards)):
        shards[i]


def _write_preference_data(folder: Path) -> None:
    verdict = {"pair": [0, 1], "said": ["A", "B"], "winner": 0, "retries": 0}
    answer = {"sample": 0, "text": "はい。", "finished": True, "tokens": 3, "retries": 0, "dropped": None}
    scores = {"rules": {"finished": 1.0}, "rules_mean": 1.0, "judge": 1.0, "score": 1.0}
    answers = [{**answer, **scores}, {**answer, **scores, "sample": 1, "text": "いいえ。", "score": 0.5}]
    entries = [{"id": "a", "answers": answers, "verdicts": [verdict]}, {"id": "b", "failed": "why", "retries": 2}]
    _lines(folder / "journal.jsonl", entries)
    checkpoint.write_json(folder / "config.json", {"config": {}, "prompts": "", "policy": {}, "judge": None})
    _read_preference_data(folder)


def _read_preference_data(folder: Path) -> None:
    read_identity(folder)
    read_report(folder)
    journal = Journal(folder / "journal.jsonl", lambda entry: is_entry(entry, 2))
    journal.close()
    config = PreferenceDataConfig(folder, (folder,), ChatModelConfig("model"), samples=2)
    prompts = [Prompt(id, ({"role": "user", "content": "?"},), {}, "line 1") for id in journal.entries]
    write_files(folder, config, prompts, {}, journal.entries, {"policy": {}, "judge": None})


def _write_finished_run(folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    checkpoint.write_json(run / "config.json", {"name": "run", "model": CONFIG.to_json(), "steps": 2})
    figures = {
        "loss": 2.5,
        "learning_rate": 1e-3,
        "tokens": 100,
        "tokens_per_second": 1e3,
        "grad_norm": 1.0,
        "bits_per_byte": 2.5,
    }
    lines = [{"step": i, "time": 100.0 + i, **figures, "heldout/en/bits_per_byte": 2.0} for i in (1, 2)]
    _lines(run / "metrics.jsonl", lines)
    _lines(
        run / "samples.jsonl", [{"prompt": "a", "text": "b", "step": 2, "finish_reason": "stop", "token_ids": [1, 2]}]
    )
    checkpoint.write_json(run / "evaluation.json", {"languages": {"en": {"bits_per_byte": 2.0, "xz": 2.5}}})


def _read_finished_run(folder: Path) -> None:
    write_report(folder / "run")


def _write_record(folder: Path) -> None:
    State(folder).write("stage", Record({"command": ["a"]}, {"in": {".": [1, 2, "ab"]}}, {"out": [1, 2, "cd"]}, 1.5))


def _read_record(folder: Path) -> None:
    record = State(folder).read("stage")
    assert record is None or (isinstance(record.key, dict) and isinstance(record.external, dict))


def _write_training_checkpoint(folder: Path) -> None:
    (folder / "5" / "params").mkdir(parents=True)
    (folder / "5" / "params" / "a").write_bytes(b"abc" * 50)
    (folder / "5" / "params" / "b").write_bytes(b"def" * 50)
    write_manifest(folder / "5", ["params"], {"step": 5})


def _read_training_checkpoint(folder: Path) -> None:
    if (damage := find_damage(folder / "5")) is not None:
        raise ValueError(f"{folder / '5'} is damaged: {damage}")


def _write_logits(folder: Path) -> None:
    np.savez(folder / "in.npz", tokens=np.arange(12).reshape(2, 6), segment_ids=np.ones((2, 6), np.int32))


def _read_logits(folder: Path) -> None:
    check_tokens(folder / "in.npz", *read_input(folder / "in.npz"), vocab_size=864)


def _write_teacher(folder: Path) -> None:
    target = folder / "teacher"
    target.mkdir()
    np.save(target / "keys.npy", np.arange(3, dtype=np.uint64))
    np.save(target / "order.npy", np.arange(3))
    np.save(target / "ids.npy", np.zeros((3, 4, 2), np.int32))
    np.save(target / "logits.npy", np.zeros((3, 4, 2), np.float32))
    np.save(target / "log_z.npy", np.zeros((3, 4), np.float32))
    about = {"teacher": "t", "tokenizer": "t", "temperature": 1.0, "top_k": 2, "sequence_length": 4, "rows": 3}
    from plamo2_jax.surgery.teacher_logits import FORMAT

    checkpoint.write_json(target / "manifest.json", {"format": FORMAT, **about})


def _read_teacher(folder: Path) -> None:
    logits = TeacherLogits.open(folder / "teacher")
    for name in ("ids", "logits", "log_z"):
        np.asarray(logits._arrays[name][logits._order])


def _write_reference(folder: Path) -> None:
    from plamo2_jax.align.reference import FORMAT, LOG_PROBS

    target = folder / "reference"
    target.mkdir()
    np.save(target / LOG_PROBS, np.zeros(7, np.float32))
    parts = [{"fingerprint": "a", "positions": 3}, {"fingerprint": "b", "positions": 4}]
    checkpoint.write_json(
        target / "manifest.json", {"format": FORMAT, "reference": "r", "tokenizer": "t", "parts": parts}
    )


def _read_reference(folder: Path) -> None:
    reference = ReferenceLogProbs.open(folder / "reference")
    reference.check("r", "t")
    assert len(reference.of("a")) == 3
    assert len(reference.of("b")) == 4


TARGETS = {
    "adapter": Target(_write_adapter, _read_adapter),
    "chats": Target(_write_chats, _read_chats, follows_links=True),
    "logits_input": Target(_write_logits, _read_logits, follows_links=True),
    "merge_source": Target(_write_model, _read_source),
    "model": Target(_write_model, _read_model),
    "pairs": Target(_write_pairs, _read_pairs, follows_links=True),
    "pipeline_record": Target(_write_record, _read_record),
    "preference_data": Target(_write_preference_data, _read_preference_data),
    "prompts": Target(_write_prompts, _read_prompts, follows_links=True),
    "reference": Target(_write_reference, _read_reference),
    "quantized": Target(_write_quantized, _read_quantized),
    "report": Target(_write_finished_run, _read_finished_run),
    "run": Target(_write_run, _read_run),
    "shape": Target(_write_shape, lambda folder: read_shape(str(folder / "shape.json")), follows_links=True),
    "shards": Target(_write_shards, _read_shards),
    "teacher": Target(_write_teacher, _read_teacher),
    "template": Target(
        lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE), _read_template, follows_links=True
    ),
    "text": Target(_write_text, _read_text, follows_links=True),
    "tokenizer": Target(
        lambda folder: tokenizer().save(folder / "tokenizer.jsonl"), _read_tokenizer, follows_links=True
    ),
    "training_checkpoint": Target(_write_training_checkpoint, _read_training_checkpoint),
}
"""By name. `prefer`'s endpoint and judge answers are bytes of a server, and have tests of their own."""
