"""JSON from outside: every bad input is one sentence that names the file."""

import json
import os

import pytest

from plamo2_jax.json_input import MAX_DEPTH, parse_json, read_json_file, read_json_object


class FileError(ValueError):
    """An error class of a caller."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nests more than 100 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "nests more than 100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nests more than 100 levels"),
        (b"1" * 5000, "a number has more than 4,300 digits"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "too large for a float64"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"a": "\\ud83d"}', "unpaired surrogate"),
        (b'"\xff"', "not UTF-8"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
)
def test_bad_json_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_json_file(path, error=FileError)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_sound_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    value = {"text": "吾輩は猫である \U0001f431", "list": [1, 2.5, None, True, {"b": []}]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read_json_object(path) == value
    deep = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(json.dumps(deep), "text") == deep
    assert parse_json(r'"\ud83d\udc31"', "text") == "\U0001f431"


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # Reading it would wait for a writer for ever.
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("missing", "does not exist"),
    ]:
        with pytest.raises(FileError, match=message):
            read_json_file(tmp_path / name, error=FileError)
    with pytest.raises(FileError, match="loop"):
        read_json_file(tmp_path / "loop", error=FileError)


def test_size_and_kind(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    with pytest.raises(FileError, match="must hold a JSON object, not list"):
        read_json_object(tmp_path / "a.json", error=FileError)
    with pytest.raises(FileError, match="at most 4 bytes"):
        read_json_file(tmp_path / "a.json", error=FileError, max_bytes=4)
