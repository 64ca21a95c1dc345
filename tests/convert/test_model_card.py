"""README.md of an export: metadata that the Hub reads, and what the run folder knows of the model."""

import json

import jax
import pytest
import yaml

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.convert.model_card import CardOptions, model_card
from plamo2_jax.model import Plamo2, init_params

CONFIG = preset("tiny", vocab_size=96, hidden_size=32, hidden_size_per_head=8, full_attention_idx=(3,))
RUN = {
    "name": "small|run",
    "model": CONFIG.to_json(),
    "task": {"kind": "sft"},
    "data": {
        "mixture": [{"path": "/home/someone/data/ja/train", "weight": 0.4}, {"path": "bundled:en", "weight": 0.6}],
        "batch_size": 8,
        "sequence_length": 512,
    },
    "init_from": "/home/someone/runs/base",
    "schedule": {"kind": "wsd", "learning_rate": 0.001},
    "optimizer": {"weight_decay": 0.1},
}
EVALUATION = {"languages": {"ja": {"bits_per_byte": 1.5, "accuracy": 0.25, "bytes": 9935}, "en": {"bits_per_byte": 2}}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RUN))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


def card(folder, options=None, **settings):
    known = {"step": 700, "newest": True, "with_code": False, "chat": False, "schemes": None}
    return model_card(folder, CONFIG, options or CardOptions(), **{**known, **settings}).decode()


def front_matter(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_of_a_training_run(run):
    options = CardOptions(base_model="pfnet/plamo-2-1b", license="apache-2.0")
    head, body = front_matter(card(run, options, with_code=True))
    assert head == {
        "license": "apache-2.0",
        "language": ["ja", "en"],
        "base_model": "pfnet/plamo-2-1b",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plamo2", "mamba", "hybrid", "jax", "arxiv:2509.04897"],
    }
    for row in (
        "| training | supervised fine-tuning |",
        "| started from | base |",
        "| steps | 700 |",
        "| batch | 8 rows of 512 tokens |",
        "| data | ja/train (0.4), bundled:en (0.6) |",
        "| learning rate | 0.001 (wsd) |",
        "| Japanese | 1.5000 | 0.2500 | 9,935 |",
        "| English | 2.0000 |  |  |",
    ):
        assert row in body
    assert "someone" not in body
    assert "AutoModelForCausalLM" in body


def test_without_statements_and_at_an_older_step(run):
    head, body = front_matter(card(run, newest=False, chat=True))
    assert not {"license", "base_model"} & head.keys()
    assert head["library_name"] == "plamo2-jax"
    assert "Evaluation" not in body
    assert "The licence of the weights is not specified." in body
    assert "plamo2 chat ." in body
    assert "trust_remote_code" not in body


def test_to_hf_writes_it(tmp_path, capsys):
    params = jax.jit(lambda key: init_params(Plamo2(CONFIG), key))(jax.random.key(0))
    checkpoint.save_model(tmp_path / "run", CONFIG, params)
    options = ["--license", "cc-by-4.0", "--languages", "ja", "--base-model", "someone/base"]
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out"), *options]) == 0
    head, body = front_matter((tmp_path / "out" / "README.md").read_text())
    assert (head["license"], head["language"], head["base_model"]) == ("cc-by-4.0", ["ja"], "someone/base")
    assert f"{CONFIG.parameter_count():,} parameters" in body
    for wrong in (["--license", "Apache: 2"], ["--languages", "japanese!"], ["--base-model", "a\nb: c"]):
        assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "other"), *wrong]) == 2
        assert f"{wrong[0]} " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
