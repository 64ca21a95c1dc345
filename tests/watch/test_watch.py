"""`plamo2 watch`: what it shows of the files of runs and pipelines, and its alerts."""

import io
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from plamo2_jax.cli.main import main
from plamo2_jax.pipeline.state import Progress, Record, State
from plamo2_jax.storage import write_whole
from plamo2_jax.watch.alerts import alerts, duration, find_spike
from plamo2_jax.watch.lines import LineWriter
from plamo2_jax.watch.log_tail import LogTail
from plamo2_jax.watch.project import FolderWatch
from plamo2_jax.watch.screen import render, sparkline
from plamo2_jax.watch.status import RunWatch
from support.buckets import Bucket, mount
from support.terminal import CTRL_C, Terminal

PAGE = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
NOW = 1_700_000_000.0


def update(step, loss=3.0, **figures):
    """Return a line of metrics.jsonl. Two seconds pass between updates, and the newest of 100 is written at NOW."""
    return {
        "step": step,
        "time": NOW - 2.0 * (100 - step),
        "loss": loss,
        "skipped": 0.0,
        "step_seconds": 1.5,
        "tokens_per_second": 1234.5,
        "goodput": 0.75,
    } | figures


def write_run(folder, lines, steps=150, name="mine"):
    """Write the folder of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "steps": steps, "data": {}, "task": {"kind": "pretrain"}}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run after 100 of 150 steps, with held-out metrics and samples of two evaluations."""
    lines = [update(step, 4.0 - 0.01 * step) for step in range(1, 101)]
    lines.insert(50, {"step": 50, "time": NOW - 100, "heldout/ja/bits_per_byte": 2.0})
    lines.append({"step": 100, "time": NOW, "heldout/ja/bits_per_byte": 1.5})
    folder = write_run(tmp_path / "run", lines)
    samples = [{"step": step, "prompt": "山は?", "text": f"答え {step}\x1b[2J"} for step in (50, 100)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    return folder


def status_of(folder, now=NOW + 1):
    return RunWatch(folder).read(now)


def kinds(folder, now=NOW + 1):
    return [alert.kind for alert in alerts(status_of(folder, now))]


def printed(folder, capsys, *options):
    capsys.readouterr()
    assert main(["watch", str(folder), *options]) == 0
    return capsys.readouterr().out


def test_the_status_of_a_run(run):
    status = status_of(run)
    assert (status.name, status.kind, status.step, status.steps) == ("mine", "pretrain", 100, 150)
    assert status.seconds_per_step == pytest.approx(2.0)
    assert status.seconds_left == pytest.approx(100.0)
    assert status.age == pytest.approx(1.0)
    assert status.heldout == {"heldout/ja/bits_per_byte": (1.5, 2.0)}
    assert [sample.step for sample in status.samples] == [100]
    assert not status.complete
    assert kinds(run) == []


def test_a_pause_between_two_starts_does_not_count_as_speed(run):
    lines = [update(step) for step in range(1, 101)]
    for line in lines[:50]:
        line["time"] -= 10_000
    write_run(run, lines)
    assert status_of(run).seconds_per_step == pytest.approx(2.0)


def test_the_page_shows_the_figures_without_control_characters(run):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(FolderWatch(run).read(), 120))
    text = console.export_text()
    for part in (
        "mine (pretrain)",
        "100 of 150 (67%)",
        "3.0000",
        "1,234",
        "75.0%",
        "1.5000  (-0.5000)",
        "山は?",
        "答え 100",
        "GB free",
    ):
        assert part in text
    assert "\x1b" not in text
    assert re.search(r"│ step +100 of", text)
    # The run of the test was written long ago.
    assert "no new step for" in text


def test_a_line_for_each_change_and_none_without(run):
    watch, writer = FolderWatch(run), LineWriter(False, 120)
    first = list(writer.lines(watch.read()))
    assert len(first) == 2
    assert re.search(r"mine: step 100/150 \(67%\), loss 3\.0000, tokens/s 1,234, goodput 75\.0%, heldout/ja", first[0])
    assert "alert: no new step" in first[1]
    assert list(writer.lines(watch.read())) == []
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(update(101, time=time.time())) + "\n" + '{"step": 102, "lo')
    (line,) = writer.lines(watch.read())
    assert "step 101/150" in line


def test_json_has_one_object_per_line(run, capsys):
    (line,) = printed(run, capsys, "--once", "--log-format", "json").splitlines()
    value = json.loads(line)
    assert (value["run"], value["step"], value["steps"], value["complete"]) == ("mine", 100, 150, False)
    assert value["metrics"]["tokens_per_second"] == 1234.5
    assert "no new step" in value["alerts"][0]


def test_a_log_is_read_from_where_it_was_left_and_again_when_it_is_replaced(run):
    tail = LogTail(run)
    assert len(tail.read()) == 102
    path = run / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write("not json\n[]\n" + json.dumps(update(101)) + "\n")
    assert [line["step"] for line in tail.read()][-2:] == [100, 101]
    # A run that resumes from step 40 replaces the file.
    write_whole(path, "".join(json.dumps(update(step)) + "\n" for step in range(1, 41)).encode())
    assert [line["step"] for line in tail.read()] == list(range(1, 41))


def test_only_the_end_of_a_long_log_is_read(run, monkeypatch):
    monkeypatch.setattr("plamo2_jax.watch.log_tail._FIRST_BYTES", 2000)
    lines = LogTail(run).read()
    assert 5 < len(lines) < 20
    assert lines[-1]["heldout/ja/bits_per_byte"] == 1.5


def test_alerts(run):
    def lines(**figures):
        return [update(step) for step in range(1, 100)] + [update(100, **figures)]

    assert kinds(run, NOW + 300) == ["stopped"]
    (run / "stalls.txt").write_text("stacks", encoding="utf-8")
    assert kinds(run) == ["stalled"]
    os.utime(run / "stalls.txt", (NOW - 50, NOW - 50))
    assert kinds(run) == []  # It has made steps since.
    write_run(run, lines(loss=5.0))
    assert kinds(run) == ["spike"]
    write_run(run, lines(data_wait=0.4))
    assert kinds(run) == ["data"]
    write_run(run, [*lines(), {"step": 101, "time": NOW + 1, "skipped": 1.0}])
    assert kinds(run) == ["skipped"]
    assert status_of(run).step == 101


def test_a_full_disk_is_an_alert(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**8))
    assert kinds(run) == ["disk"]


def test_noise_and_a_slow_fall_are_no_spikes():
    noisy = [3.0 + 0.3 * ((7 * step) % 11 - 5) / 5 for step in range(300)]
    assert find_spike(noisy) is None
    assert find_spike([10 / (1 + step) for step in range(300)]) is None
    assert find_spike([*noisy, 9.0, 3.0]) == (9.0, pytest.approx(3.0, abs=0.1))
    assert find_spike([3.0] * 10 + [9.0]) is None  # Too few losses to compare with.


def test_a_folder_of_runs_shows_the_newest_first(run):
    write_run(run.parent / "older", [update(step) for step in range(1, 51)], name="older")
    snapshot = FolderWatch(run.parent).read()
    assert (snapshot.run.name, [other.name for other in snapshot.others]) == ("mine", ["older"])


def test_a_run_that_is_removed_does_not_end_the_others(run):
    write_run(run.parent / "older", [update(1)], name="older")
    watch = FolderWatch(run.parent)
    assert len(watch.read().others) == 1
    shutil.rmtree(run.parent / "older")
    snapshot = watch.read()
    assert (snapshot.run.name, snapshot.others) == ("mine", [])


def test_the_stages_of_a_pipeline(run, capsys):
    state = State(run)
    state.write("tokenizer", Record({}, outputs={}, seconds=3.0))
    state.write("pretrain", Record({}))
    snapshot = FolderWatch(run).read()
    found = [(stage.name, stage.status) for stage in snapshot.stages]
    assert found == [("tokenizer", "finished"), ("pretrain", "started")]
    text = printed(run, capsys, "--once")
    assert "stage tokenizer: finished in 3 s" in text
    assert "stage pretrain: started" in text
    assert not snapshot.complete
    progress = {
        name: Progress([], name, status, 7.0) for name, status in {"tokenizer": "done", "pretrain": "failed"}.items()
    }
    state.write_progress(progress)
    assert "stage pretrain: failed after 7 s" in printed(run, capsys, "--once")
    assert FolderWatch(run).read().stages[1].status == "failed"


def test_bits_per_byte_of_each_set_come_first(run, capsys):
    """A line of the log has room for six values."""
    names = [
        f"heldout/{language}/{name}"
        for language in ("ja", "en")
        for name in ("bytes", "nats", "tokens", "bits_per_byte")
    ]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 100, "time": 1.0, **dict.fromkeys(names, 2.0)}) + "\n")
    assert list(status_of(run).heldout)[:2] == ["heldout/ja/bits_per_byte", "heldout/en/bits_per_byte"]
    assert "heldout/en/bits_per_byte 2.0000" in printed(run, capsys, "--once")


def test_a_run_in_a_bucket(tmp_path, monkeypatch, capsys):
    mount(Bucket(tmp_path), monkeypatch)
    folder = write_run(tmp_path / "bucket" / "runs" / "mine", [update(step) for step in range(1, 101)])
    watch = FolderWatch("gs://bucket/runs/mine")
    run = watch.read().run
    assert (run.folder, run.step, run.free_bytes) == ("gs://bucket/runs/mine", 100, None)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(update(101)) + "\n")
    (folder / "checkpoints" / "101").mkdir(parents=True)
    assert (watch.read().run.step, list(watch.read().run.checkpoints)) == (101, [101])
    assert "mine: step 101/150" in printed("gs://bucket/runs/mine", capsys, "--once")


def test_watching_ends_when_the_run_is_complete(run, capsys):
    write_run(run, [update(step) for step in range(1, 101)], steps=100)
    assert not status_of(run).complete
    (run / "checkpoints" / "100" / "params").mkdir(parents=True)
    assert "complete" in printed(run, capsys)


def test_the_table_on_a_terminal_ends_with_ctrl_c(run):
    terminal = Terminal("watch", run, "--every", "0.2", folder=run.parent, kind="xterm")
    try:
        terminal.wait("mine .pretrain.")
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder: give a run folder"),
        (["."], "has no run and no pipeline"),
        (["run", "--every", "0"], "--every 0.0 is not allowed: it must be positive"),
        (["run", "--stall-seconds", "nan"], "--stall-seconds nan is not allowed"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_commands_of_the_page_run(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    Path("runs").mkdir()
    run.rename("runs/base")
    write_run(Path("runs/base"), [update(step) for step in range(1, 101)], steps=100)
    (Path("runs/base/checkpoints/100/params")).mkdir(parents=True)
    block = re.search(r"<!-- watch -->\n```sh\n(.*?)```", PAGE, re.DOTALL).group(1)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) == 4
    for words in lines:
        assert main(words[1:]) == 0
    assert "complete" in capsys.readouterr().out


def test_durations_and_curves_are_short():
    texts = [duration(seconds) for seconds in (5, 89, 300, 7500, 200_000)]
    assert texts == ["5 s", "89 s", "5 min", "2 h 05 min", "2.3 days"]
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([2.0] * 100) == "▁" * 40
