"""What watches a run: times, goodput, traces, stalls."""

import time

import pytest

from plamo2_jax.train.goodput import Goodput
from plamo2_jax.train.loop import train
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.profiler import ProfileSteps
from plamo2_jax.train.step_clock import StepClock
from plamo2_jax.train.step_metrics import memory_in_use
from plamo2_jax.train.watchdog import StallWatchdog
from support.runs import stop_after


def test_the_log_tells_times_and_where_they_went(uninterrupted):
    config, _ = uninterrupted
    lines = [line for line in read_metrics(config.folder / "metrics.jsonl") if "loss" in line]
    assert all(line["step_seconds"] > 0 and line["skipped"] == 0 for line in lines)
    last = lines[-1]
    assert 0 < last["step_seconds_p50"] <= last["step_seconds_p90"] <= last["step_seconds_p99"]
    assert 0 <= last["data_wait"] <= 1
    assert 0 < last["goodput"] <= 1
    # Once a write of the log, which a checkpoint is too, and not once a line.
    assert ["goodput" in line for line in lines[:6]] == [False, False, True, True, False, True]


def test_percentiles_and_the_wait_for_data(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock()
    for number in range(10):
        with clock.data_wait():
            now[0] += 2.0
        now[0] += 48.0 if number == 9 else 1.0
        assert clock.step() == (50.0 if number == 9 else 3.0)
    figures = clock.figures()
    assert figures["step_seconds_p50"] == 3.0
    assert 40.0 < figures["step_seconds_p99"] < 50.0  # Between the two longest.
    assert figures["data_wait"] == pytest.approx(20 / 77)
    clock.restart()
    assert clock.figures()["data_wait"] == 0.0


def test_goodput_counts_from_the_first_start(tmp_path):
    Goodput(tmp_path)
    time.sleep(0.2)
    again = Goodput(tmp_path)
    assert 0 < again.share(0.1) <= 0.5
    (tmp_path / "goodput.json").write_text("{")
    assert Goodput(tmp_path).share(1.0) == 1.0


class Device:
    process_index = 0

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_memory_is_that_of_the_fullest_device():
    devices = [Device({"bytes_in_use": used, "peak_bytes_in_use": 2 * used}) for used in (3, 5)]
    assert memory_in_use(devices) == {"hbm_bytes": 5.0, "hbm_peak_bytes": 10.0}
    assert memory_in_use([Device(None)]) == {}


def test_a_trace_of_some_steps_is_written(make_config):
    config = make_config("traced", heldout={})
    train(config, profile=ProfileSteps.parse("2:3"), on_step=stop_after(4))
    traces = list((config.folder / "profile" / "plugins" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000


@pytest.mark.parametrize("text", ["10", "3:2", "0:1", "a:b", "1:2:3"])
def test_steps_to_trace_are_two_numbers(text):
    with pytest.raises(ValueError, match="FIRST:LAST"):
        ProfileSteps.parse(text)


def test_a_stall_is_told_once_with_all_stacks(tmp_path, capfd):
    """However slow the machine is: what hangs, hangs until it is told."""
    with StallWatchdog(tmp_path, 0.2) as watchdog:
        time.sleep(0.6)  # Compiling: no step was done yet.
        assert not (tmp_path / "stalls.txt").exists()
        where_it_hangs(watchdog, tmp_path, 1)
        time.sleep(0.6)
        assert told(tmp_path) == 1
        where_it_hangs(watchdog, tmp_path, 2)
    text = (tmp_path / "stalls.txt").read_text()
    assert "where_it_hangs" in text
    error = capfd.readouterr().err
    assert error.count("no step has finished for 0.2 s") == 2
    assert "where_it_hangs" in error


def where_it_hangs(watchdog, folder, stalls):
    watchdog.beat()
    deadline = time.monotonic() + 240
    while told(folder) < stalls:
        assert time.monotonic() < deadline, "no stall was told"
        time.sleep(0.01)


def told(folder):
    path = folder / "stalls.txt"
    return path.read_text().count("no step has finished for") if path.exists() else 0
