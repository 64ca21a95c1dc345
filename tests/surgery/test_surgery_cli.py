"""grow and prune from the command line: what they write can be read, trained from and grown again; what they refuse leaves nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from plamo2_jax.checkpoint import save_model
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.documents import Document
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.surgery.shapes import read_shape
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loop import train
from plamo2_jax.train.pretraining import Pretrain
from support.models import TIED, difference, logits, make_params

CONFIG = dataclasses.replace(TIED, vocab_size=272, pad_token_id=3)
SMALLER = ("hidden_size=12", "intermediate_size=8", "mamba_num_heads=2", "num_attention_heads=2", "num_hidden_layers=2")


def options(changes):
    return [part for change in changes for part in ("--set", change)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run folder `model` with a tokenizer of bytes, and shards `data`."""
    home = tmp_path_factory.mktemp("surgery")
    rows = [[UNK, 0.0, "UNKNOWN"], *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD))]
    tokenizer = Tokenizer.from_rows([*rows, *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256))])
    save_model(home / "model", CONFIG, make_params(CONFIG), tokenizer)
    texts = [f"document {i} of {'many ' * i}" for i in range(20)]
    write_shards([Document(text, str(i), {}) for i, text in enumerate(texts)], tokenizer, home / "data", progress=False)
    return home


@pytest.fixture(scope="module")
def pruned(home):
    argv = ["prune", str(home / "model"), str(home / "model"), str(home / "pruned"), *options(SMALLER)]
    argv += ["--calibration", str(home / "data"), "--batches", "2", "--batch-size", "2", "--sequence-length", "32"]
    assert main(argv) == 0
    return home / "pruned"


@pytest.mark.parametrize("method", ["clone", "zero"])
def test_a_grown_model_computes_the_same_and_generates(home, method, capsys):
    changes = ("hidden_size=40", "num_hidden_layers=6", "mamba_d_state=9")
    grown = home / f"grown-{method}"
    (home / "model" / "chat_template.jinja").write_text("{{ messages }}")
    argv = ["grow", str(home / "model"), str(home / "model"), str(grown), "--method", method, *options(changes)]
    assert main(argv) == 0
    assert "parameters" in capsys.readouterr().out
    assert (grown / "chat_template.jinja").read_text() == "{{ messages }}"
    small, large = load_model(home / "model"), load_model(grown)
    assert (large.config.hidden_size, large.config.num_hidden_layers, large.config.mamba_d_state) == (40, 6, 9)
    assert difference(logits(large.config, large.params), logits(small.config, small.params)) < 1e-5
    argv = ["generate", str(grown), "--prompt", "doc", "--max-new-tokens", "3", "--temperature", "0", "--json"]
    assert main(argv) == 0
    assert '"token_ids"' in capsys.readouterr().out


def test_a_pruned_model_generates_and_trains(home, pruned, capsys):
    loaded = load_model(pruned)
    assert (loaded.config.hidden_size, loaded.config.num_hidden_layers) == (12, 2)
    argv = ["generate", str(pruned), "--prompt", "doc", "--max-new-tokens", "3", "--json"]
    assert main(argv) == 0
    assert '"token_ids"' in capsys.readouterr().out
    config = RunConfig(
        name="after",
        model=loaded.config,
        tokenizer=pruned / "tokenizer.jsonl",
        data=DataConfig((MixtureItem(home / "data"),), sequence_length=32, batch_size=2, packing_bins=4),
        steps=1,
        task=Pretrain(),
        output=home / "runs",
        init_from=pruned,
        dtype="float32",
    )
    # A learning rate of zero at the first step of the warm-up: what is saved is what was read.
    assert train(config).step == 1
    saved = load_model(config.folder).params
    distance = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), saved, loaded.params)
    assert max(jax.tree.leaves(distance)) < 1e-2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["grow", "MODEL", "MODEL", "OUT", "--set", "hidden_size=8"], "growing cannot shrink it"),
        (["grow", "MODEL", "plamo-9", "OUT"], "plamo-9 is not a model shape"),
        (["grow", "MODEL", "MODEL", "OUT", "--set", "hidden=8"], "must be FIELD=VALUE"),
        (["grow", "MODEL", "MODEL", "OUT", "--noise", "-1"], "--noise -1.0 is not allowed"),
        (["grow", "MODEL", "MODEL", "OUT", "--seed", "-1"], "--seed -1 is not allowed: it must be at least 0"),
        (
            ["prune", "MODEL", "MODEL", "OUT", "--plan", "--max-parameters", "1e4", "--max-flops", "1e4"],
            "--max-parameters and --max-flops are not allowed together",
        ),
        (["grow", "MODEL", "MODEL", "OUT", "--noise", "nan"], "--noise nan is not allowed"),
        (["grow", "MODEL", "MODEL", "OUT", "--set", "rope_theta=5.0"], "rope_theta is not a size"),
        (["prune", "MODEL", "MODEL", "OUT", "--set", "attention_window_size=8"], "use plamo2 extend"),
        (["prune", "MODEL", "plamo-2-1b", "OUT"], "vocab_size is 272 and would be 100000"),
        (["prune", "MODEL", "MODEL", "OUT", "--set", "hidden_size=12"], "--calibration is missing"),
        (["prune", "MODEL", "MODEL", "OUT", "--set", "hidden_size=64"], "must not be larger"),
        (["prune", "MODEL", "MODEL", "OUT", "--calibration", "nowhere", "--set", "hidden_size=12"], "nowhere"),
        (["prune", "MODEL", "MODEL", "OUT", "--max-parameters", "10"], "fits a budget of 10"),
        (["prune", "MODEL", "MODEL", "MODEL", "--calibration", "DATA"], "already exists"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(home, tmp_path, capsys, argv, message):
    names = {"MODEL": str(home / "model"), "OUT": str(tmp_path / "out"), "DATA": str(home / "data")}
    assert main([names.get(argument, argument) for argument in argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_plans_need_no_weights(tmp_path, capsys):
    argv = ["prune", "plamo-2.1-8b", "plamo-2.1-2b", str(tmp_path / "out"), "--plan", "--multiple-of", "128"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "9,118,503,936  2,454,012,928" in printed
    assert main(["grow", "plamo-2.1-8b", "plamo-2-31b", str(tmp_path / "out"), "--plan"]) == 0
    assert "30,786,887,680" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_only_sizes_of_a_target_count(capsys, tmp_path):
    """The 31B has a window of 2048, and keeps it when it is cut to the sizes of a model that has another."""
    from plamo2_jax.surgery.shapes import with_sizes

    cut = with_sizes(read_shape("plamo-2-31b"), read_shape("plamo-2.1-8b"))
    assert (cut.hidden_size, cut.attention_window_size, cut.rope_theta) == (4096, 2048, 10000.0)
