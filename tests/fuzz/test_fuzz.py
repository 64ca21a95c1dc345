"""Every reader on damaged files: no traceback, no hang, bounded memory, nothing outside the folder. `make fuzz` reads many more."""

import shutil

import pytest

from support.fuzz import harness, targets

pytestmark = pytest.mark.slow

CASES = 250


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    targets.write_seeds(folder)
    return folder


@pytest.fixture(scope="session")
def results(seeds):
    return harness.run(harness.cases(CASES, 1_000_000, seeds), seeds)


def test_no_reader_fails_in_a_forbidden_way(results):
    bad = [result for result in results if result.category in harness.FORBIDDEN]
    assert not bad, "\n".join(map(str, bad))


def test_errors_name_the_file(results):
    vague = [result for result in results if result.category == "vague"]
    assert not vague, "\n".join(map(str, vague))


def test_damage_is_noticed(results):
    """The harness itself works: a good part of the damage is refused, and every reader was reached."""
    table = harness.count(results)
    assert set(table) == set(targets.TARGETS)
    assert sum(counts["clear"] for counts in table.values()) > CASES / 3


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000], ids=["lists", "objects", "digits"]
)
@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_json_that_nests_too_deep_is_one_sentence(seeds, tmp_path, target, content):
    """Whatever file of JSON it stands in. A journal is cut at that line; a report leaves the file out with a note."""
    # Other programs read these; we read tokenizer.jsonl and chat_template.jinja beside them.
    unread = ("generation_config.json", "tokenizer_config.json", "tokenizer.json")
    names = [
        name
        for name in targets.files(seeds, target)
        if name.endswith((".json", ".jsonl")) and not name.endswith(unread)
    ]
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(seeds / target, folder)
        (folder / name).write_bytes(content + b"\n")
        category, message = harness.read(harness.Case(target, name, 0), folder)
        assert category == "clear" or (category == "accepted" and target in ("preference_data", "report")), message


def test_the_harness_sees_every_kind_of_failure(tmp_path, monkeypatch):
    """A reader that misbehaves on purpose falls into the right category."""
    folder = tmp_path / "seeds" / "bad"
    work = tmp_path / "work"
    outside = work / "outside"
    for path in (folder, outside):
        path.mkdir(parents=True)
    (folder / "file").write_text("sound")

    def category(read):
        monkeypatch.setitem(targets.TARGETS, "bad", targets.Target(lambda folder: None, read))
        return harness.run_here(harness.Case("bad", "file", 1), tmp_path / "seeds", work, outside)["category"]

    def fail(error):
        raise error

    assert category(lambda folder: None) == "accepted"
    assert category(lambda folder: fail(ValueError(f"{folder}/file is damaged"))) == "clear"
    assert category(lambda folder: fail(ValueError("it is damaged"))) == "vague"
    assert category(lambda folder: fail(ValueError(f"{folder}/file\nis damaged"))) == "vague"
    assert category(lambda folder: fail(KeyError("a"))) == "traceback"
    assert category(lambda folder: fail(MemoryError())) == "memory"
    assert category(lambda folder: (outside / "secret.txt").read_bytes()) == "escape"
    assert category(lambda folder: (outside / "new").touch()) == "escape"
