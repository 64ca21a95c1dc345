"""The log of a run, and the figures in it."""

import math
import subprocess

import pytest

from plamo2_jax.config import preset
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.flops import model_flops_utilization
from plamo2_jax.train.metrics import MetricsLog, read_metrics, step_figures


def steps(folder):
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def test_going_on_drops_later_lines_only(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"loss": 1 / step})
    before = read_metrics(tmp_path / "metrics.jsonl")
    with MetricsLog(tmp_path, 3) as log:
        log.write(4, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert read_metrics(tmp_path / "metrics.jsonl")[:3] == before[:3]


def test_starting_over_starts_an_empty_log(tmp_path):
    for _ in range(2):
        with MetricsLog(tmp_path) as log:
            log.write(1, {"loss": 1.0})
    assert steps(tmp_path) == [1]


def fill(folder):
    with MetricsLog(folder) as log:
        for step in range(1000):
            log.write(step, {"loss": 1.0})
        log.flush()


def test_a_full_disk_is_one_sentence_also_of_tensorboards_thread(tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(OSError, match="disk could not be written: the disk is full"):
            fill(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_flushed_can_be_read_at_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0})
        log.flush()
        assert steps(tmp_path) == [1]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2,"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_figures_of_a_step():
    sums = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "weight": 8.0, "z_loss": 4.0}
    sums |= {"nats": 16.0, "tokens": 8.0, "bytes": 32.0, "correct": 2.0, "margin": 24.0}
    # Three of the eight are of one kind, none of another.
    sums |= {"processed": 20.0}
    sums |= {"reward": 6.0, "threes": 3.0, "nothing": 0.0, "none": 0.0}
    assert step_figures(sums, {"reward": "threes", "nothing": "none", "absent": "threes"}) == {
        "loss": 2.5,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "bits_per_byte": pytest.approx(0.5 / math.log(2)),
        "nats_per_token": 2.0,
        "accuracy": 0.25,
        "tokens": 20.0,
        "margin": 3.0,
        "reward": 2.0,
        "z_loss": 0.5,
    }


def test_utilization_is_three_forward_passes_over_the_peak():
    config = preset("plamo-2-1b")
    flops = 3 * config.flops_per_token(4096)
    rate = 0.4 * 4 * 459e12 / flops
    assert model_flops_utilization(config, 4096, rate, "TPU v5p", 4) == pytest.approx(0.4)
    assert model_flops_utilization(config, 4096, rate, "TPU v5p", 4, [config]) == pytest.approx(0.4 * 4 / 3)
    assert model_flops_utilization(config, 4096, rate, "cpu", 4) is None


def test_only_the_named_writers_get_the_metrics(tmp_path):
    with MetricsLog(tmp_path, writers=()) as log:
        log.write(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        PlamoError,
        match=r"^logging metrics to wandb needs the package wandb: install .* as in pip install '\.\[wandb\]'$",
    ):
        MetricsLog(tmp_path, writers=("wandb",))
