"""Stages of `plamo2 synth`: finished ones are skipped, and run again after a change of their inputs or settings."""

import json
import re

import pytest
import yaml

from plamo2_jax.cli.main import main
from plamo2_jax.models import ChatRequest
from plamo2_jax.synth.config import GeneratorConfig, read_config
from plamo2_jax.synth.estimate import token_counter
from support.synth_runs import write_config
from support.tokenizers import byte_tokenizer

CHANGES = {
    "against": ["items.jsonl"],
    "deduplicate": {},
    "gates": {"min_records": 100},
    "mix": {"max_synthetic_share": 1},
}


@pytest.fixture
def run(folder, server, capsys):
    """Runs the verb; returns the names of the skipped stages."""
    (folder / "items.jsonl").write_text(json.dumps({"text": "話題7。について書いてください。"}) + "\n")

    def run(*options, status=0, **changes):
        path = write_config(folder, server, **CHANGES | changes)
        assert main(["synth", path, *options]) == status
        found = re.search(r"skipped, because .*: (.*)", capsys.readouterr().out)
        return found[1].split(", ") if found else []

    return run


def test_finished_stages_are_skipped_and_changes_run_what_depends_on_them(folder, run, server):
    everything = ["filter", "decontaminate", "deduplicate", "write", "mix"]
    assert run() == []
    before = (folder / "out/report.json").read_bytes()
    assert run() == everything
    assert (folder / "out/report.json").read_bytes() == before
    assert run(gates={"min_records": 200}) == [*everything[:3], "mix"]
    assert run(gates={"min_records": 200}, mix={"max_synthetic_share": 1, "max_generation": 2}) == everything[:4]
    # Criteria that change no record: the later stages have the same input.
    assert run(filters={"clean": {"min_chars": 1}}) == ["decontaminate", "deduplicate"]
    (folder / "items.jsonl").write_text(json.dumps({"text": "話題8。について書いてください。"}) + "\n")
    assert "decontaminate" not in run()
    assert len(server.requests) == 30


def test_a_damaged_output_is_written_again(folder, run):
    run()
    path = folder / "out/records/text_00000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert run() == ["filter", "decontaminate", "deduplicate", "mix"]
    assert path.read_bytes() == content


def test_a_run_stops_after_a_stage(folder, run, server):
    run("--stage", "plan")
    assert (folder / "out/plan/plan.json").is_file()
    assert not server.requests
    run("--stage", "generate")
    assert len(server.requests) == 30
    assert not (folder / "out/stages").exists()
    run("--stage", "deduplicate")
    assert (folder / "out/stages/deduplicate/records.jsonl").is_file()
    assert not (folder / "out/records").exists()
    assert run("--stage", "write") == ["filter", "decontaminate", "deduplicate"]
    assert not (folder / "out/data").exists()
    assert run() == ["filter", "decontaminate", "deduplicate", "write"]


def test_a_stage_that_the_config_lacks_is_refused(folder, server, capsys):
    assert main(["synth", write_config(folder, server), "--stage", "mix"]) == 2
    assert "--stage mix is not allowed: the config has no `mix`" in capsys.readouterr().err


def test_a_dry_run_counts_with_the_tokenizer_and_says_so(folder, server, capsys):
    path = write_config(folder, server)
    assert main(["synth", path, "--dry-run"]) == 0
    by_characters = capsys.readouterr().out
    assert "Tokens are estimated as 3 characters each" in by_characters
    tokenizer = byte_tokenizer()
    tokenizer.save(folder / "tokenizer.jsonl")
    path = write_config(folder, server, generator={"tokenizer": "tokenizer.jsonl"})
    assert main(["synth", path, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "Tokens are counted with tokenizer.jsonl" in text
    expected = sum(len(tokenizer.encode(f"話題{i}。について書いてください。")) for i in range(30))
    assert text.splitlines()[-2].split()[:4] == ["all", "30", "30", f"{expected:,}"]
    assert not (folder / "out").exists()
    content = yaml.safe_load((folder / path).read_text(encoding="utf-8"))
    content["generator"]["tokenizer"] = "nowhere"
    (folder / path).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert main(["synth", path, "--dry-run"]) == 2
    assert "generator.tokenizer nowhere does not exist" in capsys.readouterr().err


def test_a_local_model_counts_with_its_chat_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.jsonl")
    counter = token_counter(GeneratorConfig(str(tmp_path)))
    assert "chat template of the model" in counter.method
    assert counter.count(ChatRequest("a", [{"role": "user", "content": "大学"}])) > len(tokenizer.encode("大学"))


def test_servers_need_a_url(tmp_path):
    (tmp_path / "c.yaml").write_text("output: o\nrecipes: [{name: a}]\ngenerator: {servers: [http://a/v1]}")
    with pytest.raises(Exception, match="must be empty, or used with url"):
        read_config(tmp_path / "c.yaml")


def test_other_seeds_under_the_same_name_are_refused(folder, run, server, capsys):
    run()
    topics = folder / "topics.jsonl"
    before = topics.read_text()
    topics.write_text(before.replace(json.dumps("話題0。"), json.dumps("別の話題。")))
    path = write_config(folder, server, **CHANGES)
    assert main(["synth", path]) == 2
    assert "other contents of seeds.inputs or seeds.fields" in capsys.readouterr().err
    topics.write_text(before)
    assert len(run()) == 5
