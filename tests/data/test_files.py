"""Inputs name the same files through folders, patterns and links, and each file is read once."""

import os

import pytest

from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.files import find_files
from plamo2_jax.data.sources import read_documents


@pytest.fixture
def corpus(tmp_path):
    """A file of its own, a linked file, and a linked folder with two."""
    own, elsewhere = tmp_path / "corpus" / "own", tmp_path / "elsewhere" / "more"
    own.mkdir(parents=True)
    elsewhere.mkdir(parents=True)
    for path in (own / "one", elsewhere.parent / "two", elsewhere / "three", elsewhere / "four"):
        path.with_suffix(".jsonl").write_text(f'{{"text": "{path.name}"}}\n')
    (tmp_path / "corpus" / "two.jsonl").symlink_to("../elsewhere/two.jsonl")
    (tmp_path / "corpus" / "more").symlink_to("../elsewhere/more")
    return tmp_path / "corpus"


def texts(*inputs, report=None) -> list[str]:
    return sorted(document.text for document in read_documents(inputs, report=report))


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/**"])
def test_linked_folders_are_read(corpus, pattern):
    assert texts(f"{corpus}{pattern}") == ["four", "one", "three", "two"]


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/**/*"])
def test_a_link_to_a_folder_above_is_followed_once(corpus, pattern, capsys):
    (corpus / "own" / "loop").symlink_to("..")
    (corpus / "own" / "self").symlink_to(".")
    (corpus / "two").symlink_to("own/../own/loop/own")
    assert texts(f"{corpus}{pattern}") == ["four", "one", "three", "two"]
    assert f"skipped: {corpus}/own/loop is the same folder as {corpus}" in capsys.readouterr().err


def test_a_pattern_finds_what_only_a_second_link_matches(corpus):
    (corpus / "a").symlink_to("more")
    (corpus / "keep").symlink_to("more")
    assert texts(f"{corpus}/**/keep/*.jsonl") == ["four", "three"]
    assert texts(f"{corpus}/keep/*.jsonl") == ["four", "three"]


def test_many_links_to_one_folder_are_no_many_folders(tmp_path):
    # 2^25 names lead to the file.
    for level in range(25):
        (tmp_path / str(level)).mkdir()
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    (tmp_path / "25").mkdir()
    (tmp_path / "25" / "x.txt").write_text("found")
    assert texts(tmp_path / "0") == ["found"]
    assert texts(f"{tmp_path}/0/**/*.txt") == ["found"]


def test_a_file_of_several_names_is_read_once_and_said(corpus, capsys):
    report = ReadReport()
    assert texts(corpus, f"{corpus}/**/*.jsonl", corpus / "own/one.jsonl", report=report) == [
        "four",
        "one",
        "three",
        "two",
    ]
    assert report.notes == 5
    assert f"skipped: {corpus}/own/one.jsonl is given twice\n" in capsys.readouterr().err
    (corpus / "own" / "copy.jsonl").symlink_to("one.jsonl")
    assert texts(corpus / "own") == ["one"]
    assert f"{corpus}/own/one.jsonl is the same file as {corpus}/own/copy.jsonl" in capsys.readouterr().err


def test_a_hard_link_is_the_same_file(corpus, capsys):
    (corpus / "own" / "second.jsonl").hardlink_to(corpus / "own" / "one.jsonl")
    assert texts(corpus / "own") == ["one"]
    assert f"{corpus}/own/second.jsonl is the same file as {corpus}/own/one.jsonl" in capsys.readouterr().err


def test_what_is_no_regular_file_is_skipped_and_said(corpus, capsys):
    os.mkfifo(corpus / "own" / "pipe.jsonl")
    (corpus / "own" / "zeros.jsonl").symlink_to("/dev/zero")
    assert texts(corpus / "own") == ["one"]
    said = capsys.readouterr().err
    for name in ("pipe", "zeros"):
        assert f"{corpus}/own/{name}.jsonl is a pipe, a socket or a device, not a regular file" in said


def test_links_to_nothing_and_hidden_files(corpus, capsys):
    (corpus / "own" / "gone.jsonl").symlink_to("nowhere")
    (corpus / ".hidden").mkdir()
    (corpus / ".hidden" / "x.jsonl").write_text('{"text": "hidden"}')
    assert texts(corpus) == ["four", "one", "three", "two"]
    assert f"{corpus}/own/gone.jsonl is a link to a file that does not exist" in capsys.readouterr().err
    assert texts(f"{corpus}/.h*/*") == ["hidden"]


def test_patterns_match_as_in_a_shell(tmp_path):
    for name in ("a1.txt", "a2.txt", "b[1].txt", "sub/a3.txt", "sub/deep/a4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for pattern, found in [
        ("a?.txt", ["a1.txt", "a2.txt"]),
        ("a[!2].txt", ["a1.txt"]),
        ("*/a?.txt", ["sub/a3.txt"]),
        ("**/a?.txt", ["a1.txt", "a2.txt", "sub/a3.txt", "sub/deep/a4.txt"]),
        ("**/deep/**/*.txt", ["sub/deep/a4.txt"]),
        ("b[1].txt", ["b[1].txt"]),
    ]:
        assert [str(path.relative_to(tmp_path)) for path in find_files(f"{tmp_path}/{pattern}")] == found
