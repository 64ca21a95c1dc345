"""`plamo2 tokenizer` as it is typed."""

from __future__ import annotations

import io
import itertools
import json
import sys

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data.corpus import documents
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.vocabularies import GOLDEN


def run(argv: list[str], capsysbinary, monkeypatch, stdin: bytes = b"") -> tuple[int, bytes, str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    status = main(["tokenizer", *argv])
    captured = capsysbinary.readouterr()
    return status, captured.out, captured.err.decode()


def test_encode_and_decode_give_back_every_byte(capsysbinary, monkeypatch, golden):
    text = "東京\n\n 大学<|plamo:bos|>☃\n"
    status, ids, _ = run(["encode", str(GOLDEN)], capsysbinary, monkeypatch, text.encode())
    assert status == 0
    assert [int(word) for word in ids.split()] == golden.encode(text).tolist()
    status, out, _ = run(["decode", str(GOLDEN)], capsysbinary, monkeypatch, ids)
    assert (status, out) == (0, text.encode())


def test_text_and_ids_as_arguments(capsysbinary, monkeypatch, golden):
    argv = ["encode", str(GOLDEN / "tokenizer.jsonl"), "<|plamo:op|>a", "--allow-control", "--bos", "--eos"]
    _, out, _ = run(argv, capsysbinary, monkeypatch)
    ids = out.decode().split()
    assert [int(word) for word in ids] == [1, 4, golden.id_of("a"), 2]
    _, out, _ = run(["decode", str(GOLDEN), *ids, "--skip-control"], capsysbinary, monkeypatch)
    assert out == b"a"


def test_the_text_none_is_a_text(capsysbinary, monkeypatch, golden):
    _, out, _ = run(["encode", str(GOLDEN), "None"], capsysbinary, monkeypatch)
    assert [int(word) for word in out.split()] == golden.encode("None").tolist()


def test_train_writes_a_vocabulary_that_encodes(capsysbinary, monkeypatch, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    texts = [d["text"] for d in itertools.islice(documents("ja", "train"), 40)]
    corpus.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    argv = ["train", "--input", str(corpus), "--text-field", "body", "--output", str(tmp_path), "--vocab-size", "1200"]
    status, out, _ = run([*argv, "--character-coverage", "0.99"], capsysbinary, monkeypatch)
    assert status == 0
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 1200
    assert tokenizer.fingerprint in out.decode()
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize(
    ("argv", "stdin", "message"),
    [
        (["encode", str(GOLDEN)], b"a\xff", "standard input is not UTF-8 (byte 1)"),
        (["encode", str(GOLDEN), "\udcff"], b"", "lone surrogate"),
        (["encode", str(GOLDEN / "nowhere")], b"", "does not exist: it must be a tokenizer.jsonl"),
        (["decode", str(GOLDEN)], b"1 two", "ids must be integers"),
        (["decode", str(GOLDEN), "861"], b"", "outside the vocabulary of 861 rows"),
        (
            ["train", "--input", "/nowhere", "--output", "/tmp"],
            b"",
            "/nowhere does not exist: it must be a file, a folder or a pattern",
        ),
        (
            ["train", "--input", str(GOLDEN), "--output", "/tmp", "--vocab-size", "5"],
            b"",
            "vocab_size=5 is not allowed",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(capsysbinary, monkeypatch, argv, stdin, message):
    status, out, err = run(argv, capsysbinary, monkeypatch, stdin)
    assert status == 2
    assert out == b""
    assert message in err
    assert err.count("\n") == 1


def test_control_strings_read_as_text_are_named(capsys):
    assert main(["tokenizer", "encode", str(GOLDEN / "tokenizer.jsonl"), "<|plamo:op|>a"]) == 0
    assert "warning: <|plamo:op|> is encoded as text" in capsys.readouterr().err
    assert main(["tokenizer", "encode", str(GOLDEN / "tokenizer.jsonl"), "<|plamo:op|>a", "--allow-control"]) == 0
    assert capsys.readouterr().err == ""
