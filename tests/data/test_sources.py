"""Readers of every format: documents as written, and every bad record named with its file and line."""

import bz2
import datetime
import decimal
import gzip
import json
import lzma
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

import plamo2_jax.data.tfds_builder  # noqa: F401 - registers "plamo2_corpus"
from plamo2_jax.data import corpus
from plamo2_jax.data.documents import Document, ReadReport, TooManyBadRecordsError
from plamo2_jax.data.files import find_files
from plamo2_jax.data.sources import read_documents, split_documents

GOOD = [{"id": "one", "text": "東京は夜の七時", "language": "ja", "source": "song"}, {"text": "second line\nof it"}]
# A line, and what is said of it.
BAD_LINES = [
    (b"nope", "not JSON"),
    (b'{"text": "a"', "not JSON"),
    (b"[" * 100_000, "not JSON (nested too deeply)"),
    (b'["text"]', "not an object (JSON list)"),
    (b"{}", "text missing (no value in the field 'text'; the record has no fields)"),
    (
        b'{"id": "1", "content": "a text", "origin": "b"}',
        "text missing (no value in the field 'text'; the fields are id, content, origin. Name another one: --text-field content)",
    ),
    (b'{"text": "a", "text": "b"}', "repeated field (the field 'text' more than once in one object)"),
    (
        b'{"text": "a", "more": ' + b"[" * 70 + b"]" * 70 + b"}",
        "nested too deeply (more than 64 levels in the field 'more')",
    ),
    (b'{"text": null}', "text missing"),
    (b'{"text": 3}', "text not a string (int in the field 'text')"),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n\\u3000"}', "empty text"),
    (b'{"text": "\xe6\x9d"}', "invalid UTF-8 (byte 10 of the record)"),
    (b'{"text": "ab\\ud800"}', "lone surrogate (character 2 of the field 'text')"),
]


def lenient() -> ReadReport:
    return ReadReport(max_bad_rate=1.0)


def jsonl(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def good_lines() -> list[bytes]:
    return [json.dumps(record, ensure_ascii=False).encode() for record in GOOD]


def expected(path, unit) -> list[Document]:
    return [
        Document("東京は夜の七時", "one", {"language": "ja", "source": "song"}),
        Document("second line\nof it", f"{path}, {unit} 2"),
    ]


def write_parquet(path, column: pa.Array, **more):
    pa.parquet.write_table(pa.table({"text": column, **more}), path, row_group_size=2)


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def invalid_utf8_column(*values: bytes) -> pa.Array:
    """A string column whose bytes nobody checked: what some writers leave behind."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_jsonl(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    data = b"\xef\xbb\xbf" + jsonl(*good_lines()) + b"\n"
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
    else:
        path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix](data))
    assert list(read_documents([path])) == expected(path, "line")


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    lines = [line for bad, _ in BAD_LINES for line in (bad, b'{"text": "fine"}', b"")]
    path.write_bytes(jsonl(*lines))
    report = lenient()
    assert len(list(read_documents([path], report=report))) == len(BAD_LINES)
    assert (report.bad, report.records) == (len(BAD_LINES), 2 * len(BAD_LINES))
    for i, (record, (_, said)) in enumerate(zip(report.first, BAD_LINES, strict=True)):
        assert str(record).startswith(f"{path}, line {3 * i + 1}: {said}")


def test_the_first_are_kept_and_all_are_counted(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl(*[b"nope"] * 30, *[b"{}"] * 5))
    report = lenient()
    assert list(read_documents([path], report=report)) == []
    assert report.to_json()["reasons"] == {"not JSON": 30, "text missing": 5}
    assert len(report.first) == 20
    assert report.summary() == "read 35 records, 35 bad: not JSON 30, text missing 5"


def test_too_many_bad_records_fail_at_the_end(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl(*[b'{"text": "fine"}'] * 49, b"nope"))
    with pytest.raises(TooManyBadRecordsError) as error:
        list(read_documents([path]))
    assert str(error.value).startswith(f"{path}, line 50: not JSON")
    assert "one of 1 bad records among 50 (2.00%): at most 1.00% are allowed" in str(error.value)
    assert len(list(read_documents([path], report=ReadReport(max_bad_rate=0.02)))) == 49


def test_too_many_bad_records_fail_early(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl(*[b'{"text": "fine"}'] * 80, *[b"nope"] * 100, *[b'{"text": "fine"}'] * 100_000))
    report = ReadReport(max_bad_rate=0.2, judge_after=100)
    with pytest.raises(TooManyBadRecordsError, match="line 101: not JSON"):
        list(read_documents([path], report=report))
    assert report.records == 101
    # The same bad records are few among all.
    assert len(list(read_documents([path], report=ReadReport(0.01, judge_after=50_000)))) == 100_080


@pytest.mark.parametrize("fields", [{"max_bad_rate": 1.5}, {"max_bad_rate": -0.1}, {"judge_after": 0}])
def test_a_report_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        ReadReport(**fields)


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("一つの\n文書", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"another"))
    (tmp_path / "c.txt").write_bytes(b"first\nsecond \xff")
    (tmp_path / "d.txt").write_bytes(b"\n")
    report = lenient()
    documents = list(read_documents([tmp_path], language="ja", report=report))
    assert documents == [
        Document("一つの\n文書", str(tmp_path / "a.txt"), {"language": "ja"}),
        Document("another", str(tmp_path / "b.txt.gz"), {"language": "ja"}),
    ]
    assert [str(record) for record in report.first] == [
        f"{tmp_path / 'c.txt'}, line 2: invalid UTF-8 (byte 13 of the file)",
        f"{tmp_path / 'd.txt'}: empty text (nothing but white space in the field 'text')",
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    path = tmp_path / "a.parquet"
    texts = pa.array(["東京", None, "three", " ", "five"]).cast(kind)
    write_parquet(path, texts, id=pa.array([1, 2, 3, 4, 5]), language=pa.array(["ja", "ja", "en", "en", None]), x=texts)
    report = lenient()
    assert list(read_documents([path], report=report)) == [
        Document("東京", "1", {"language": "ja", "x": "東京"}),
        Document("three", "3", {"language": "en", "x": "three"}),
        Document("five", "5", {"x": "five"}),
    ]
    assert [str(record) for record in report.first] == [
        f"{path}, row 2: text missing (no value in the field 'text'; the fields are text, id, language, x)",
        f"{path}, row 4: empty text (nothing but white space in the field 'text')",
    ]


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_without_rows(tmp_path, dictionary):
    """Writers of many parts leave such files. Their columns may hold an empty dictionary and no other page."""
    path = tmp_path / "a.parquet"
    table = pa.table({"text": pa.array([], pa.string()), "x": pa.array([], pa.int64())})
    pyarrow.parquet.write_table(table, path, use_dictionary=dictionary)
    report = lenient()
    assert list(read_documents([path], report=report)) == []
    assert report.records == 0


def test_parquet_rows_that_are_bad_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, invalid_utf8_column(b"fine", b"ab\xff", b"fine too"))
    report = lenient()
    assert [document.text for document in read_documents([path], report=report)] == ["fine", "fine too"]
    assert str(report.first[0]) == f"{path}, row 2: invalid UTF-8 (byte 2 of the field 'text')"
    write_parquet(path, pa.array([1.5, 2.5]))
    with pytest.raises(
        TooManyBadRecordsError, match=r"a.parquet, row 1: text not a string \(float in the field 'text'\)"
    ):
        list(read_documents([path]))
    with pytest.raises(ValueError, match=r"a.parquet has no column 'body': its columns are text"):
        list(read_documents([path], text_field="body"))


def test_array_record(tmp_path):
    path = tmp_path / "a.arrayrecord"
    write_array_record(path, [*good_lines(), *(line for line, _ in BAD_LINES)])
    report = lenient()
    assert list(read_documents([path], report=report)) == expected(path, "record")
    assert report.bad == len(BAD_LINES)
    for i, (record, (_, said)) in enumerate(zip(report.first, BAD_LINES, strict=True)):
        assert str(record).startswith(f"{path}, record {i + 3}: {said}")


def test_tfds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.data_source("plamo2_corpus/ja", split="heldout", data_dir=folder)
    whole = list(read_documents(["tfds:plamo2_corpus/ja:heldout"], data_dir=folder))
    assert [document.to_json() for document in whole] == list(corpus.documents("ja", "heldout"))
    assert list(read_documents(["tfds:plamo2_corpus/ja:1.0.0:heldout[3:5]"], data_dir=folder)) == whole[3:5]
    report = lenient()
    assert (
        list(read_documents(["tfds:plamo2_corpus/ja:heldout[:2]"], text_field="body", data_dir=folder, report=report))
        == []
    )
    assert str(report.first[1]).startswith("tfds:plamo2_corpus/ja:heldout[:2], record 2: text missing")
    for spec, message in [
        ("tfds:plamo2_corpus/en:train", "plamo2_corpus/en:train is not prepared in"),
        ("tfds:plamo2_corpus/ja:test", "cannot be read: Unknown split 'test'"),
        ("tfds:plamo2_nothing:train", "cannot be read: Dataset plamo2_nothing not found"),
        ("tfds:plamo2_corpus", "it must be tfds:NAME:SPLIT"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(read_documents([spec], data_dir=folder))
    path = folder / "plamo2_corpus" / "ja" / "1.0.0" / "dataset_info.json"
    content = path.read_bytes()
    for damaged in (content[:40], content + b"\xa7", b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="tfds:plamo2_corpus/ja:heldout cannot be read: "):
            list(read_documents(["tfds:plamo2_corpus/ja:heldout"], data_dir=folder))


def test_bundled():
    assert [document.to_json() for document in read_documents(["bundled:en:heldout"])] == list(
        corpus.documents("en", "heldout")
    )
    both = list(read_documents(["bundled:all:heldout"]))
    assert {document.language for document in both} == {"ja", "en"}
    with pytest.raises(ValueError, match="bundled:fr:train is not allowed: it must be bundled:LANGUAGE:SPLIT"):
        list(read_documents(["bundled:fr:train"]))


def test_files_of_folders_and_patterns(tmp_path):
    for name in ("b.jsonl", "a/c.txt", "a/d.jsonl.xz", "a/README.md", ".git/x.txt", "e.array_record-00000-of-00001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))]
    assert names == ["a/c.txt", "a/d.jsonl.xz", "b.jsonl", "e.array_record-00000-of-00001"]
    assert find_files(f"{tmp_path}/**/*.jsonl*") == [tmp_path / "a/d.jsonl.xz", tmp_path / "b.jsonl"]
    for spec, message in [
        (tmp_path / "a/README.md", r"README.md cannot be read: the suffix must be one of .jsonl"),
        (tmp_path / "none", "does not exist: it must be a file, a folder or a pattern"),
        (tmp_path / "*.csv", "does not exist: it must be a file, a folder or a pattern"),
        (tmp_path / ".git/empty", "the folder .* holds no file"),
    ]:
        (tmp_path / ".git/empty").mkdir(exist_ok=True)
        # Known before anything is read.
        with pytest.raises(ValueError, match=message):
            read_documents([spec])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(jsonl(*good_lines()))[:-12]),
        ("a.jsonl.gz", b"not gzip at all"),
        ("a.jsonl.xz", lzma.compress(jsonl(*good_lines()))[:-12]),
        ("a.jsonl.bz2", b"not bzip2 at all"),
        ("a.jsonl.zst", b"not zstd at all"),
        ("a.parquet", b"PAR1 but no parquet PAR1"),
        ("a.arrayrecord", b"x" * 100_000),
        ("a.arrayrecord", b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        list(read_documents([tmp_path / name], report=lenient()))


def test_inputs_and_fields_of_other_names(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x", "key": 7, "lang": "en", "text": "not this"}\n')
    (tmp_path / "b.txt").write_text("y")
    names = {"text_field": "body", "id_field": "key", "language_field": "lang"}
    assert list(read_documents([tmp_path / "b.txt", tmp_path / "a.jsonl"], **names)) == [
        Document("y", str(tmp_path / "b.txt")),
        Document("x", "7", {"language": "en"}),
    ]


def test_fields_of_a_name_of_ours_replace_nothing(tmp_path):
    record = {
        "id": 7,
        "body": "x",
        "text": "a caption",
        "key": "a-1",
        "language": "a menu",
        "lang": "en",
        "pair": "p",
        "n": 1,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    pa.parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "b.parquet")
    names = {"text_field": "body", "id_field": "key", "language_field": "lang"}
    report = ReadReport()
    for document in read_documents([tmp_path], **names, report=report):
        assert document.to_json() == {"id": "a-1", "text": "x", "language": "en", "pair": "p", "n": 1}
        assert (document.language, document.pair) == ("en", "")
    assert report.changes == {
        f"omitted: the field {n!r}, which was not selected as the {n}": 2 for n in ("id", "text", "language")
    }
    assert "omitted: the field 'text', which was not selected as the text: 2" in report.summary()
    # One field may be used twice; a field that is not there is not replaced by one of its usual name.
    (twice,) = read_documents(
        [tmp_path / "a.jsonl"], text_field="body", id_field="text", pair_field="text", language_field="no"
    )
    assert twice.to_json() == {"id": "a caption", "text": "x", "key": "a-1", "lang": "en", "pair": "p", "n": 1}
    assert (twice.language, twice.pair) == ("unknown", "a caption")
    (bare,) = read_documents([tmp_path / "b.parquet"], **names, keep_fields=False)
    assert bare.to_json() == {"id": "a-1", "text": "x", "language": "en"}


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for name in ("text", "id", "language", "url"):
        names = ["text", "id", "language", "url", name]
        pa.parquet.write_table(pa.Table.from_arrays([pa.array([f"{i}"]) for i in range(5)], names=names), path)
        with pytest.raises(ValueError, match=rf"a.parquet has 2 columns named '{name}': names must be unique"):
            list(read_documents([path]))
        if name == "url":
            assert len(list(read_documents([path], keep_fields=False))) == 1
    fields = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["role", "role"])
    pa.parquet.write_table(pa.table({"text": ["x"], "m": pa.ListArray.from_arrays([0, 1], fields)}), path)
    with pytest.raises(ValueError, match=r"a.parquet has 2 fields of the column 'm' named 'role'"):
        list(read_documents([path]))


def test_values_that_json_does_not_have(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": NaN, "y": [1, -Infinity, {"z": 1e999}], "w": 1.5}')
    columns = {
        "text": ["b"],
        "x": [float("nan")],
        "when": [datetime.datetime(2020, 1, 2, 3, 4, 5)],
        "price": [decimal.Decimal("1.50")],
        "image": [b"\x89PNG\xff"],
        "bytes": [b"text"],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "far": pa.array([2**30], pa.date32()),
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    report = ReadReport()
    first, second = read_documents([tmp_path], report=report)
    assert first.meta == {"x": None, "y": [1, None, {"z": None}], "w": 1.5}
    assert second.meta == {
        "x": None,
        "when": "2020-01-02T03:04:05",
        "price": "1.50",
        "bytes": "text",
        "map": [["k", 1]],
        "far": "<value out of range: 1073741824>",
    }
    assert report.changes == {
        "NaN or infinity became null": 4,
        "omitted: bytes that are not text in the field 'image'": 1,
    }
    json.dumps([first.to_json(), second.to_json()], allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ('"id": "t \\ud83d"', "character 2 of the field 'id'"),
        ('"meta": {"title": ["\\ude00 end"]}', "character 0 of the field 'meta.title[0]'"),
        ('"language": "e\\ud800n"', "character 1 of the field 'language'"),
        ('"a\\ud800": 1', "character 1 of the name of a field"),
        ('"m": {"a\\ud800": 1}', "character 1 of the name of a field of m"),
    ],
)
def test_half_a_character_anywhere_makes_a_bad_record(tmp_path, fields, where):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "x", {fields}}}\n{{"text": "\\ud83d\\ude00", "id": "whole"}}\n')
    for keep_fields in (True, False):
        report = lenient()
        assert [d.text for d in read_documents([path], report=report, keep_fields=keep_fields)] == ["\U0001f600"]
        assert [str(record) for record in report.first] == [f"{path}, line 1: lone surrogate ({where})"]


def test_marks_of_other_systems_are_no_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + "一行目\r\n二行目\r\n".encode())
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "a\\r\\nb"}\r\n\r\n' + mark + b'{"text": "c"}\r\n' + mark)
    assert [document.text for document in read_documents([tmp_path])] == ["一行目\n二行目\n", "a\r\nb", "c"]


def test_a_split_depends_on_the_documents_alone():
    documents = [Document(f"text {i}", str(i), pair=f"pair {i // 2}" if i < 400 else "") for i in range(2000)]
    heldout = list(split_documents(documents, "heldout", 0.1))
    train = list(split_documents(documents, "train", 0.1))
    assert sorted(heldout + train, key=lambda d: int(d.id)) == documents
    assert 140 < len(heldout) < 260
    assert set(map(id, split_documents(reversed(documents), "heldout", 0.1))) == set(map(id, heldout))
    paired = {int(document.id) for document in heldout if int(document.id) < 400}
    assert paired == {i ^ 1 for i in paired}
    assert list(split_documents(documents, "all")) == documents
    # A field named "pair" means what its author meant, unless it is named as the pair field.
    named = [Document(f"text {i}", str(i), {"pair": "EUR/USD"}) for i in range(2000)]
    assert 140 < len(list(split_documents(named, "heldout", 0.1))) < 260
    for split, fraction in (("test", 0.1), ("train", 0.0), ("train", 1.0)):
        with pytest.raises(ValueError, match="must"):
            list(split_documents(documents, split, fraction))


def test_reading_files_needs_neither_jax_nor_tensorflow(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(*good_lines()))
    code = (
        "import sys; from plamo2_jax.data.sources import read_documents; "
        f"assert len(list(read_documents([{str(tmp_path)!r}]))) == 2; "
        "assert not {'jax', 'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
