"""Progress bars: plain lines in a log, tqdm's bars on a terminal."""

import io
import sys
import time
from pathlib import Path

import pytest
from tqdm import std

from plamo2_jax import progress


class Terminal(io.StringIO):
    """A stand-in for standard error on a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def log(monkeypatch, capsys):
    """Reads standard error, which is no terminal in tests; lines come in quick succession."""
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    return lambda: capsys.readouterr().err


def test_a_log_gets_whole_lines_with_the_state(log):
    for _ in progress.tqdm(range(8), desc="steps", unit="step"):
        time.sleep(0.03)
    text = log()
    assert "\r" not in text
    lines = text.splitlines()
    assert 2 <= len(lines) <= 6
    assert all(line.startswith("steps: ") and " elapsed" in line for line in lines)
    assert lines[-1].startswith("steps: 8/8 step (100 %), ")


def test_without_a_total_a_line_has_no_share(log):
    with progress.tqdm(desc="read", unit="B", unit_scale=True) as bar:
        time.sleep(0.06)
        bar.update(12_000)
        bar.set_postfix(files=3)
    (line,) = log().splitlines()
    assert line.startswith("read: 12.0k B, ")
    assert "%" not in line


def test_frequent_refreshes_print_no_more_lines(log):
    with progress.tqdm(desc="training", bar_format="{desc}: {elapsed}") as bar:
        for _ in range(20):
            bar.refresh()
            time.sleep(0.01)
    lines = log().splitlines()
    assert 1 <= len(lines) <= 5
    assert lines[0] == "training: 00:00"


def test_what_is_over_soon_prints_nothing(log):
    with progress.tqdm(total=3, desc="quick") as bar:
        bar.update(3)
    with progress.tqdm(total=3, desc="off", disable=True) as bar:
        time.sleep(0.06)
        bar.update(3)
    assert log() == ""


def test_other_text_goes_between_the_lines(log):
    with progress.tqdm(total=2, desc="outer") as bar:
        time.sleep(0.06)
        bar.update()
        progress.tqdm.write("text", file=sys.stderr)
        bar.update()
    assert [line.split(",")[0] for line in log().splitlines()] == [
        "outer: 1/2 it (50 %)",
        "text",
        "outer: 2/2 it (100 %)",
    ]


def test_a_terminal_gets_the_bars_of_tqdm():
    def shown(kind):
        terminal = Terminal()
        with kind(total=2, desc="bar", file=terminal, mininterval=0, bar_format="{desc}: {n_fmt}/{total_fmt}") as bar:
            bar.update()
            bar.update()
        return terminal.getvalue()

    assert shown(progress.tqdm) == shown(std.tqdm)
    assert "\rbar: 2/2" in shown(progress.tqdm)


def test_every_bar_of_the_package_is_one_of_these():
    source = Path(progress.__file__).parent
    others = [path for path in source.rglob("*.py") if "from tqdm" in path.read_text(encoding="utf-8")]
    assert others == [source / "progress.py"]
