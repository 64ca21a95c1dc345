"""Instructions made from the bundled corpus: whose words they are, and that the sides of the split do not meet."""

import collections
import json

import pytest

from plamo2_jax.cli.data import main
from plamo2_jax.data import corpus
from plamo2_jax.data.instructions import REPEATED, TASKS, Section, count_tasks, instructions, sections


@pytest.fixture(scope="module")
def lines() -> dict[str, list[dict]]:
    return {split: list(instructions(split)) for split in ("train", "heldout")}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Both languages' text by page."""
    found = collections.defaultdict(str)
    for document in corpus.documents():
        found[document["pair"]] += document["text"] + "\n"
    return found


def answer(line: dict) -> str:
    return line["messages"][1]["content"]


def test_sections():
    assert sections("a\nb\n\nc\n\nd\ne\nf") == [Section("a", ("b",)), Section("c", ()), Section("d", ("e", "f"))]


def test_every_task_in_both_languages_on_both_sides(lines):
    for split, least in (("train", 150), ("heldout", 10)):
        counts = count_tasks(lines[split])
        assert len(counts) == 2 * len(TASKS)
        assert min(counts.values()) >= least, counts
    assert len(lines["train"]) > 10_000
    assert len(lines["heldout"]) > 800


def test_no_page_request_or_answer_is_on_both_sides(lines):
    train, heldout = lines["train"], lines["heldout"]
    assert {corpus.split_of(line["pair"]) for line in train} == {"train"}
    assert {corpus.split_of(line["pair"]) for line in heldout} == {"heldout"}
    for place in (0, 1):
        seen = {line["messages"][place]["content"] for line in train}
        assert not [line["id"] for line in heldout if line["messages"][place]["content"] in seen]


def test_answers_are_the_pages_words(lines, pages):
    for line in lines["heldout"]:
        text = pages[line["pair"]]
        if line["task"] == "record":
            parts = json.loads(answer(line)).values()
        elif line["task"] == "headings":
            parts = [part.removeprefix("- ") for part in answer(line).split("\n")]
        elif line["task"] == "title":
            parts = [answer(line).split(": ", 1)[1]]
        else:
            parts = [answer(line)]
        assert all(part in text for part in parts), line


def test_no_line_is_repeated_and_no_answer_often(lines):
    for found in lines.values():
        ids = [line["id"] for line in found]
        requests = [line["messages"][0]["content"] for line in found]
        assert len(set(ids)) == len(ids)
        assert len(set(requests)) == len(requests)
        assert max(collections.Counter(map(answer, found)).values()) <= REPEATED


def test_the_seed_chooses(lines):
    assert list(instructions("heldout")) == lines["heldout"]
    assert list(instructions("heldout", seed=1)) != lines["heldout"]
    per_page = collections.Counter(line["pair"] for line in instructions("train", per_page=2))
    assert max(per_page.values()) == 2
    with pytest.raises(ValueError, match="per_page=0 is not allowed"):
        list(instructions("train", per_page=0))


def test_verb(tmp_path, lines, capsys):
    main(["instructions", "--output", str(tmp_path / "chat")])
    printed = capsys.readouterr().out
    for split, found in lines.items():
        written = (tmp_path / "chat" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in written] == found
        assert f"{split}.jsonl: {len(found)} conversations" in printed
    with pytest.raises(ValueError, match=r"train\.jsonl exists"):
        main(["instructions", "--output", str(tmp_path / "chat")])
    main(["instructions", "--output", str(tmp_path / "few"), "--limit", "5"])
    few = [json.loads(line) for line in (tmp_path / "few" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    assert few == [lines["heldout"][i * len(lines["heldout"]) // 5] for i in range(5)]
    with pytest.raises(ValueError, match="--limit 0 is not allowed: it must be at least 1"):
        main(["instructions", "--output", str(tmp_path / "none"), "--limit", "0"])
