"""Exports in transformers and tokenizers: they load without remote code, and encode, decode and render as we do."""

import json

import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.convert.small_files import write_small_files
from plamo2_jax.data.corpus import documents
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.template_files import FILE_NAME
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.tokenizer.train import VocabularyOptions, train_tokenizer

pytestmark = pytest.mark.peer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (make peers installs it)")


@pytest.fixture(scope="module")
def texts():
    return [document["text"] for language in ("ja", "en") for document in documents(language, "heldout")]


@pytest.fixture(scope="module")
def ours(texts):
    return train_tokenizer(texts, VocabularyOptions(vocab_size=2048), progress=False)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    template = ChatTemplate.load("chat").source.encode()
    write_small_files(folder, preset("tiny"), ours, np.dtype(np.float32), {FILE_NAME: template})
    return transformers.AutoTokenizer.from_pretrained(folder)


def plain(theirs, text):
    return theirs(text, add_special_tokens=False)["input_ids"]


def test_only_ties_are_encoded_differently(ours, theirs, texts):
    costs, others, total = ours.vocabulary.costs, 0, 0
    for text in texts:
        left, right = ours.encode(text), np.array(plain(theirs, text))
        assert costs[left].sum() == costs[right].sum()
        assert theirs.decode(right) == text
        total += len(left)
        others += len(np.setdiff1d(*(np.cumsum(ours.byte_lengths[ids]) for ids in (left, right))))
    print(f"{others} of {total} token boundaries differ")
    assert 0 < others < 0.002 * total


@pytest.mark.parametrize("text", ["<0x41>", "<0xE3>", "𩸽と🐟 ﷽", "\u0000\t", "a<|plamo:unk", ""])
def test_rare_characters_and_spelled_bytes(ours, theirs, text):
    assert plain(theirs, text) == ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text).tolist()]
    assert theirs.decode(plain(theirs, text)) == text


def test_control_strings_are_control_tokens_there(ours, theirs):
    text = "a<|plamo:op|>b<|plamo:eos|>"
    assert plain(theirs, text) == ours.encode(text, allow_control=True).tolist()
    assert theirs.decode(plain(theirs, text), skip_special_tokens=True) == "ab"
    assert {ours.bos_id, ours.eos_id, ours.op_id, ours.unk_id} <= set(theirs.all_special_ids)


def test_the_chat_template_is_rendered_to_the_same_ids(ours, theirs):
    messages = [{"role": "user", "content": "日本語で。"}, {"role": "assistant", "content": "はい"}]
    chat = ChatTemplate.load("chat").encode(ours, messages)
    encoded = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.decode(encoded["input_ids"]) == ours.decode(chat.ids)
    answer = [id for id, inside in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if inside]
    assert ours.decode(answer) == ours.decode(chat.ids[chat.answer > 0])


def test_generation_stops_at_the_same_ids(theirs):
    config = transformers.GenerationConfig.from_pretrained(theirs.name_or_path)
    assert config.eos_token_id == [2, 1, 4]
    with open(f"{theirs.name_or_path}/config.json", encoding="utf-8") as file:
        assert "auto_map" not in json.load(file)


def test_the_tokenizer_is_read_back(ours, theirs):
    assert Tokenizer.load(theirs.name_or_path).fingerprint == ours.fingerprint
