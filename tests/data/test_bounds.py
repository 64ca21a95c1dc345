"""Records that are too long are bad records, whatever they are packed in, and what unfolds without end takes no memory."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

import plamo2_jax.data.tfds_builder  # noqa: F401 - registers "plamo2_corpus"
from plamo2_jax.data import corpus, parquet
from plamo2_jax.data.array_record import read_chunks
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.readers import read_records
from plamo2_jax.data.sources import read_documents
from plamo2_jax.data.streams import read_lines

LIMIT = 1000
GOOD = [f"text number {i}" for i in range(40)]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd}


def read(path, **options) -> tuple[list[str], list[str]]:
    """Texts and bad records."""
    report = ReadReport(max_bad_rate=1)
    found = [d.text for d in read_documents([path], report=report, max_record_bytes=LIMIT, **options)]
    assert report.records == len(found) + report.bad
    return found, [str(record) for record in report.first]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_lines(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in GOOD]
    long = b'{"text": "' + b"a" * 5_000_000 + b'"}'
    exact = b'{"text": "' + b"a" * (LIMIT - 13) + b'"}\n'
    data = b"".join([*lines[:20], exact, exact.replace(b"a", b"aa", 1), long, b"\n", *lines[20:], long])
    # Compressed files may be several streams, one behind the other.
    path.write_bytes(b"".join(COMPRESS[suffix](data[i : i + 1_000_000]) for i in range(0, len(data), 1_000_000)))
    found, bad = read(path)
    assert found == [*GOOD[:20], "a" * (LIMIT - 13), "a" * (LIMIT - 12), *GOOD[20:]]
    assert bad == [f"{path}, line {line}: too long (line of more than 1,000 bytes)" for line in (23, 44)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_files(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](b"a" * LIMIT))
    (tmp_path / f"b.txt{suffix}").write_bytes(COMPRESS[suffix](b"a" * (LIMIT + 1)))
    found, bad = read(tmp_path)
    assert found == ["a" * LIMIT]
    assert bad == [f"{tmp_path}/b.txt{suffix}: too long (text of more than 1,000 bytes)"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_rows_of_parquet(tmp_path, kind, dictionary):
    texts = [*GOOD[:20], "a" * 5_000, *GOOD[20:], "b" * 900]
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts).cast(kind)
    # The last row is too long with its other columns, and a list of texts counts by its texts.
    more = pa.array([None] * 41 + [["c" * 60] * 2])
    pq.write_table(pa.table({"text": column, "more": more}), tmp_path / "a.parquet", use_dictionary=dictionary)
    found, bad = read(tmp_path / "a.parquet")
    assert found == GOOD
    assert bad == [f"{tmp_path}/a.parquet, row {row}: too long (row of more than 1,000 bytes)" for row in (21, 42)]
    assert read(tmp_path / "a.parquet", keep_fields=False)[0] == [*GOOD, "b" * 900]


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_encodings_of_parquet(tmp_path, encoding, version):
    texts = pa.array([*GOOD, "a" * 5_000, *GOOD])
    options = {"use_dictionary": False, "column_encoding": {"text": encoding}, "data_page_version": version}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **options)
    assert read(tmp_path / "a.parquet")[0] == [*GOOD, *GOOD]


def test_a_page_of_parquet_that_unfolds_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_PAGES", 1_000_000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 2_000_000]}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(
        ValueError, match=r"a.parquet, row group 1, column 'text': a page of \d+ bytes decompresses to 2,000,"
    ) as error:
        read(path)
    assert str(error.value).endswith("at most 1,000,000 are allowed. Write the file with smaller pages")
    # Two columns of 600,000 bytes each are too much together; a page that is as large in the file is not.
    column = ["a" * 600_000]
    pq.write_table(pa.table({"text": column, "more": column}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match=r"a.parquet, row group 1: its columns decompress to 1,200,"):
        read(path)
    pq.write_table(pa.table({"text": ["a" * 2_000_000, "fine"]}), path, compression="none", use_dictionary=False)
    assert read(path) == (["fine"], [f"{path}, row 1: too long (row of more than 1,000 bytes)"])


@pytest.mark.parametrize("group_size", [1, 8])
def test_stored_records(tmp_path, group_size):
    path = tmp_path / "a.arrayrecord"
    writer = ArrayRecordWriter(str(path), f"group_size:{group_size}")
    for text in (*GOOD[:20], "a" * 5_000, *GOOD[20:]):
        writer.write(json.dumps({"text": text}).encode())
    writer.close()
    found, bad = read(path)
    assert found == GOOD
    assert bad == [f"{path}, record 21: too long (record of more than 1,000 bytes)"]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:3,uncompressed", "group_size:7,transpose:true"])
def test_sizes_of_chunks_are_those_of_their_records(tmp_path, options):
    path = tmp_path / "a.arrayrecord"
    # Blocks of 65536 bytes, with headers of 24, come in the middle of chunks.
    sizes = [0, 1, 65_536, 10, 65_512, 200_000, 0, 0, 65_472, 3] * 3
    writer = ArrayRecordWriter(str(path), options)
    for i, size in enumerate(sizes):
        writer.write((b"%d" % i).ljust(size, b"x")[:size])
    writer.close()
    reader = ArrayRecordReader(str(path))
    assert reader.num_records() == len(sizes)
    for chunk in read_chunks(path, len(sizes)):
        assert chunk.bytes == sum(sizes[: chunk.records])
        del sizes[: chunk.records]
    assert not sizes
    with pytest.raises(ValueError, match=r"a.arrayrecord is damaged"):
        list(read_chunks(path, 1000))


def test_tfds(tmp_path, monkeypatch):
    documents = list(corpus.documents("ja", "heldout"))[:6]
    documents[2] = documents[2] | {"text": "a" * 5_000_000}
    monkeypatch.setattr(corpus, "documents", lambda language, split: iter(documents))
    tfds.data_source("plamo2_corpus/ja", split="heldout", data_dir=tmp_path)
    report = ReadReport(max_bad_rate=1)
    options = {"data_dir": tmp_path, "report": report, "max_record_bytes": 1_000_000}
    found = list(read_documents(["tfds:plamo2_corpus/ja:heldout[1:5]"], **options))
    assert [document.text for document in found] == [documents[i]["text"] for i in (1, 3, 4)]
    assert str(report.first[0]).startswith("tfds:plamo2_corpus/ja:heldout[1:5], record 2: too long")


def test_values_of_a_record_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    many = b'{"text": "a", "x": [' + b"[]," * 2_000_001 + b"0]}\n"
    path.write_bytes(many + b'{"text": "' + b",[" * 3_000_000 + b'\\""}\n')
    report = ReadReport(max_bad_rate=1)
    assert [len(document.text) for document in read_documents([path], report=report)] == [6_000_001]
    assert str(report.first[0]) == f"{path}, line 1: too many values (more than 2,000,000 values in one record)"


def test_lists_of_equal_numbers_are_read_row_by_row(tmp_path, monkeypatch):
    """Their pages have hardly any bytes, and in memory each number takes 8."""
    table = pa.table({"text": GOOD, "numbers": [[0] * 10_000] * 39 + [[1]]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    batches, rows = [], parquet._rows
    monkeypatch.setattr(parquet, "_rows", lambda batch, *more: batches.append(batch.num_rows) or rows(batch, *more))
    found, bad = read(tmp_path / "a.parquet")
    assert (found, len(bad)) == (GOOD[-1:], 20)
    assert batches == [1] * 40


def test_memory_is_bounded(tmp_path):
    block = b"a" * (10 << 20)
    for suffix in (".gz", ".xz", ".bz2", ".zst"):
        data = (
            COMPRESS[suffix](b'{"text": "') + COMPRESS[suffix](block) * 20 + COMPRESS[suffix](b'"}\n{"text": "fine"}\n')
        )
        (tmp_path / f"line.jsonl{suffix}").write_bytes(data)
    indices = pa.array([0] * 200 + [1], pa.int32())
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * (1 << 20), "fine"]))
    parts = pa.ListArray.from_arrays(pa.array([*range(202)], pa.int32()), texts)
    pq.write_table(pa.table({"text": texts, "parts": parts}), tmp_path / "entry.parquet", compression="zstd")
    writer = ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1")
    writer.write(b'{"text": "' + block * 20 + b'"}')
    writer.write(b'{"text": "fine"}')
    writer.close()
    code = f"""
import resource
import pyarrow.parquet, array_record.python.array_record_module
from pathlib import Path
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.sources import read_documents
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    last = None
    for document in read_documents([path], report=ReadReport(1.0), max_record_bytes=8 << 20):
        last = document.text
    assert last == "fine", path
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
assert used < 100_000, f"{{used}} KB"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stream_may_not_ask_for_more_memory_than_allowed(tmp_path):
    data = bytearray(lzma.compress(b'{"text": "a"}\n'))
    # A block header behind the stream header of 12 bytes: size, flags, filter 0x21, one byte of properties, the dictionary's size.
    assert data[14:16] == b"\x21\x01"
    size = (data[12] + 1) * 4
    data[16] = 40  # 4 GiB
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    (tmp_path / "a.jsonl.xz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.jsonl.xz is damaged or .*: Memory usage limit exceeded"):
        list(read_documents([tmp_path / "a.jsonl.xz"]))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_damage_behind_the_first_stream_is_no_end(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    line = COMPRESS[suffix](b'{"text": "a"}\n')
    path.write_bytes(line + line[:8] + b"damage" + line[14:])
    with pytest.raises(ValueError, match="is damaged"):
        list(read_documents([path]))
    path.write_bytes(line + bytes(512) + line + bytes(4))
    assert len(list(read_documents([path]))) == 2


def test_records_of_every_format(tmp_path):
    rows = [{"n": 1, "messages": [{"role": "user", "content": "日本"}]}, {"n": 2, "messages": []}]
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in rows) + b"\r\nbad\r\n"
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    report = ReadReport(max_bad_rate=1)
    records = list(read_records(tmp_path, report))
    assert [fields for _, fields in records] == rows * 2
    assert [where for where, _ in records][1:3] == [f"{tmp_path}/a.jsonl, line 2", f"{tmp_path}/b.parquet, row 1"]
    assert [str(record)[:40] for record in report.first] == [f"{tmp_path}/a.jsonl, line 3: not JSON"[:40]]
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ValueError, match=r"c.txt is plain text: records must be JSON lines"):
        list(read_records(tmp_path, report))


@pytest.mark.parametrize("empty", [b"\n", b" \r\n"])
def test_a_row_of_empty_lines_is_skipped_at_once(tmp_path, empty):
    path = tmp_path / "a.jsonl"
    path.write_bytes(empty * 1_000_000 + b'  {"text": "a"}\n\n{"text": 1}')
    assert read(path) == (["a"], [f"{path}, line 1000003: text not a string (int in the field 'text')"])
    with path.open("rb") as file:
        # One by one, billions of such lines, which take a few MB when they are compressed, would take hours.
        assert sum(1 for _ in read_lines(file, LIMIT)) < 5000


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_out_of_range_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match=f"max_record_bytes={limit}"):
        read_documents([tmp_path], max_record_bytes=limit)
