"""`plamo2 quickstart`, with a smaller model and fewer conversations than those of the package, and the commands of docs/quickstart.md."""

import re
import shlex
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.config_file import load_config
from plamo2_jax.project import templates

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
SMALLER = {
    "quickstart.py": {
        "hidden_size=128": "hidden_size=32",
        "num_hidden_layers=2": "num_hidden_layers=1",
        "intermediate_size=256": "intermediate_size=32",
        "vocab_size=2048": "vocab_size=1800",
        "steps=400": "steps=2",
        "checkpoint_every=400": "checkpoint_every=2",
        "sequence_length=256": "sequence_length=64",
    },
    "pipeline_quickstart.py": {
        "bundled:all:train --sample-bytes 1000000 --vocab-size 2048": "bundled:all:heldout --sample-bytes 200000 --vocab-size 1800",
        "data instructions": "data instructions --limit 64",
    },
}


def commands(name):
    """Return the commands of a block of the page, as words."""
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", PAGE, re.DOTALL).group(1)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture
def smaller(tmp_path, monkeypatch):
    """A working folder, for which the configs of the package are smaller."""
    configs = tmp_path / "configs of the package"
    configs.mkdir()
    for name, changes in SMALLER.items():
        text = (ROOT / "configs" / name).read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (configs / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(templates, "config_folder", lambda: configs)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_without_a_terminal_it_prints_two_answers_and_the_command_to_chat(smaller, capsys):
    run, init = commands("quickstart")
    assert main(run[1:]) == 0
    first = capsys.readouterr()
    assert "plamo2 tokenizer train" in first.err
    assert "After only 2 steps, the quality is low" in first.err
    assert "Next step: `plamo2 init my-model`" in first.err
    assert "[1/2] 表計算ドキュメントとは何ですか。\n" in first.out
    assert "[2/2] What is a spreadsheet?\n" in first.out
    chat = shlex.split(first.out.splitlines()[-1].removeprefix("Talk to the model: "))
    assert chat[:2] == ["plamo2", "chat"]
    assert (Path(chat[2]) / "checkpoints" / "2").is_dir()
    # The second call trains nothing.
    assert main([*run[1:], "--no-chat"]) == 0
    second = capsys.readouterr()
    assert "compil" not in second.err.replace("including compilation", "")
    assert second.out.count("skipped") == 3
    assert second.out.splitlines()[-1] == first.out.splitlines()[-1]
    assert init == ["plamo2", "init", "my-model"]  # tests/project/test_init.py runs it.


def test_the_project_of_the_page_is_what_init_writes():
    init, cd, *makes = commands("project")
    assert init == ["plamo2", "init", cd[1]]
    assert makes == [["make", "check"], ["make"]]
    files = templates.project_files("start")
    for name in re.findall(r"`((?:configs|data)/[\w./]+|Makefile)`", PAGE):
        assert name in files
    assert re.findall(r"^(\w+): ;", files["Makefile"], re.MULTILINE) == ["all", "check", "watch", "chat"]
    for target in re.findall(r"`make (\w+)`", PAGE):
        assert f"\n{target}: ;" in files["Makefile"]


def test_the_page_describes_the_model():
    model = load_config(ROOT / "configs" / "quickstart.py").model
    assert f"{model.parameter_count() / 1e6:.1f} million parameters" in PAGE
    assert f"{model.vocab_size:,} tokens" in PAGE
