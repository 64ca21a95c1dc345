"""The command line: what is wrong is said in one line with status 2, and nothing is touched."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plamo2_jax.cli.main import VERBS, main

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
    assert all(verb in text for verb in VERBS)


def test_an_unknown_verb_lists_the_known_ones(capsys):
    assert "must be one of tokenizer, data, pretrain" in refused(["trian"], capsys)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef\n", "config.py, line 2: invalid syntax"),
        (
            "from plamo2_jax.train.config import PretrainConfig\n\nconfig = PretrainConfig(nme='x')\n",
            "config.py, line 3: PretrainConfig.__init__() got an unexpected keyword argument 'nme'",
        ),
        ("import nothing_of_that_name\n", "config.py, line 1: No module named 'nothing_of_that_name'"),
        ("config = 3\n", "config.py must set `config` to a PretrainConfig; it sets it to int"),
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


def test_cleaning_does_not_overwrite_its_input(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "raw"}\n', encoding="utf-8")
    assert "is the input too" in refused(["data", "clean", str(path), str(path)], capsys)
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
