"""`plamo2 data`, as a user runs it."""

import json
import lzma

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.data.shards import open_shards


@pytest.fixture(scope="module")
def tokenizer(vocabulary, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.save(folder)
    return str(folder)


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["data", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_prepare_and_inspect_the_bundled_corpus(capsys, tokenizer, tmp_path):
    shards = tmp_path / "made" / "shards"
    command = (
        "prepare",
        "--input",
        "bundled:ja:heldout",
        "bundled:en:heldout",
        "--tokenizer",
        tokenizer,
        "--output",
        shards,
    )
    status, out, err = run(capsys, *command)
    assert (status, out.splitlines()[-1]) == (0, str(shards))
    documents = list(corpus.documents(None, "heldout"))
    assert f"read {len(documents)} records, 0 bad" in err
    opened = open_shards(shards)
    assert opened.bytes == sum(len(document["text"].encode()) for document in documents)
    assert set(opened.manifest["languages"]) == {"ja", "en"}

    status, out, _ = run(
        capsys, "inspect", shards, "--tokenizer", tokenizer, "--documents", 2, "--sequence-length", 512
    )
    assert status == 0
    assert f"all: {opened.documents:,} documents, {opened.tokens:,} tokens, {opened.bytes:,} bytes" in out
    assert "% of positions used at length 512 with 256 bins" in out
    assert documents[0]["text"][:100] in out
    assert documents[len(documents) // 2]["text"][:100] in out

    status, _, err = run(capsys, *command)
    assert status == 2
    assert f"{shards} exists" in err
    assert run(capsys, *command, "--overwrite")[0] == 0


def test_prepare_reports_bad_records_and_splits(capsys, tokenizer, tmp_path):
    lines = [json.dumps({"body": f"document number {i}", "lang": "en"}) for i in range(300)]
    lines[6] = "broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    arguments = (
        "--input",
        tmp_path / "a.jsonl",
        "--tokenizer",
        tokenizer,
        "--text-field",
        "body",
        "--language-field",
        "lang",
    )
    counts = {}
    for split in ("train", "heldout"):
        output = tmp_path / split
        status, _, err = run(
            capsys, "prepare", *arguments, "--output", output, "--split", split, "--heldout-fraction", 0.2
        )
        assert status == 0
        assert "1 bad: not JSON 1" in err
        assert f"{tmp_path / 'a.jsonl'}, line 7: not JSON" in err
        manifest = open_shards(output).manifest
        counts[split] = manifest["languages"]["en"]["documents"]
        assert manifest["reading"]["bad"] == 1
    assert sum(counts.values()) == 299
    assert 35 < counts["heldout"] < 85

    status, _, err = run(capsys, "prepare", *arguments, "--output", tmp_path / "none", "--max-bad-rate", 0.001)
    assert status == 2
    assert "line 7: not JSON" in err
    assert "1 bad records among 300 (0.33%), more than the 0.10% allowed" in err
    assert not (tmp_path / "none").exists()


def test_corpus_exports_what_the_package_holds(capsys, tmp_path):
    path = tmp_path / "corpus.jsonl.xz"
    status, out, _ = run(capsys, "corpus", "--output", path, "--language", "ja", "--split", "heldout")
    documents = list(corpus.documents("ja", "heldout"))
    assert status == 0
    assert out == f"{path}: {len(documents)} documents\n"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == documents
    for output, message in (
        (tmp_path / "corpus.txt", "must end in .jsonl"),
        (tmp_path / "no" / "a.jsonl", "does not exist"),
    ):
        status, _, err = run(capsys, "corpus", "--output", output)
        assert status == 2
        assert message in err


def test_clean_removes_noise_and_duplicates(capsys, tmp_path):
    good = [document for document in corpus.documents("ja", "heldout") if len(document["text"]) > 300][:30]
    footer = "このページの先頭へ戻る ・ サイトマップ"
    dirty = [{**document, "text": document["text"] + "\r\n" + footer + "\x00"} for document in good]
    copy = {**good[0], "id": "a copy", "text": good[0]["text"].replace("。", "。 ")}
    short = {"id": "short", "text": "短い"}
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(document) for document in [*dirty, copy, short]), encoding="utf-8")

    status, out, _ = run(capsys, "clean", path, tmp_path / "out.jsonl")
    assert status == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")] == good
    assert "cleaning kept 31 of 32 documents" in out
    assert "boilerplate lines removed: 30; rejected: short 1" in out
    assert "deduplication kept 30 of 31 documents; exact duplicates 1" in out

    status, out, _ = run(
        capsys, "clean", path, tmp_path / "kept.jsonl", "--duplicates", "keep", "--boilerplate-documents", 0
    )
    kept = [json.loads(line)["text"] for line in (tmp_path / "kept.jsonl").open(encoding="utf-8")]
    assert len(kept) == 31
    assert sum(text.endswith(footer) for text in kept) == 30


def test_a_missing_input_is_one_sentence(capsys, tokenizer, tmp_path):
    for command in (
        ("prepare", "--input", tmp_path / "nope", "--tokenizer", tokenizer, "--output", tmp_path / "out"),
        ("inspect", tmp_path / "nope"),
        ("clean", tmp_path / "nope", tmp_path / "out.jsonl"),
    ):
        status, out, err = run(capsys, *command)
        assert (status, out) == (2, "")
        message = [line for line in err.splitlines() if "nope" in line and "doc/s" not in line]
        assert len(message) == 1
        assert message[0].startswith("plamo2 data: ")
    assert not (tmp_path / "out").exists()
