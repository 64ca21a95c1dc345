"""Runs of `plamo2 synth`: plans, units, kills, failing servers, workers, budgets and rates."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.config import SynthConfig, read_config
from plamo2_jax.synth.fields import read_fields
from plamo2_jax.synth.lease import LeaseLost, lease
from plamo2_jax.synth.plan import read_unit
from plamo2_jax.synth.seeds import segments
from plamo2_jax.synth.spending import StoredSpending
from support.synth_runs import RECIPE, write_config

TWO_STEPS = """
name: facts
version: "1"
language: ja
kind: text
source: fields
fields: [topic]
steps:
  - name: first
    chat: ["{{ fields.topic }}について書いてください。"]
    max_new_tokens: 50
    parse: {name: passage}
  - name: second
    chat: ["続けてください。{{ steps.first }}"]
    max_new_tokens: 50
    parse: {name: passage}
drafts:
  - text: "{{ steps.second }}"
verify:
  - judge: {least: 0}
"""


def files(folder):
    """The contents that must not depend on interruptions."""
    paths = [
        *folder.glob("plan/*"),
        *folder.glob("units/*/done.jsonl"),
        *folder.glob("records/*"),
        folder / "report.json",
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def report(folder, output="out"):
    return json.loads((folder / output / "report.json").read_text())


def test_rule_based_recipes_run_without_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {
        "output": "out",
        "seeds": {"inputs": ["bundled:ja:heldout"], "translations": "heldout", "max_characters": 500},
        "recipes": [
            {"name": "word_problems_ja", "seeds": 20},
            {"name": "arithmetic_ja_chat", "seeds": 20, "samples": 2},
            {"name": "page_facts_ja", "seeds": 5},
            {"name": "translation_pairs_ja_en", "seeds": 4},
        ],
        "unit_size": 16,
        "mix": {},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert main(["synth", "c.yaml", "--dry-run"]) == 0
    assert "arithmetic_ja_chat" in capsys.readouterr().out
    assert not Path("out").exists()
    assert main(["synth", "c.yaml"]) == 0
    counts = report(tmp_path)["generate"]["recipes"]
    assert (counts["word_problems_ja"]["records"], counts["arithmetic_ja_chat"]["records"]) == (20, 40)
    # A translation has two languages, of which the record declares one. Short English passages without common words are no English text.
    cleaned = report(tmp_path)["stages"]["clean"]["refused"]
    assert cleaned["language"] < 0.3 * counts["translation_pairs_ja_en"]["records"]
    records = [json.loads(line) for path in Path("out/records").glob("*.jsonl") for line in path.open()]
    assert len({record["id"] for record in records}) == len(records) == report(tmp_path)["records"] > 60
    assert {record["generation"] for record in records} == {1}
    assert Path("out/records/README.md").read_text().startswith("---\n")
    assert Path("out/data/mix.json").is_file()
    before = files(Path("out"))
    assert main(["synth", "c.yaml"]) == 0
    assert files(Path("out")) == before


def test_records_carry_their_provenance(folder, server):
    assert main(["synth", write_config(folder, server)]) == 0
    records = [json.loads(line) for line in (folder / "out/records/text_00000.jsonl").open()]
    assert len(records) == 30
    record = records[0]
    assert record["sources"][0]["license"] == "CC0-1.0"
    assert record["generator"]["license"] == "Apache-2.0"
    assert (record["recipe"]["name"], record["license"]) == ("facts", "Apache-2.0")
    # The price of a generated token is 1.
    assert record["usage"]["cost"] == record["usage"]["completion_tokens"] == len(record["text"])
    spent = report(folder)["generate"]["spent"]
    assert spent["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in records) == spent["cost"]


def test_every_trouble_of_a_server_ends_in_a_record_or_a_reason(folder, server):
    kinds = [429, 500, "cut", b"garbage", b"{}", "hang", "drip body", 400]
    server.troubles = {f"話題{i}。": [kind, kind] for i, kind in enumerate(kinds)}
    assert main(["synth", write_config(folder, server)]) == 1
    made = report(folder)["generate"]
    counts = made["recipes"]["facts.yaml"]
    assert counts["records"] + counts["failed"] == 30
    assert counts["failed"] == sum(made["failed"].values()) >= 7
    asked = len(server.requests)
    # The next start asks the failed entries only.
    server.troubles = {}
    assert main(["synth", "out.yaml"]) == 0
    assert report(folder)["generate"]["recipes"]["facts.yaml"] == {"records": 30, "refused": 0}
    assert len(server.requests) == asked + counts["failed"]


def test_an_entry_that_always_fails_is_given_up(folder, server):
    server.troubles = {"話題3。": [400] * 20}
    path = write_config(folder, server, limits={"attempts": 2})
    for _ in range(2):
        assert main(["synth", path]) == 1
    asked = len(server.requests)
    assert main(["synth", path]) == 1
    assert len(server.requests) == asked
    assert report(folder)["generate"]["recipes"]["facts.yaml"] == {"records": 29, "refused": 0, "failed": 1}


COMMAND = [sys.executable, "-m", "plamo2_jax.cli.main", "synth"]


def test_kills_change_no_byte_and_repeat_only_what_was_in_flight(folder, server):
    assert main(["synth", write_config(folder, server, "whole/out")]) == 0
    asked = len(server.requests)
    path, rng, kills = write_config(folder, server, "killed/out"), random.Random(0), 0
    while True:
        # Slow answers, so that a kill meets some in flight.
        process = subprocess.Popen([*COMMAND, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = len(server.requests) + rng.randint(1, 6)
        while process.poll() is None and (kills == 4 or len(server.requests) < limit):
            time.sleep(0.002)
        if kills == 4:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait() == 0
    assert files(folder / "killed/out") == files(folder / "whole/out")
    assert len(server.requests) - asked <= 30 + 4 * kills


def test_two_workers_share_the_units_and_one_is_killed(folder, server):
    assert main(["synth", write_config(folder, server, "whole/out")]) == 0
    asked = len(server.requests)
    path = write_config(folder, server, "shared/out")
    workers = [subprocess.Popen([*COMMAND, path, "--worker"], stdout=subprocess.DEVNULL) for _ in range(2)]
    while len(server.requests) < asked + 5:
        assert any(worker.poll() is None for worker in workers)
        time.sleep(0.002)
    workers[0].send_signal(signal.SIGKILL)
    assert workers[1].wait(120) == 0
    workers[0].wait()
    assert main(["synth", path]) == 0
    assert files(folder / "shared/out") == files(folder / "whole/out")
    assert len(server.requests) - asked <= 30 + 4


def test_a_changed_prompt_asks_its_units_again_and_no_others(folder, server):
    (folder / "other.yaml").write_text(
        RECIPE.replace("facts", "other").replace("について", "のことを"), encoding="utf-8"
    )
    recipes = [{"name": "facts.yaml"}, {"name": "other.yaml", "seeds": 10}]
    path = write_config(folder, server, recipes=recipes)
    assert main(["synth", path]) == 0
    assert len(server.requests) == 40
    text = (folder / "other.yaml").read_text(encoding="utf-8")
    (folder / "other.yaml").write_text(text.replace("書いて", "詳しく書いて"), encoding="utf-8")
    assert main(["synth", path]) == 2  # The plan is of other prompts.
    for unit in (folder / "out/plan").iterdir():
        unit.unlink()
    (folder / "out/plan").rmdir()
    assert main(["synth", path]) == 0
    assert len(server.requests) == 50


def test_a_budget_stops_the_run_and_a_larger_one_lets_it_go_on(folder, server, capsys):
    path = write_config(folder, server, limits={"max_tokens": 100})
    assert main(["synth", path]) == 2
    assert "limits.max_tokens=100 is reached" in capsys.readouterr().err
    asked = len(server.requests)
    assert asked < 20
    assert main(["synth", write_config(folder, server)]) == 0
    assert len(server.requests) == 30


def test_a_lease_is_exclusive_and_taken_over_when_its_host_is_silent(tmp_path):
    with lease(tmp_path, host="a") as first:
        assert first
        results = []
        thread = threading.Thread(target=lambda: results.append(lease(tmp_path, host="a").__enter__()))
        thread.start()
        thread.join()
        assert results == [None]
    # Another host's lock is not seen here; its file is.
    (tmp_path / "lease.json").write_text('{"host": "b", "token": "x"}')
    with lease(tmp_path, host="a") as taken:
        assert not taken
    old = time.time() - 1000
    os.utime(tmp_path / "lease.json", (old, old))
    with lease(tmp_path, host="a") as taken:
        assert taken
    assert not (tmp_path / "lease.json").exists()


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_hosts_without_common_locks_one_takes_a_lease(tmp_path, monkeypatch, stale):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    for trial in range(10):
        folder, start, release = tmp_path / str(trial), threading.Barrier(4), threading.Barrier(4)
        folder.mkdir()
        if stale:
            (folder / "lease.json").write_text('{"host": "dead", "token": "x"}')
            os.utime(folder / "lease.json", (1, 1))
        taken = []

        def work(host, folder=folder, start=start, release=release, taken=taken):
            start.wait()
            with lease(folder, host=host) as mine:
                release.wait()
                if mine is not None:
                    # Of two hosts that take over a lease at once, one may find out only here, before it uses the lease.
                    with contextlib.suppress(LeaseLost):
                        mine.check()
                        taken.append(host)

        threads = [threading.Thread(target=work, args=(f"host{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) <= 1
        assert stale or len(taken) == 1


def test_the_spending_of_failed_entries_and_of_the_judge_is_counted(folder, server):
    (folder / "facts.yaml").write_text(TWO_STEPS, encoding="utf-8")
    judge = {"model": "j", "url": server.url, "price_completion": 3e6, "max_retries": 0}
    server.troubles = {"続けてください": [400]}
    path = write_config(folder, server, judge=judge, recipes=[{"name": "facts.yaml", "seeds": 4}])
    assert main(["synth", path]) == 1
    config = read_config(folder / path)
    made = report(folder)["generate"]
    assert sum(made["failed"].values()) == 1
    spent = StoredSpending(folder / "out", config)()
    # All first steps are paid, the one of the failed entry, too. A judge that gives no score is asked three times.
    assert spent.requests == 4 + (3 + 1) + 3 * 3
    assert made["spent"]["cost"] == pytest.approx(spent.cost)
    assert made["spent"]["completion_tokens"] == spent.completion_tokens < spent.cost


def test_segments_end_where_paragraphs_end():
    text = "\n".join(["あ" * 40, "い" * 50, "う" * 120, "え" * 10])
    found = list(segments(text, 100))
    assert found == ["あ" * 40 + "\n" + "い" * 50, "う" * 100, "う" * 20 + "\n" + "え" * 10]
    assert list(segments("短い文。", 100)) == ["短い文。"]


def test_a_plan_is_written_before_anything_is_asked(folder, server):
    server.troubles = {"話題": [500] * 200}
    assert main(["synth", write_config(folder, server)]) == 1
    entries = [entry for i in range(4) for entry in read_unit(folder / "out/plan", f"{i:05d}")]
    assert len(entries) == 30
    assert len({entry.id for entry in entries}) == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "output: o\nrecipes: [{name: a, sample: 2}]",
            r"recipes\[0\] has the field 'sample': .* Did you mean samples\?",
        ),
        ("output: o\nrecipes: []", "must be at least one recipe"),
        ("recipes: [{name: a}]", "the field output is missing"),
        ("output: o\nrecipes: [{name: a, seeds: many}]", r"recipes\[0\].seeds is 'many': it must be a whole number"),
        ("output: o\nrecipes: [{name: a}]\nunit_size: 0", "unit_size=0 is not allowed"),
        ("output: [", "is not YAML"),
        ("- 1", "must be an object"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(PlamoError, match=message):
        read_config(tmp_path / "c.yaml")


def test_a_recipe_without_its_model_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(
        "output: o\nseeds: {inputs: ['bundled:ja:heldout']}\nrecipes: [{name: rephrase_simple_ja}]"
    )
    assert main(["synth", "c.yaml"]) == 2
    assert "the recipe rephrase_simple_ja needs a model: add `generator`" in capsys.readouterr().err


def test_the_configuration_of_the_project_is_read():
    assert isinstance(read_config(Path(__file__).parents[2] / "configs" / "synth_demo.yaml"), SynthConfig)
    assert read_fields(SynthConfig, {"output": "o", "recipes": [{"name": "a"}]}, "x").unit_size == 64
