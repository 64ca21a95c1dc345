"""`plamo2 init`: the project folders, and that they agree with configs/ of the source tree."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from plamo2_jax.cli.main import COMMANDS, main
from plamo2_jax.config_file import load_config
from plamo2_jax.project.templates import TEMPLATES, project_files

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def init(folder, *options, capsys):
    """Run `plamo2 init` and return what it printed."""
    capsys.readouterr()
    assert main(["init", str(folder), *options]) == 0
    return capsys.readouterr().out


def test_every_config_of_the_source_tree_is_in_one_template():
    named = [file for template in TEMPLATES.values() for file in template.files]
    assert len(named) == len(set(named))
    assert set(named) == {path.name for path in CONFIGS.iterdir() if path.suffix in (".py", ".yaml")}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_files_of_a_project_are_those_of_the_source_tree(name, tmp_path, capsys):
    printed = init(tmp_path / "mine", "--template", name, capsys=capsys)
    for file in TEMPLATES[name].files:
        ours = (CONFIGS / file).read_text(encoding="utf-8")
        theirs = (tmp_path / "mine" / "configs" / file).read_text(encoding="utf-8")
        assert str(tmp_path / "mine" / "configs" / file) in printed
        if file == "sft.py":  # It starts from the project's model.
            assert ours.count("runs/demo") == 1
            ours = ours.replace("runs/demo", "runs/base")
        assert theirs == ours


def test_a_project_needs_nothing_else(tmp_path, monkeypatch, capsys):
    """The pipeline of a new project can be planned, and `make` runs the commands that are printed."""
    monkeypatch.chdir(tmp_path)
    printed = init("mine", capsys=capsys)
    monkeypatch.chdir(tmp_path / "mine")
    makefile = Path("Makefile").read_text(encoding="utf-8").splitlines()
    assert len(makefile) == 5
    listed = subprocess.run(["make", "-n", "all", "check", "watch", "chat"], capture_output=True, text=True, check=True)
    commands = [shlex.split(line) for line in listed.stdout.splitlines() if line.startswith("plamo2")]
    assert [command[1] for command in commands] == ["pipeline", "config", "watch", "chat"]
    assert " ".join(commands[0]) in printed
    assert "mine/data/README.md describes" in printed
    assert main(commands[1][1:]) == 0
    assert "tokenizer, shards, pretrain, report" in capsys.readouterr().out
    # A user's folder of text needs no other change.
    Path("data/text/en").mkdir(parents=True)
    Path("data/text/en/a.txt").write_text("One document.", encoding="utf-8")
    pipeline = Path("configs/pipeline.py")
    source = pipeline.read_text(encoding="utf-8")
    pipeline.write_text(re.sub("^TEXT = .*", 'TEXT = "data/text"', source, flags=re.MULTILINE), encoding="utf-8")
    assert main(commands[1][1:]) == 0
    assert load_config(Path("configs/pretrain.py")).folder == Path(commands[2][2])
    assert load_config(Path("configs/pipeline.py"), name="pipeline").home == Path(commands[2][2])


def test_git_ignores_runs_and_data_but_not_the_hints(tmp_path, monkeypatch, capsys):
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    monkeypatch.chdir(tmp_path)
    # An empty folder, such as that of a new repository without files, may exist.
    Path("mine").mkdir()
    init("mine", capsys=capsys)
    monkeypatch.chdir("mine")
    for path in ("runs/base/config.json", "data/chat/train.jsonl"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}", encoding="utf-8")
    subprocess.run([git, "init", "--quiet"], check=True)
    others = subprocess.run(
        [git, "ls-files", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert set(others.stdout.split()) == set(project_files("start"))


def test_the_commands_in_the_hints_are_commands(tmp_path, capsys):
    init(tmp_path / "mine", capsys=capsys)
    text = (tmp_path / "mine" / "data" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    assert [words[0] for words in commands] == ["plamo2", "plamo2", "plamo2", "tail", "head", "plamo2"]
    assert all(words[1] in COMMANDS for words in commands if words[0] == "plamo2")
    assert 'TEXT = "' in (tmp_path / "mine" / "configs" / "pipeline.py").read_text(encoding="utf-8")


def test_the_printed_cd_works_with_a_space(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my project"]) == 0
    assert "cd 'my project' && make check" in capsys.readouterr().out


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("mine", encoding="utf-8")
    assert main(["init", str(tmp_path)]) == 2
    assert "it must not exist, or it must be empty" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.txt"]
