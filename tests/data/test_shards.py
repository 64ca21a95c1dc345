"""Shards: the record format, what the manifest says, and every way in which a folder can be wrong."""

import json
import pickle

import numpy as np
import pytest

from plamo2_jax.data.documents import Document, ReadReport, UnreadableRecord
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.data.shards import ShardError, TokenizedDocument, decode_record, encode_record, open_shards
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.shards import documents_of, write

LENGTHS = [30, 200, 5, 1, 190, 44]


@pytest.fixture
def folder(letters, tmp_path):
    return write(tmp_path / "shards", documents_of(LENGTHS), letters)


def edit(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_record_is_as_documented():
    record = encode_record(TokenizedDocument(np.array([1, 2, 100_000], np.int32), 7))
    assert record.hex() == "50445332" + "03000000" + "0700000000000000" + "01000000" + "02000000" + "a0860100"
    ids, size = decode_record(record)
    assert (ids.tolist(), ids.dtype, size) == ([1, 2, 100_000], np.int32, 7)


@pytest.mark.parametrize("damage", [lambda r: r[:-1], lambda r: r + b"\0", lambda r: b"X" + r[1:], lambda r: r[:10]])
def test_a_record_of_another_format_is_refused(damage):
    with pytest.raises(ShardError, match="a record"):
        decode_record(damage(encode_record(TokenizedDocument(np.arange(3, dtype=np.int32), 7))))


def test_documents_come_back_in_order(folder, letters):
    shards = open_shards(folder, letters)
    documents = documents_of(LENGTHS)
    assert len(shards.manifest["shards"]) == 2
    assert [letters.decode(document.ids) for document in map(shards.__getitem__, range(len(shards)))] == [
        document.text for document in documents
    ]
    assert [shards[i].bytes for i in range(len(shards))] == [len(d.text.encode()) for d in documents]
    assert (shards.documents, shards.tokens, shards.bytes) == (6, sum(LENGTHS), 3 * sum(LENGTHS))
    assert shards.lengths.tolist() == LENGTHS


def test_the_manifest_counts_languages_and_bad_records(letters, tmp_path):
    documents = [
        Document(chr(0x4E00) * n, "d", {"language": language}) for n, language in ((3, "ja"), (4, "en"), (2, "ja"))
    ]
    documents.append(Document("あ", "d"))  # no row of its own: three bytes
    report = ReadReport(max_bad_rate=1)
    report.count_bad("a.jsonl, line 3", UnreadableRecord("not JSON"))
    manifest = write_shards(documents, letters, tmp_path / "shards", report=report, progress=False)
    assert manifest == open_shards(tmp_path / "shards").manifest
    assert manifest["languages"] == {
        "en": {"documents": 1, "tokens": 4, "bytes": 12},
        "ja": {"documents": 2, "tokens": 5, "bytes": 15},
        "unknown": {"documents": 1, "tokens": 3, "bytes": 3},
    }
    assert manifest["tokenizer"] == {"fingerprint": letters.fingerprint, "vocab_size": letters.vocab_size}
    assert manifest["reading"] == {
        "records": 1,
        "bad": 1,
        "reasons": {"not JSON": 1},
        "first": ["a.jsonl, line 3: not JSON"],
    }


def test_control_strings_in_text_stay_text(letters, tmp_path):
    text = "a<|plamo:eos|>b"
    write_shards([Document(text, "d")], letters, tmp_path / "shards", progress=False)
    ids = open_shards(tmp_path / "shards")[0].ids
    assert letters.decode(ids) == text
    assert letters.eos_id not in ids


def test_worker_processes_write_the_same(folder, letters, tmp_path):
    write_shards(documents_of(LENGTHS * 30), letters, tmp_path / "one", tokens_per_shard=5000, progress=False)
    write_shards(
        documents_of(LENGTHS * 30), letters, tmp_path / "two", tokens_per_shard=5000, processes=2, progress=False
    )
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_fingerprint_is_that_of_the_documents(folder, letters, tmp_path):
    def fingerprint(documents):
        return open_shards(write(tmp_path / "other", documents, letters)).fingerprint

    same = documents_of(LENGTHS)
    assert fingerprint(same) == open_shards(folder).fingerprint
    assert len({fingerprint(some) for some in (same, same[1:], documents_of(LENGTHS, seed=1))}) == 3


def test_shards_can_be_pickled(folder):
    shards = open_shards(folder)
    shards[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards))[1].ids, shards[1].ids)


def test_another_tokenizer_is_refused(folder, letters):
    other = Tokenizer.from_rows([*map(list, rows_of(letters)), ["one more", -1.0, "NORMAL"]])
    with pytest.raises(ShardError) as error:
        open_shards(folder, other)
    assert letters.fingerprint[:12] in str(error.value)
    assert other.fingerprint[:12] in str(error.value)
    assert str(folder) in str(error.value)


def rows_of(tokenizer):
    for i, token in enumerate(tokenizer.tokens):
        kind = "BYTE" if token.startswith("<0x") else ("UNKNOWN" if i == 0 else "CONTROL" if i < 5 else "NORMAL")
        yield token, -1.0, kind


def test_an_existing_folder_is_only_replaced_when_asked(folder, letters, tmp_path):
    with pytest.raises(ShardError, match=r"exists\. Choose another folder"):
        write_shards(documents_of([3]), letters, folder, progress=False)
    assert len(open_shards(folder)) == 6
    write_shards(documents_of([3]), letters, folder, overwrite=True, progress=False)
    assert len(open_shards(folder)) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match=r"is not a folder of shards .*so it is not overwritten"):
        write_shards(documents_of([3]), letters, tmp_path / "mine", overwrite=True, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_nothing_is_left_behind_when_reading_fails(letters, tmp_path):
    def failing():
        yield from documents_of([100, 200])
        raise ValueError("the source is damaged")

    with pytest.raises(ValueError, match="the source is damaged"):
        write_shards(failing(), letters, tmp_path / "shards", progress=False)
    with pytest.raises(ShardError, match="no document"):
        write_shards([], letters, tmp_path / "shards", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "plamo2-shards-9"}, "format is 'plamo2-shards-9': it must be 'plamo2-shards-1'"),
        ({"documents": 7}, r"lengths.npy holds uint32 \[6\]: it must hold uint32 \[7\]"),
        ({"tokens": 1}, "lengths.npy adds up to 470 tokens, but manifest.json lists 1"),
        ({"bytes": -1}, "bytes of the manifest is -1: it must be a whole number"),
        ({"tokenizer": None}, "tokenizer is None"),
        ({"shards": []}, "shards is .*not empty"),
        (
            {"shards": [{"name": "../x", "documents": 6, "size": 1}]},
            r"shards\[0\].name is '../x': it must be 'shard-00000",
        ),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(folder, fields, message):
    edit(folder, **fields)
    with pytest.raises(ShardError, match=message):
        open_shards(folder)


def test_a_folder_that_is_damaged_is_refused(folder, tmp_path):
    with pytest.raises(ShardError, match=r"nothing is not a folder of shards: it has no manifest.json"):
        open_shards(tmp_path / "nothing")
    shard = folder / "shard-00001.arrayrecord"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with pytest.raises(
        ShardError, match=rf"shard-00001.arrayrecord has {len(data) - 100} bytes, but .* lists {len(data)}"
    ):
        open_shards(folder)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(ShardError, match="cannot be opened"):
        open_shards(folder)
    shard.unlink()
    with pytest.raises(ShardError, match=r"shard-00001.arrayrecord is missing"):
        open_shards(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match=r"manifest.json is not valid JSON"):
        open_shards(folder)


def test_lengths_are_read_without_pickle(folder):
    np.save(folder / "lengths.npy", np.array([{}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match=r"lengths.npy holds object \[6\]: it must hold uint32"):
        open_shards(folder)


def test_a_damaged_record_is_named(folder):
    shard = folder / "shard-00000.arrayrecord"
    data = bytearray(shard.read_bytes())
    # The first record lies at the front; its checksum no longer agrees.
    for i in range(64, 200):
        data[i] ^= 0xFF
    shard.write_bytes(bytes(data))
    shards = open_shards(folder)
    with pytest.raises(ShardError, match=r"shards, document 0"):
        shards[0]
