"""What a journal, a report and a configuration must hold: whatever is damaged is found where it is read."""

import copy
import dataclasses
import json

import pytest

from plamo2_jax.align.iterative_dpo import iterate
from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.entries import is_entry, read_identity, read_report
from plamo2_jax.align.preference_data.files import write_files
from plamo2_jax.align.preference_data.judge import JudgeConfig
from plamo2_jax.align.preference_data.prompts import Prompt
from plamo2_jax.align.preference_data.sampling import make_preference_data
from plamo2_jax.cli.iterate import example
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatModelConfig

ANSWER = {
    "sample": 0,
    "text": "x",
    "finished": True,
    "tokens": 1,
    "retries": 0,
    "dropped": None,
    "rules": {"finished": 1.0},
    "rules_mean": 1.0,
    "judge": 1.0,
    "score": 1.0,
}
OTHER = {**ANSWER, "sample": 1, "text": "other", "rules": {}, "judge": 0, "score": 0.5, "tokens": None}
VERDICT = {"pair": [0, 1], "said": ["A", "B"], "winner": 0, "retries": 1}
RIGHT = {"id": "a", "answers": [ANSWER, OTHER], "verdicts": [VERDICT]}
FAILED = {"id": "a", "failed": "why", "retries": 2}
ODD = [None, True, 0, 1, -1, 1.5, 1 << 80, "", "a", "repeats 0", [], [1, 2], ["A"], {}, {"a": "b"}, {"id": "a"}]


def paths(value, path=()):
    """All places in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def damaged(entry):
    """The entry with another value, or none, at each place."""
    for path in paths(entry):
        for odd in (*ODD, "nothing"):
            other = copy.deepcopy(entry)
            holder = other
            for key in path[:-1]:
                holder = holder[key]
            if odd == "nothing":
                del holder[path[-1]]
            else:
                holder[path[-1]] = odd
            yield path, odd, other
    yield (), "more", {**entry, "more": 1}


@pytest.mark.parametrize("entry", [RIGHT, FAILED], ids=["answered", "failed"])
def test_what_counts_as_an_entry_can_be_made_files_of(entry, tmp_path):
    config = PreferenceDataConfig(tmp_path, (tmp_path,), ChatModelConfig("m"), samples=2)
    prompts = [Prompt("a", ({"role": "user", "content": "?"},), {}, "line 1")]
    assert is_entry(entry, 2)
    refused = 0
    for path, odd, other in damaged(entry):
        if not is_entry(other, 2):
            refused += 1
        elif other["id"] == "a":
            report = write_files(tmp_path, config, prompts, {}, {"a": other}, {"policy": {}, "judge": None})
            assert read_report(tmp_path) == json.loads(json.dumps(report)), (path, odd)
    assert refused > 20
    assert not is_entry(entry, 3) or entry is FAILED


@pytest.fixture
def config(server, write_lines, tmp_path):
    """Preference data that are complete."""
    prompts = write_lines([{"id": name, "prompt": f"{name}とは？"} for name in "ab"], "prompts.jsonl")
    endpoint = {"url": server.url, "max_retries": 1, "backoff": 0.01, "timeout": 5.0}
    settings = {
        "judge": JudgeConfig("judge", **endpoint),
        "samples": 2,
        "rules": {"language": "ja"},
        "near_prompts": None,
    }
    found = PreferenceDataConfig(tmp_path / "out", (prompts,), ChatModelConfig("policy", **endpoint), **settings)
    make_preference_data(found)
    return found


def whole(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "journal.jsonl")}


DAMAGED_LINES = {
    "no answers": lambda entry: {"id": entry["id"]},
    "answers null": lambda entry: {**entry, "answers": None},
    "answer a number": lambda entry: {**entry, "answers": [1, 2]},
    "one answer": lambda entry: {**entry, "answers": entry["answers"][:1]},
    "no score": lambda entry: {
        **entry,
        "answers": [{k: v for k, v in one.items() if k != "score"} for one in entry["answers"]],
    },
    "score a text": lambda entry: {**entry, "answers": [{**one, "score": "1"} for one in entry["answers"]]},
    "no verdicts": lambda entry: {k: v for k, v in entry.items() if k != "verdicts"},
    "verdict of others": lambda entry: {**entry, "verdicts": [{**VERDICT, "pair": [0, 7]}]},
    "failed without retries": lambda entry: {"id": entry["id"], "failed": "why"},
    "a list": lambda entry: [entry],
    "no text id": lambda entry: {**entry, "id": 3},
    "not a number": lambda entry: {**entry, "verdicts": float("nan")},
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", DAMAGED_LINES)
def test_from_a_line_that_is_no_entry_on_all_is_made_anew(name, place, config, server):
    journal, before, asked = config.output / "journal.jsonl", whole(config.output), len(server.requests)
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    anew = {f"{line['id']}とは？" for line in lines[place:]}
    lines[place] = DAMAGED_LINES[name](lines[place])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (config.output / "report.json").unlink()
    make_preference_data(config)
    assert whole(config.output) == before
    contents = (body["messages"][-1]["content"] for *_, body in server.requests[asked:])
    assert {content for content in contents if not content.startswith("# 会話")} == anew


@pytest.mark.parametrize("report", [{}, {"failed": 3}, [], None, "cut", "counts"])
def test_a_report_that_is_none_is_made_anew(report, config, server):
    path, before, asked = config.output / "report.json", whole(config.output), len(server.requests)
    if report == "counts":
        report = json.loads(path.read_text()) | {"answers": "4"}
    path.write_bytes(path.read_bytes()[:30] if report == "cut" else json.dumps(report).encode())
    make_preference_data(config)
    assert whole(config.output) == before
    assert len(server.requests) == asked


@pytest.mark.parametrize("name", ["answers.jsonl", "pairs.jsonl", "heldout.jsonl"])
def test_a_file_that_is_missing_is_made_anew(name, config):
    before = whole(config.output)
    (config.output / name).unlink()
    make_preference_data(config)
    assert whole(config.output) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not the configuration of preference data: it must hold config"),
        ('{"config": [], "prompts": "", "policy": {}, "judge": null}', "is not the configuration of preference data"),
        ("[]", "must hold a JSON object"),
        ('{"config"', "is not valid JSON"),
        ("[" * 9999, "is not valid JSON"),
    ],
)
def test_a_configuration_that_is_none_is_refused(content, message, config):
    (config.output / "config.json").write_text(content)
    with pytest.raises(
        ValueError, match=f"config.json {message}.*; choose another --output, or add --again to start over$"
    ) as refused:
        make_preference_data(config)
    assert len(str(refused.value)) < 400
    assert read_identity(config.output / "none") is None
    make_preference_data(config, again=True)


@pytest.mark.parametrize("content", ["{}", '{"start": 1}', "[]", "{"])
def test_a_configuration_that_is_none_of_rounds_is_refused(content, tmp_path):
    config = dataclasses.replace(example(), output=tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is not|must hold)"):
        iterate(config)


def test_a_folder_in_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(ValueError, match="is not a regular file"):
        Journal(tmp_path / "journal.jsonl", lambda entry: True)


def test_links_to_files_elsewhere_are_neither_read_nor_written(config, tmp_path):
    before, elsewhere = whole(config.output), tmp_path / "elsewhere"
    for name, message in {"config.json": "is a symbolic link", "journal.jsonl": "is not a regular file"}.items():
        content = (config.output / name).read_bytes()
        elsewhere.write_text("not an entry\n")
        (config.output / "report.json").unlink()
        (config.output / name).unlink()
        (config.output / name).symlink_to(elsewhere)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            make_preference_data(config)
        assert elsewhere.read_text() == "not an entry\n"
        (config.output / name).unlink()
        (config.output / name).write_bytes(content)
        make_preference_data(config)
    elsewhere.write_bytes((config.output / "report.json").read_bytes())
    (config.output / "report.json").unlink()
    (config.output / "report.json").symlink_to(elsewhere)
    make_preference_data(config)
    assert not (config.output / "report.json").is_symlink()
    assert whole(config.output) == before
