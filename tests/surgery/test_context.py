"""Opening attention: the same function where nothing is cut off, and what is refused."""

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.packing import Pieces
from plamo2_jax.data.upsampling import UpsampledPieces
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.surgery.extend import Stage, extended_config, stages

ROOT = Path(__file__).parents[2]
CONFIG = preset(
    "tiny",
    hidden_size=32,
    num_hidden_layers=6,
    intermediate_size=32,
    hidden_size_per_head=8,
    mamba_num_heads=4,
    mamba_d_state=8,
    attention_window_size=12,
    vocab_size=64,
    initializer_range=0.1,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run folder, tokens, and the logits of the first 12 and of all of them."""
    folder = tmp_path_factory.mktemp("extend") / "model"
    model = Plamo2(CONFIG)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    checkpoint.save_model(folder, CONFIG, params)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    return folder, tokens, np.asarray(jax.jit(model.apply)({"params": params}, tokens)[0])


@pytest.mark.parametrize("options", [["--full-attention", "3"], ["--full-attention", "all"], ["--window", "30"]])
def test_what_the_old_window_held_is_said_as_before(model, tmp_path, options):
    folder, tokens, before = model
    assert main(["extend", str(folder), str(tmp_path / "out"), *options]) == 0
    extended = load_model(tmp_path / "out")
    after, _ = jax.jit(Plamo2(extended.config).apply)({"params": extended.params}, tokens)
    np.testing.assert_allclose(after[:, :13], before[:, :13], atol=2e-5)
    assert np.max(np.abs(after[:, 20:] - before[:, 20:])) > 1e-3
    # The runs are others where one layer of three is full.
    assert (len(extended.config.layer_groups) > len(CONFIG.layer_groups)) == (options == ["--full-attention", "3"])


def test_a_window_that_held_the_row_makes_no_difference(model, tmp_path):
    folder, tokens, _ = model
    wide = dataclasses.replace(CONFIG, attention_window_size=40)
    params = load_model(folder).params
    checkpoint.save_model(tmp_path / "wide", wide, params)
    assert main(["extend", str(tmp_path / "wide"), str(tmp_path / "out"), "--full-attention", "1,5"]) == 0
    extended = load_model(tmp_path / "out")
    expected, _ = jax.jit(Plamo2(wide).apply)({"params": params}, tokens)
    actual, _ = jax.jit(Plamo2(extended.config).apply)({"params": extended.params}, tokens)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_bases():
    both = extended_config(CONFIG, full_attention="all", rope_theta=1e6)
    assert (both.rope_theta, both.rope_local_theta, both.full_attention_idx) == (1e6, None, (1, 3, 5))
    some = extended_config(CONFIG, full_attention=(3,), rope_theta=1e6)
    assert (some.rope_theta, some.local_theta) == (1e6, 1e4)
    windowed = extended_config(CONFIG, window=100, rope_theta=1e6)
    assert windowed.local_theta == 1e6
    local = dataclasses.replace(CONFIG, rope_local_theta=1e5)
    assert extended_config(local, window=100, rope_theta=1e6).local_theta == 1e6
    assert extended_config(local, full_attention=(3,), rope_theta=1e6).local_theta == 1e5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "4"], "it must be at least the model's window, 12"),
        (["--full-attention", "2"], "a subset of the attention layers [1, 3, 5]"),
        (["--full-attention", "some"], "all, none or layer numbers"),
        (["--rope-theta", "-1"], "rope_theta=-1.0 is not allowed"),
        (["--full-attention", "²"], "all, none or layer numbers"),
        (
            ["--full-attention", "all", "--window", "100"],
            "--window 100 has no effect: every layer with attention has full",
        ),
        ([], "there is nothing to change"),
        (["--window", "12"], "there is nothing to change"),
    ],
)
def test_refusals(model, tmp_path, capsys, options, message):
    assert main(["extend", str(model[0]), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_layer_may_not_change_its_base_unsaid():
    two = dataclasses.replace(CONFIG, rope_theta=1e6, rope_local_theta=1e4, full_attention_idx=(1,))
    with pytest.raises(ValueError, match=r"layers \[3, 5\] use rope_local_theta=10000.0"):
        extended_config(two, full_attention="all")
    with pytest.raises(ValueError, match=r"must include layers \[1\]"):
        extended_config(two, full_attention=(3,))


def test_stages_grow_by_a_fixed_factor():
    found = stages(Stage(2048, 2048, 1e4), Stage(32768, 32768, 1e6), 2)
    assert found == [Stage(8192, 8192, 1e5), Stage(32768, 32768, 1e6)]
    assert len(stages(Stage(2048, 2048, 1e4), Stage(2048, 4096, 1e4), 3)) == 3
    with pytest.raises(ValueError, match="at least as long"):
        stages(Stage(10, 10, 1.0), Stage(5, 10, 1.0), 1)


def test_the_config_of_the_move_holds_together(monkeypatch):
    for number, length in ((1, 4096 + 1024), (3, 32768)):
        monkeypatch.setenv("STAGE", str(number))
        config = runpy.run_path(str(ROOT / "configs" / "extend_32k.py"))["config"]
        assert config.data.sequence_length >= length - 1024
        assert config.data.long_document_tokens == config.data.sequence_length // 2
        assert config.model.full_attention_idx == tuple(range(1, 32, 2))


class FakeShards:
    lengths = np.array([3, 10, 25], np.uint32)
    tokens, documents = 38, 3

    def __getitem__(self, index):
        return type("Document", (), {"ids": np.full(self.lengths[index], index)})


def test_long_documents_are_read_more_often():
    pieces = UpsampledPieces(Pieces(FakeShards(), 8, 1, 2), long_tokens=10, repeats=3)
    # 4, 11 and 26 targets in rows of 8: 1, 2 and 4 pieces.
    assert len(pieces) == 1 + 3 * 2 + 3 * 4
    assert pieces.targets == 4 + 3 * 11 + 3 * 26
    assert sum(len(pieces[i]["targets"]) for i in range(len(pieces))) == pieces.targets
