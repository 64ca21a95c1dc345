"""`plamo2 pretrain` and the configurations that come with the project."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import pytest

from plamo2_jax.checkpoint import write_json
from plamo2_jax.cli.main import main
from plamo2_jax.config_file import load_config
from plamo2_jax.convert.load import load_model
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.train.config import differences, free_fields, to_json
from plamo2_jax.train.loop import train
from plamo2_jax.train.optimizer import make_optimizer
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.state import TrainState
from support.models import tiny
from support.runs import write_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["demo", "pretrain_1b", "pretrain_8b"])
def test_the_configurations_can_be_planned(name):
    """Shapes of the whole training state, with nothing allocated."""
    config = load_config(CONFIGS / f"{name}.py")
    model = Plamo2(config.model)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.schedule, config.steps), logical_axes(model))
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer, config.seed), abstract_params(model))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == config.model.parameter_count()
    # Adam keeps two more of everything, and the schedule and Adam a counter each.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * config.model.parameter_count() + 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_is_one_of_its_verb(path, make_config, tmp_path, monkeypatch, capsys):
    verb = path.stem.removeprefix("demo_").replace("_", "-")
    if verb not in ("sft", "dpo", "preference-data", "iterate"):
        verb = {"pipeline": "pipeline", "quickstart": "sft"}.get(verb.partition("-")[0], "pretrain")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    for start in ("runs/demo", "runs/sft"):
        Path(start).mkdir(parents=True)
        write_json(Path(start, "config.json"), to_json(make_config("start")))
    if verb == "pipeline":
        assert main([verb, str(path), "--dry-run"]) == 0
    else:
        with pytest.raises(SystemExit) as ended:
            main([verb, str(path), "--help"])
        assert ended.value.code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], [str(CONFIGS / "demo.py"), "--help"]])
def test_help_teaches(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", *arguments])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "CONFIG.py is a Python file",
        "resumes an interrupted run",
        "--schedule.learning-rate",
        "Peak learning rate.",
        "--data.sequence-length",
        "--model.hidden-size",
        "keeps logits from drifting",
        "--profile",
        "--distributed.coordinator",
        "exit status:",
    ):
        assert words in text, words


def make_file(make_config, folder, **fields):
    """A config file and what it sets."""
    config = make_config("cli", **fields)
    return write_config(config, folder), config


def test_overrides_reach_the_run_and_its_record(make_config, tmp_path, capsys):
    path, config = make_file(make_config, tmp_path, steps=2, output=tmp_path, model=tiny(num_hidden_layers=1))
    arguments = ["--schedule.learning-rate", "0.002", "--name", "other", "--data.seed", "7"]
    assert main(["pretrain", str(path), *arguments]) == 0
    said = capsys.readouterr()
    assert "held-out ja:" in said.out
    count = config.model.parameter_count()
    banner = (
        rf"other: {count:,} parameters; float32 activations\n"
        r"devices: 8 cpu in 1 process\(es\); mesh data=1 fsdp=8 .*; sharding fsdp_tensor\n"
        r"steps: 2 with 8 x 32 = 256 tokens each; about 0\.\d\d epochs of .*/train \([\d,]+ tokens\)\n"
        r"start: random parameters\n"
        r"compiling the train step \.\.\.\ncompiled in \d+\.\d s\n"
    )
    assert re.search(banner, said.err)
    recorded = (tmp_path / "other" / "config.json").read_text()
    expected = dataclasses.replace(
        config,
        name="other",
        schedule=dataclasses.replace(config.schedule, learning_rate=0.002),
        data=dataclasses.replace(config.data, seed=7),
    )
    recorded = {key: value for key, value in json.loads(recorded).items() if key != "tokenizer_fingerprint"}
    # The fingerprints of the data are recorded beside the fields.
    assert len(recorded.pop("shards")) == len(expected.data.mixture)
    assert recorded == json.loads(json.dumps(to_json(expected)))


def test_errors_are_one_sentence(make_config, tmp_path, capsys):
    path, _ = make_file(make_config, tmp_path)
    for arguments, message in [
        (["nowhere.py"], "nowhere.py is not a file"),
        ([], "the first argument must be a config file"),
        ([str(path), "--tokenizer", "missing.jsonl"], "RunConfig.tokenizer='missing.jsonl' does not exist"),
        ([str(path), "--data.batch-size", "0"], "DataConfig.batch_size=0 is not allowed: it must be at least 1"),
    ]:
        assert main(["pretrain", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    assert main(["pretrain", str(empty)]) == 2
    assert "must set `config` to a RunConfig" in capsys.readouterr().err


def test_what_a_run_lacks_is_found_before_anything_is_written(make_config, tmp_path, capsys):
    path, _ = make_file(make_config, tmp_path, output=tmp_path, model=tiny(num_hidden_layers=1), steps=6)
    for arguments, message in [
        (["--heldout.en", "shards/heldot"], "shards/heldot is not a folder of shards"),
        (["--init-from", "nonexist"], "nonexist is not a folder: a model is a run folder"),
        (["--profile", "50:60"], "--profile 50:60 traces no step: the run has 6 steps"),
        (["--seed", str(1 << 70)], f"RunConfig.seed={1 << 70} is not allowed: it must be from 0 to 2**32 - 1"),
    ]:
        assert main(["pretrain", str(path), *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "cli").exists()
    assert main(["pretrain", str(path), "--compiler-options", "xla_foo", "1"]) == 2
    assert "No such compile option: 'xla_foo'" in capsys.readouterr().err


def test_a_run_does_not_overwrite_a_model_in_its_folder(make_config, tmp_path):
    config = make_config("merged", output=tmp_path)
    for described in ({"model_type": "plamo2"}, {"model": {}, "quantization": {}}):
        config.folder.mkdir(exist_ok=True)
        (config.folder / "config.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match="holds a model or adapters, and no training run"):
            train(config)
        assert json.loads((config.folder / "config.json").read_text()) == described


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PRESETS['plamo-2-4b']", "line 2: KeyError: 'plamo-2-4b'"),
        ("1 / 0", "line 2: division by zero"),
        ("[][3]", "line 2: list index out of range"),
    ],
)
def test_a_config_file_that_fails_is_one_sentence(text, message, tmp_path, capsys):
    (tmp_path / "c.py").write_text(f"from plamo2_jax.config import PRESETS\nconfig = {text}\n")
    assert main(["pretrain", str(tmp_path / "c.py")]) == 2
    error = capsys.readouterr().err
    assert f"c.py, {message}" in error
    assert error.count("\n") == 1


def test_a_trained_run_keeps_its_tokenizer(uninterrupted, tmp_path, capsys):
    run = shutil.copytree(uninterrupted[0].folder, tmp_path / "run")
    assert main(["tokenizer", "train", "--input", "bundled:en:heldout", "--output", str(run)]) == 2
    assert "has a model with a tokenizer" in capsys.readouterr().err
    lines = (run / "tokenizer.jsonl").read_text().splitlines()
    text, score, *rest = json.loads(lines[-1])
    lines[-1] = json.dumps([text, score - 1.0, *rest])
    (run / "tokenizer.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="is not the tokenizer that the run was trained with"):
        load_model(run)


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("pretrain", ["--keep", "5"], "--keep is now --max-to-keep; plamo2 pretrain"),
        (
            "pretrain",
            ["--distillation.teacher=x"],
            "--distillation.teacher is now --teacher, of a run with task=Distill",
        ),
        ("pretrain", ["--lora.rank", "4"], "unknown option '--lora.rank'"),
        (
            "sft",
            [],
            "demo.py sets a run with task=Pretrain(...): it must be task=Sft(...). plamo2 pretrain runs this one",
        ),
    ],
)
def test_options_of_other_versions_and_other_tasks_are_answered(verb, options, message, capsys):
    assert main([verb, str(CONFIGS / "demo.py"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a/b"),
        ("steps", 0),
        ("accumulation", 3),
        ("dtype", "float16"),
        ("max_to_keep", 0),
        ("log_every", 0),
        ("remat", "full"),
        ("sharding", "zero"),
        ("loss_chunk", 5),
    ],
)
def test_a_bad_field_is_named(make_config, field, value):
    with pytest.raises(ValueError, match=rf"RunConfig\.{field}={value!r} is not allowed: it must be"):
        make_config(**({"name": "run"} | {field: value}))


def test_differences_are_dotted_and_leave_out_what_only_watches(make_config):
    config = make_config("run")
    left, free = to_json(config), frozenset(free_fields(config))
    right = to_json(make_config("run", log_every=1, max_to_keep=9, task=Pretrain(0.5)))
    assert differences(left, right, free) == ["task.z_loss: 0.0001, not 0.5"]
    right["data"] |= {"sequence_length": 64, "read_threads": 0}
    assert differences(left, right, free) == ["data.sequence_length: 32, not 64", "task.z_loss: 0.0001, not 0.5"]
