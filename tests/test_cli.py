"""The command line: what is wrong is said in one line with status 2, and nothing is touched."""

import contextlib
import importlib
import logging
import platform
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from plamo2_jax import __version__
from plamo2_jax.cli.arguments import GROUPS
from plamo2_jax.cli.library_logs import silence_library_logs
from plamo2_jax.cli.main import COMMANDS, main, module_of

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "tokenizer"


def refused(argv, capsys):
    """The one line on stderr of a call that must be refused."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in COMMANDS)


def test_the_version_names_what_runs(capsys):
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    assert text == f"plamo2-jax {__version__} (jax {jax.__version__}, Python {platform.python_version()})\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("clean", "plamo2 data clean"),
        ("trian", "plamo2 tokenizer train"),
        ("train", "plamo2 tokenizer train or plamo2 pretrain"),
        ("Generate", "plamo2 generate"),
        ("evalute", "plamo2 evaluate"),
        ("to_hf", "plamo2 convert to-hf"),
        ("slrum", "plamo2 launch slurm"),
    ],
)
def test_an_unknown_verb_gets_the_closest_command(word, meant, capsys):
    message = refused([word, "x"], capsys)
    assert f"unknown command '{word}'; did you mean {meant}? plamo2 --help lists all" in message


def test_a_verb_like_no_other_gets_the_list(capsys):
    message = refused(["xyzzy" * 100], capsys)
    assert "must be one of init, quickstart, tokenizer, data" in message
    assert len(message) < 400


def test_the_groups_are_the_verbs_with_commands_of_their_own():
    modules = {verb: importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}") for verb in COMMANDS}
    assert {verb for verb, module in modules.items() if hasattr(module, "SUBCOMMANDS")} == set(GROUPS)


@pytest.mark.parametrize("verb", ["tokenizer", "data", "convert"])
def test_groups_list_their_commands(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    commands = importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}").SUBCOMMANDS
    assert all(f"\n  {name} " in text for name in commands)
    assert f"must be one of {', '.join(commands)}" in refused([verb], capsys)
    assert f"must be one of {', '.join(commands)}" in refused([verb, "xyzzy"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["generate", "--temprature", "1", "x"],
            "'--temprature'; did you mean --temperature or --template? plamo2 generate --help",
        ),
        (
            ["generate", "x", "--temprature=1"],
            "unknown option '--temprature'; did you mean --temperature or --template?",
        ),
        (["data", "clean", "a", "b", "--text-feild", "t"], "did you mean --text-field? plamo2 data clean --help"),
        (["data", "cleen", "a", "b"], "unknown command 'cleen'; did you mean plamo2 data clean?"),
        (["prune", "a", "b", "c", "d"], "unexpected argument 'd'; plamo2 prune --help"),
        (
            ["pretrain", "configs/demo.py", "--stepz", "4"],
            "did you mean --steps? plamo2 pretrain configs/demo.py --help",
        ),
        (["pretrain", "configs/demo.py", "--learning-rate", "1"], "did you mean --schedule.learning-rate?"),
        (["pretrain", "configs/demo.py", "--mesh_data", "1"], "did you mean --mesh.data?"),
        (["preference-data", "configs/preference_data.py", "--polcy.url", "x"], "did you mean --policy.url"),
        (["merge", "a", "b", "--metod", "ties"], "did you mean --method?"),
        (["report", "a", "--output", "b"], "unknown option '--output'; plamo2 report --help"),
    ],
)
def test_an_unknown_word_is_named_with_the_closest_option(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in refused(argv, capsys)


def test_an_option_of_another_command_is_not_suggested_for_itself(capsys):
    assert main(["report", "run", "--output", "x"]) == 2
    assert "unknown option '--output'; plamo2 report --help lists the options" in capsys.readouterr().err


def commands():
    """Every command whose arguments tyro reads."""
    for verb in COMMANDS:
        module = importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}")
        yield from ([verb, name] for name in getattr(module, "SUBCOMMANDS", ())) if verb in GROUPS else [[verb]]


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_positional_arguments_have_names(command, capsys):
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    usage = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("usage: plamo2 "))
    positional = re.sub(r"--[\w.-]+ \S+|\[.*?\]+", "", usage)
    assert not re.search(r"\b(STR|PATH|INT|FLOAT)\b", positional)


def test_the_names_of_positional_arguments_are_in_errors_too(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["prune", "runs/demo"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "TARGET" in text
    assert "OUTPUT" in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef\n", "config.py, line 2: invalid syntax"),
        (
            "from plamo2_jax.train.config import RunConfig\n\nconfig = RunConfig(nme='x')\n",
            "config.py, line 3: RunConfig.__init__() got an unexpected keyword argument 'nme'",
        ),
        ("import nothing_of_that_name\n", "config.py, line 1: No module named 'nothing_of_that_name'"),
        ("config = 3\n", "config.py must set `config` to a RunConfig, but its type is int"),
    ],
)
def test_a_config_file_that_does_not_run_is_named_with_its_line(tmp_path, capsys, source, message):
    (tmp_path / "config.py").write_text(source, encoding="utf-8")
    assert message in refused(["pretrain", str(tmp_path / "config.py")], capsys)


@pytest.mark.parametrize(
    ("option", "value"), [("--sequence-length", "1"), ("--packing-bins", "0"), ("--documents", "-1")]
)
def test_figures_out_of_range_are_refused_before_anything_is_read(capsys, option, value):
    message = refused(["data", "inspect", "nowhere", option, value], capsys)
    assert f"{option} {value} is not allowed: it must be at least" in message


def test_control_characters_of_names_are_spelled_out(tmp_path, capsys):
    assert main(["data", "clean", str(tmp_path / "a\x1b[2J\u8868.jsonl"), str(tmp_path / "out.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"a\x1b[2J表.jsonl does not exist: it must be a file" in said


def test_cleaning_does_not_overwrite_its_input(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "raw"}\n', encoding="utf-8")
    assert "is also an input file" in refused(["data", "clean", str(path), str(path)], capsys)
    assert path.read_text(encoding="utf-8") == '{"text": "raw"}\n'


def test_a_failed_vocabulary_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("too little text", encoding="utf-8")
    argv = ["tokenizer", "train", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")]
    assert main([*argv, "--vocab-size", "9000"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_reader_that_has_seen_enough_ends_the_program_quietly():
    """`plamo2 tokenizer decode ... | true`: more output than a pipe holds, and nobody reads it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "plamo2_jax.cli.main", "tokenizer", "decode", str(GOLDEN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.write(b"300 " * 100_000)
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


def test_the_hook_for_errors_of_threads_is_set_once_and_passes_other_errors_on(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    silence_library_logs()
    hook = sys.unraisablehook
    silence_library_logs()
    assert sys.unraisablehook is hook
    closed = types.SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed"))
    other = types.SimpleNamespace(object=None, exc_value=RuntimeError("something else"))
    hook(closed)
    hook(other)
    assert seen == [other]


def test_inspect_names_the_folders_that_it_can_describe(tmp_path, capsys):
    for name in ("train", "heldout"):
        (tmp_path / "shards" / name).mkdir(parents=True)
        (tmp_path / "shards" / name / "manifest.json").write_text("{}", encoding="utf-8")
    message = refused(["inspect", str(tmp_path / "shards")], capsys)
    assert "no model, no adapters and no shards" in message
    assert message.rstrip().endswith("heldout, train")
