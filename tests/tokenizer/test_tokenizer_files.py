"""Reading and writing tokenizer.jsonl."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.vocabularies import FIXED_ROWS, GOLDEN

LAST = len(FIXED_ROWS) + 1  # the line that `lines_with` adds


def lines_with(line: str | bytes) -> bytes:
    """A good vocabulary and one more line."""
    good = "".join(json.dumps(row) + "\n" for row in FIXED_ROWS).encode()
    return good + (line if isinstance(line, bytes) else line.encode()) + b"\n"


def test_the_golden_file_loads_by_file_and_by_folder(golden):
    by_file = Tokenizer.load(GOLDEN / "tokenizer.jsonl")
    assert by_file.vocab_size == golden.vocab_size == 861
    assert by_file.tokens == golden.tokens
    assert (golden.unk_id, golden.bos_id, golden.eos_id, golden.pad_id, golden.op_id) == (0, 1, 2, 3, 4)


def test_ids_follow_the_row_and_not_a_convention():
    tokenizer = Tokenizer.from_rows(FIXED_ROWS[::-1])
    assert tokenizer.bos_id == len(FIXED_ROWS) - 2
    assert tokenizer.encode("a").tolist() == [255 - ord("a")]


def test_a_missing_control_row_is_named_when_asked_for():
    tokenizer = Tokenizer.from_rows([row for row in FIXED_ROWS if row[0] != "<|plamo:pad|>"])
    assert tokenizer.bos_id == 1
    with pytest.raises(ValueError, match=r"no token '<\|plamo:pad\|>'"):
        _ = tokenizer.pad_id


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_saving_writes_the_rows_byte_for_byte(tmp_path, ending):
    odd = b'[ "\\u6771", -1.50, "NORMAL", 7, "kept", null, [1.0] ]'  # another spelling, other ignored fields
    data = lines_with(odd)[:-1] + ending
    (tmp_path / "in.jsonl").write_bytes(data)
    tokenizer = Tokenizer.load(tmp_path / "in.jsonl")
    assert tokenizer.tokens[-1] == "東"
    assert tokenizer.save(tmp_path / "out.jsonl").read_bytes() == data
    assert tokenizer.save(tmp_path) == tmp_path / "tokenizer.jsonl"
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint == hashlib.sha256(data).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "tokenizer.jsonl"]


def test_a_failed_save_leaves_nothing_behind(tmp_path, golden):
    (tmp_path / "taken" / "tokenizer.jsonl" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"tokenizer\.jsonl"):
        golden.save(tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["tokenizer.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not JSON"),
        ("[", "not JSON"),
        ('["a", -1.0, "NORMAL"] x', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b'["\xff", -1.0, "NORMAL"]', r"not UTF-8 \(byte 2 of the line\)"),
        ('{"token": "a"}', "must be a list"),
        ('["a", -1.0]', "must be a list"),
        ('[7, -1.0, "NORMAL"]', "non-empty string, not 7"),
        ('["", -1.0, "NORMAL"]', "non-empty string, not ''"),
        ('["\\ud800", -1.0, "NORMAL"]', "lone surrogate"),
        ('["a", "-1", "NORMAL"]', "must be a number, not '-1'"),
        ('["a", true, "NORMAL"]', "must be a number, not True"),
        ('["a", null, "NORMAL"]', "must be a number, not None"),
        ('["a", NaN, "NORMAL"]', "the score of 'a' is nan"),
        ('["a", -Infinity, "NORMAL"]', "the score of 'a' is -inf"),
        ('["a", 1e999, "NORMAL"]', "the score of 'a' is inf"),
        (f'["a", {10**400}, "NORMAL"]', "the score of 'a' is out of range"),
        ('["a", -1e6, "NORMAL"]', "the score of 'a' is out of range"),
        ('["a", -1.0, "USER_DEFINED"]', "it must be one of NORMAL, UNKNOWN, CONTROL, BYTE"),
        ('["a", -1.0, ["NORMAL"]]', "it must be one of NORMAL, UNKNOWN, CONTROL, BYTE"),
        ('["<|plamo:bos|>", -1.0, "NORMAL"]', "is already in line 2"),
        ('["<0x41>", -1.0, "NORMAL"]', "is already in line 71"),
        ('["<0xfF>", -1.0, "BYTE"]', "the byte 0xff is already in line 261"),
        ('["<0x4>", -1.0, "BYTE"]', "must be spelled <0x00> to <0xFF>"),
        ('["<0x+1>", -1.0, "BYTE"]', "must be spelled <0x00> to <0xFF>"),
        ('["A", -1.0, "BYTE"]', "must be spelled <0x00> to <0xFF>"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, line, message):
    (tmp_path / "tokenizer.jsonl").write_bytes(lines_with(line))
    with pytest.raises(ValueError, match=rf"tokenizer\.jsonl, line {LAST}: .*{message}") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["<0x00>", "<0x41>", "<0xFF>"])
def test_all_256_byte_rows_are_needed(missing):
    rows = [row for row in FIXED_ROWS if row[0] != missing]
    with pytest.raises(ValueError, match=rf"line 260 .*1 of the 256 BYTE rows are missing, first {missing}:"):
        Tokenizer.from_rows(rows)


def test_an_empty_file_is_no_vocabulary(tmp_path):
    (tmp_path / "tokenizer.jsonl").touch()
    with pytest.raises(ValueError, match="256 of the 256 BYTE rows are missing"):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(PlamoError, match=r"nowhere\.jsonl does not exist"):
        Tokenizer.load(tmp_path / "nowhere.jsonl")


def test_many_random_rows_keep_their_order(tmp_path):
    draw = np.random.default_rng(0)
    tokens = list(
        dict.fromkeys("".join(map(chr, draw.integers(0x3040, 0x30FF, draw.integers(1, 6)))) for _ in range(3000))
    )
    rows = [*FIXED_ROWS, *([token, float(draw.normal(-10, 2)), "NORMAL", 0, 0, 0, 0] for token in tokens)]
    tokenizer = Tokenizer.from_rows(rows)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.tokens == tuple(row[0] for row in rows)
    assert (tmp_path / "tokenizer.jsonl").read_text().count("\n") == len(rows)
