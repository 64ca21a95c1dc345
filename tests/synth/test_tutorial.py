"""docs/synthetic_data.md: its commands lead from documents to a trained model. The settings are smaller than those of the page."""

import json
import re
import shlex
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.synth.config import read_config

PAGE = (Path(__file__).parents[2] / "docs" / "synthetic_data.md").read_text(encoding="utf-8")
SMALLER = "--model.hidden-size 32 --model.num-hidden-layers 1 --model.intermediate-size 32 --model.mamba-num-heads 2 --steps 2 "
SMALLER += "--data.batch-size 8 --data.sequence-length 64 --data.packing-bins 8 --checkpoint-every 2 --dtype float32"


def block(name):
    return re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """A folder with the files of the page, documents, and an evaluation item that one of the documents has."""
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", "own.py", "own_sft.py", "model.yaml"):
        Path(name).write_text(block(name), encoding="utf-8")
    pages = list(corpus.documents("ja", "train"))[::40]
    Path("documents").mkdir()
    lines = [json.dumps({"id": page["id"], "text": page["text"]}, ensure_ascii=False) for page in pages]
    Path("documents/a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sentence = next(line for line in pages[0]["text"].splitlines() if len(line) > 60)
    Path("evaluation.jsonl").write_text(json.dumps({"text": sentence}), encoding="utf-8")
    return pages


def run(line):
    words = shlex.split(line.partition("  #")[0])
    assert words.pop(0) == "plamo2"
    assert main([*words, *(SMALLER.split() if words[0] in ("pretrain", "sft") else [])]) == 0, line


def test_the_commands_of_the_page_lead_to_a_trained_model(documents):
    for line in block("tutorial").replace("\\\n", " ").splitlines():
        run(line)
    report = json.loads(Path("runs/own_synth/report.json").read_text())
    assert report["generate"]["recipes"]["word_problems_ja"]["records"] == 500
    assert 0 < report["mix"]["synthetic_share"]["text"] <= 0.3
    assert report["mix"]["synthetic_share"]["messages"] == 1
    for name in ("own", "own_sft"):
        assert (Path("runs") / name / "checkpoints" / "2").is_dir()
    card = Path("runs/own_synth/records/README.md").read_bytes()
    # The workers of the page, one after another, find finished units.
    for line in block("workers").splitlines():
        run(line.removeprefix("wait; ").removesuffix(" &"))
    assert Path("runs/own_synth/records/README.md").read_bytes() == card


def test_the_config_with_a_model_is_read(documents):
    assert read_config(Path("model.yaml")).generator.price_completion == 0.4
