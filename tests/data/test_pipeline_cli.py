"""`plamo2 data`, as a user runs it."""

import json
import lzma

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.data.shards import open_shards
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task


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
    assert "% of the positions used at sequence length 512 with 256 bins" in out
    assert documents[0]["text"][:100] in out
    assert documents[len(documents) // 2]["text"][:100] in out

    status, _, err = run(capsys, *command)
    assert status == 2
    assert f"{shards} exists" in err
    assert run(capsys, *command, "--overwrite")[0] == 0


def test_prepare_leaves_out_documents_that_contain_evaluation_items(capsys, tokenizer, tmp_path):
    question = "江戸時代の将軍徳川綱吉が定めた「生類憐れみの令」の内容と目的を、それぞれ一つずつ述べなさい。"
    line = "The duck lays sixteen eggs per day, and she eats three of them for breakfast every morning."
    pages = [document["text"] for document in corpus.documents(None, "heldout")]
    page = max(pages, key=len)
    texts = ["ある普通の文書です。", f"前置き。{question}", f"Intro. {line.upper()}", "An ordinary document.", page]
    rows = [json.dumps({"text": text, "id": f"d{i}"}) for i, text in enumerate(texts)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "mc.jsonl").write_text(json.dumps({"question": question, "choices": ["動物の保護", "増税"]}) + "\n{}")
    (tmp_path / "lines.txt").write_text(f"{line}\n\nB\n")
    command = ("prepare", "--input", tmp_path / "train.jsonl", "--tokenizer", tokenizer)
    command += ("--against", tmp_path / "mc.jsonl", tmp_path / "lines.txt", "bundled:all:heldout")
    status, _, err = run(capsys, *command, "--output", tmp_path / "shards")
    assert status == 0
    shards = open_shards(tmp_path / "shards")
    assert shards.documents == 2
    found = shards.manifest["contamination"]
    assert found["documents"] == {"in": 5, "out": 2}
    assert found["items"]["all"] == 4 + len(pages)
    assert [(one["document"], one["rule"]) for one in found["first"]] == [(f"d{i}", "window") for i in (1, 2, 4)]
    assert found["first"][1]["item"] == f"{tmp_path / 'lines.txt'}, line 1"
    assert "removed 3 of 5 documents" in err

    # Without the field of the question, only the short answers would be compared.
    shortened = (*command[:6], tmp_path / "mc.jsonl", "--against-fields", "choices", "--output", tmp_path / "b")
    assert run(capsys, *shortened)[0] == 0
    assert open_shards(tmp_path / "b").documents == 5
    shortened = (*command[:6], tmp_path / "mc.jsonl", "--against-fields", "choise", "--output", tmp_path / "c")
    status, _, err = run(capsys, *shortened)
    assert status == 2
    assert "has no text in the fields choise: check --against-fields" in err


def test_prepare_leaves_out_documents_with_items_of_a_task(capsys, tokenizer, tmp_path):
    problem = next(item for item in open_task("humaneval", TaskOptions()).items if len(item.question) > 200)
    texts = ["An ordinary document.", f"Some code:\n{problem.question}    return 1", "# 質問\nQ: 一つだけ"]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    command = (
        "prepare",
        "--input",
        tmp_path / "train.jsonl",
        "--tokenizer",
        tokenizer,
        "--output",
        tmp_path / "shards",
    )
    assert run(capsys, *command, "--against", "task:humaneval")[0] == 0
    shards = open_shards(tmp_path / "shards")
    assert shards.documents == 2
    assert shards.manifest["contamination"]["first"][0]["item"] == f"humaneval: {problem.id}"
    for spec, message in (("task:nothing", "'nothing' is unknown"), ("task:jmmlu", "write task:jmmlu=PATH")):
        status, _, err = run(capsys, *command, "--overwrite", "--against", spec)
        assert status == 2
        assert message in err


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
    assert "1 bad records among 300 (0.33%): at most 0.10% are allowed" in err
    assert not (tmp_path / "none").exists()


def test_both_sides_are_written_in_one_pass(capsys, tokenizer, tmp_path):
    lines = [{"text": f"The document of the number {i} is in this line.", "page": f"p{i // 2}"} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("prepare", "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer, "--heldout-fraction", 0.2)
    arguments += ("--pair-field", "page")
    status, out, _ = run(capsys, *arguments, "--output", tmp_path / "both", "--split", "both", "--processes", 1)
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("/")] == [
        f"{tmp_path}/both/{s}" for s in ("train", "heldout")
    ]
    found = {}
    for side in ("train", "heldout"):
        assert run(capsys, *arguments, "--output", tmp_path / side, "--split", side)[0] == 0
        one, other = open_shards(tmp_path / side), open_shards(tmp_path / "both" / side)
        assert one.manifest == other.manifest
        # The language is recognised where none is declared.
        assert set(one.manifest["languages"]) == {"en"}
        found[side] = [tuple(one[i].ids) for i in range(len(one))]
        assert found[side] == [tuple(other[i].ids) for i in range(len(other))]
    assert len(found["train"]) + len(found["heldout"]) == 300
    assert all(len(documents) % 2 == 0 for documents in found.values())

    status, _, err = run(capsys, *arguments, "--output", tmp_path / "both", "--split", "both")
    assert (status, f"{tmp_path}/both/train exists" in err) == (2, True)
    (tmp_path / "few.jsonl").write_text(json.dumps(lines[0]))
    status, _, err = run(
        capsys,
        "prepare",
        "--input",
        tmp_path / "few.jsonl",
        "--tokenizer",
        tokenizer,
        "--output",
        tmp_path / "few",
        "--split",
        "both",
    )
    assert (status, err.splitlines()[-1]) == (
        2,
        f"plamo2 data: there is no document for {tmp_path}/few/heldout: each side of the split needs at least one",
    )
    assert not (tmp_path / "few").exists()
    (tmp_path / "empty.jsonl").write_text("")
    empty, output = tmp_path / "empty.jsonl", tmp_path / "empty"
    status, _, err = run(capsys, "prepare", "--input", empty, "--tokenizer", tokenizer, "--output", output)
    message = f"plamo2 data: there is no document for {output}: at least one is needed"
    assert (status, err.splitlines()[-1]) == (2, message)
    assert not output.exists()


def test_languages_are_recognised(capsys, tokenizer, tmp_path):
    texts = [
        corpus_text for language in ("ja", "en") for corpus_text in list(corpus.documents(language, "heldout"))[:3]
    ]
    lines = [{"text": document["text"]} for document in texts] + [{"text": "123", "language": "ja"}, {"text": "1 2 3"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("prepare", "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer, "--output")
    assert run(capsys, *arguments, tmp_path / "out")[0] == 0
    counts = open_shards(tmp_path / "out").manifest["languages"]
    assert {language: count["documents"] for language, count in counts.items()} == {"ja": 4, "en": 3, "other": 1}
    assert run(capsys, *arguments, tmp_path / "named", "--language", "en")[0] == 0
    counts = open_shards(tmp_path / "named").manifest["languages"]
    assert {language: count["documents"] for language, count in counts.items()} == {"ja": 1, "en": 7}


def test_clean_keeps_the_fields_that_were_chosen(capsys, tmp_path):
    text = "The keeper of the lighthouse wrote down the weather of that day and of the day before. Page {}."
    lines = [
        {
            "key": f"a-{i}",
            "body": text.format(i),
            "text": "A photograph of the harbour at dawn, with the lamp still lit and two boats in it.",
            "id": 7,
            "lang": "en",
            "language": "Menu: languages",
        }
        for i in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ("--text-field", "body", "--id-field", "key", "--language-field", "lang", "--duplicates", "keep")
    status, _, err = run(capsys, "clean", tmp_path / "a.jsonl", tmp_path / "out.jsonl", *options)
    assert status == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open()] == [
        {"id": f"a-{i}", "text": text.format(i), "language": "en"} for i in range(3)
    ]
    assert "omitted: the field 'text', which was not selected as the text: 3" in err


def test_clean_says_what_was_lost(capsys, tmp_path):
    pages = list(corpus.documents("en", "heldout"))[:40]
    menu = "Home | Products | Contact | Log in\n"
    lines = [{"content": menu + page["text"], "number": float("nan")} for page in pages] + [{"content": "short"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, _, err = run(capsys, "clean", tmp_path / "a.jsonl", tmp_path / "out.jsonl")
    assert status == 2
    assert (
        "line 1: text missing (no value in the field 'text'; the fields are content, number. Name another one: --text-field content)"
        in err
    )
    assert not (tmp_path / "out.jsonl").exists()

    command = (
        "clean",
        tmp_path / "a.jsonl",
        tmp_path / "out.jsonl.gz",
        "--text-field",
        "content",
        "--report",
        tmp_path / "report.json",
    )
    status, out, err = run(capsys, *command)
    assert status == 0
    assert "NaN or infinity became null: 40" in err
    report = json.loads((tmp_path / "report.json").read_text())
    total = report["cleaning"]["characters"]["in"]
    assert total == sum(len(line["content"]) for line in lines)
    assert report["cleaning"]["characters"]["lost"] == {
        "boilerplate": 40 * len(menu),
        "short": 5,
        "white space and controls": total - 40 * len(menu) - 5 - report["cleaning"]["characters"]["out"],
    }
    assert report["cleaning"]["most_removed_lines"] == [{"line": menu.strip(), "times": 40}]
    assert (report["reading"]["records"], report["deduplication"]["documents"]["in"]) == (41, 40)
    assert f"(boilerplate {40 * len(menu) / total:.2%}, short " in out
    assert f"lines removed most often (--boilerplate-documents 0 keeps them):\n  40 x {menu}" in out
    # The same text, the same bytes.
    first = (tmp_path / "out.jsonl.gz").read_bytes()
    assert run(capsys, *command)[0] == 0
    assert (tmp_path / "out.jsonl.gz").read_bytes() == first


def test_clean_does_not_write_over_its_input(capsys, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to("in/a.jsonl")
    for output in (folder / "a.jsonl", tmp_path / "link.jsonl"):
        for source in (folder, folder / "a.jsonl", f"{tmp_path}/**/a.jsonl"):
            status, _, err = run(capsys, "clean", source, output)
            assert (status, f"{output} is also an input file" in err) == (2, True)
    assert (folder / "a.jsonl").read_text() == '{"text": "a"}\n'
    for options, message in [
        (("--report", tmp_path / "no" / "r.json"), "does not exist"),
        (("--report", tmp_path / "out.jsonl"), "is also the output"),
        (("--max-record-mib", 0), "--max-record-mib 0 is not allowed"),
    ]:
        status, _, err = run(capsys, "clean", folder, tmp_path / "out.jsonl", *options)
        assert (status, message in err) == (2, True)


def test_a_line_above_the_limit_is_a_bad_record(capsys, tokenizer, tmp_path):
    good = b'{"text": "a document of some length that is not bad at all and is as long as the others"}\n'
    (tmp_path / "a.jsonl").write_bytes(good * 200 + b"a" * 1_100_000 + b"\n" + good * 200)
    options = ("--max-record-mib", 1)
    status, out, err = run(
        capsys, "clean", tmp_path / "a.jsonl", tmp_path / "out.jsonl", *options, "--duplicates", "keep"
    )
    assert status == 0
    assert f"  {tmp_path}/a.jsonl, line 201: too long (line of more than 1 MiB)" in err
    assert out.splitlines()[-1] == f"{tmp_path}/out.jsonl: 400 documents"
    arguments = ("--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer, "--output", tmp_path / "out")
    assert run(capsys, "prepare", *arguments, *options)[0] == 0
    assert open_shards(tmp_path / "out").documents == 400


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
