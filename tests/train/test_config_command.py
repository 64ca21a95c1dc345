"""`plamo2 config`: show, diff and validate, on the files of the source tree and on a real run."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import DataConfig
from plamo2_jax.project.check import estimate_memory, one_device_program
from plamo2_jax.project.fields import describe, field_help
from plamo2_jax.train.benchmarks import BenchmarksConfig
from plamo2_jax.train.config import RunConfig, to_json
from support.runs import write_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


@pytest.fixture
def printed(capsys):
    """A function that runs `plamo2 config ...` and returns its exit status and standard output."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["config", *map(str, arguments)])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """A function that runs `plamo2 config ...`, which must be refused, and returns the line on stderr."""

    def run(*arguments):
        capsys.readouterr()
        assert main(["config", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return run


def flat(value, name=""):
    """Yield the leaves of a config in JSON form with dotted names, as in a config.json. A list of objects is numbered."""
    if isinstance(value, dict) and value and name.rpartition(".")[2] not in ("heldout", "compiler_options"):
        for key, each in value.items():
            yield from flat(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, each in enumerate(value):
            yield from flat(each, f"{name}[{number}]")
    else:
        yield name, value


@pytest.mark.parametrize("name", ["demo", "demo_dpo", "quickstart"])
def test_show_has_every_field_with_value_default_and_help(name, printed):
    status, text = printed("show", CONFIGS / f"{name}.py", "--json")
    fields = {line["name"]: line for line in map(json.loads, text.splitlines())}
    config = load_config(CONFIGS / f"{name}.py")
    expected = {key: value for key, value in flat(to_json(config)) if not key.endswith(".kind") or "schedule" in key}
    assert status == 0
    assert {key: fields[key]["value"] for key in expected if key in fields} == expected
    assert set(fields) == set(expected)
    assert all(len(field["help"]) > 10 for field in fields.values())
    assert fields["model.hidden_size"]["default"] == 4096
    assert "default" not in fields["steps"]


def test_show_marks_what_differs_from_the_default(printed):
    _, text = printed("show", CONFIGS / "demo.py")
    assert "* model.hidden_size = 256    (default 4096)" in text
    assert "  model.mamba_d_conv = 4\n" in text
    _, changed = printed("show", CONFIGS / "demo.py", "--changed")
    assert "mamba_d_conv" not in changed
    assert "Width of the residual stream (hidden size)." in changed


def test_every_field_of_a_run_has_a_help_text():
    assert set(field_help(RunConfig)) == {field.name for field in dataclasses.fields(RunConfig)}


def test_diff_compares_files_runs_and_defaults(uninterrupted, tmp_path, printed):
    config, _ = uninterrupted
    file = write_config(dataclasses.replace(config, seed=5), tmp_path)
    status, text = printed("diff", config.folder, file)
    assert (status, text.splitlines()[1:]) == (0, ["  seed: 0 -> 5"])
    assert printed("diff", config.folder, file, "--exit-code")[0] == 1
    assert printed("diff", config.folder, write_config(config, tmp_path), "--exit-code")[0] == 0
    _, text = printed("diff", config.folder, "--json")
    rows = {row["name"]: row for row in map(json.loads, text.splitlines())}
    assert rows["checkpoint_every"] == {"name": "checkpoint_every", "first": 1000, "second": 4}
    assert rows["steps"] == {"name": "steps", "second": 12}
    assert "seed" not in rows


def test_a_stored_config_without_new_fields_has_their_defaults(uninterrupted, tmp_path):
    config, _ = uninterrupted
    stored = json.loads((config.folder / "config.json").read_text(encoding="utf-8"))
    del stored["spike"], stored["data"]["packing"], stored["model"]["mamba_step"]
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    assert describe(tmp_path).values() == describe(config.folder).values()


def test_validate_checks_a_run_without_writing(make_config, uninterrupted, tmp_path, printed):
    config = make_config("never_started", output=tmp_path / "runs")
    status, text = printed("validate", write_config(config, tmp_path))
    assert status == 0
    assert f"{config.model.parameter_count():,}" in text
    assert re.search(r"memory +about \d+ MB on one device", text)
    assert re.search(r"data .*train: [\d,]+ tokens, about [\d.]+ epochs", text)
    assert text.count("held out") == 2
    assert text.endswith("valid       yes\n")
    assert not config.output.exists()
    # A finished run has a folder that the same config may resume, and another one may not.
    finished, _ = uninterrupted
    assert "which can be resumed" in printed("validate", write_config(finished, tmp_path))[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": Path("no.jsonl")}, "tokenizer=no.jsonl does not exist: every path of a config must exist"),
        ({"heldout": {"ja": Path("no")}}, "heldout['ja']=no does not exist"),
        ({"init_from": Path("no")}, "init_from=no does not exist"),
        ({"name": "uninterrupted", "seed": 7}, "contains a run with a different configuration"),
        ({"evaluation": BenchmarksConfig(("nosuchtask",))}, "evaluation.tasks has 'nosuchtask', which is unknown"),
        (
            {"evaluation": BenchmarksConfig(("ifeval",), paths={"ifeval": Path("no")})},
            "evaluation.paths['ifeval']=no does not exist",
        ),
    ],
)
def test_validate_names_what_is_wrong(fields, message, make_config, uninterrupted, tmp_path, refused):
    config = make_config(**({"name": "wrong"} | fields))
    assert message in refused("validate", write_config(config, tmp_path))


def test_validate_refuses_a_vocabulary_that_does_not_fit(make_config, tmp_path, refused):
    config = make_config("small")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=300))
    assert "320 rows" in refused("validate", write_config(config, tmp_path))


def test_validate_and_show_name_files_that_hold_no_config(tmp_path, refused):
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    assert "does not set a configuration" in refused("validate", tmp_path / "a.py")
    assert "no.py is not a file" in refused("show", "no.py")
    (tmp_path / "config.json").write_text('{"model_type": "plamo2"}', encoding="utf-8")
    assert "is not the folder of a training run" in refused("diff", tmp_path)


def test_the_estimate_of_memory_is_near_what_the_compiler_needs(make_config):
    config = make_config("memory", remat="block")
    config = dataclasses.replace(config, data=DataConfig(config.data.mixture, sequence_length=256, batch_size=8))
    program = one_device_program(config)
    estimate = estimate_memory(config, program)
    compiled = program.jit().lower(*program.arguments).compile().memory_analysis()
    assert estimate.state == compiled.argument_size_in_bytes - sum(
        leaf.size * leaf.dtype.itemsize for leaf in program.batch.values()
    )
    assert 0.5 < estimate.total / (compiled.argument_size_in_bytes + compiled.temp_size_in_bytes) < 1.5


def test_the_commands_of_the_page_run(make_config, uninterrupted, tmp_path, monkeypatch, printed):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my-model"]) == 0
    monkeypatch.chdir("my-model")
    # The page names a run; this one is already there.
    Path("runs").mkdir()
    Path("runs/base").symlink_to(uninterrupted[0].folder)
    block = re.search(r"<!-- config -->\n```sh\n(.*?)```", PAGE, re.DOTALL).group(1)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) >= 5
    for words in lines:
        assert words[:2] == ["plamo2", "config"]
        assert printed(*words[2:])[0] == 0, words
