"""Worker processes give the results of one process, and end with a sentence, an interrupt, or their parent."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.data.documents import PartReport, ReadReport, TooManyBadRecordsError, UnreadableRecord
from plamo2_jax.data.workers import FEWEST_JOBS, ordered_map
from plamo2_jax.errors import PlamoError

SLEEP = """
import itertools, multiprocessing, time
from plamo2_jax.data.workers import ordered_map
for i, _ in enumerate(ordered_map(time.sleep, itertools.repeat(0.05), 2)):
    if i == 1:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def test_results_have_the_order_of_the_jobs_and_jobs_are_read_as_needed():
    read = itertools.count()
    results = ordered_map(math.sqrt, read, 2)
    assert [next(results) for _ in range(100)] == [math.sqrt(i) for i in range(100)]
    assert next(read) < 120
    results.close()


def test_an_error_is_raised_after_the_results_before_it():
    def jobs():
        yield from range(20)
        raise PlamoError("damaged")

    results, found = ordered_map(math.sqrt, jobs(), 2), []
    with pytest.raises(PlamoError, match="damaged"):
        found.extend(iter(lambda: next(results), None))
    assert found == [math.sqrt(i) for i in range(20)]
    # Of few jobs too, which need no processes.
    with pytest.raises(ValueError, match="math domain"):
        list(ordered_map(math.sqrt, [4, -1], 2))


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(PlamoError, match=r"a worker process was killed.*fewer --workers"):
        list(ordered_map(os._exit, [1] * FEWEST_JOBS, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = list(map(int, process.stdout.readline().split()))
    assert len(children) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # As a terminal does.
    else:
        process.kill()
    errors = process.communicate(timeout=60)[1]
    if number == signal.SIGINT:
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")
    end = time.monotonic() + 120
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_reports_of_parts_judge_as_one_report():
    error = UnreadableRecord("not JSON", "at line 1")
    whole, total = ReadReport(0.1, judge_after=10), ReadReport(0.1, judge_after=10)

    def read(report, records):
        for i in records:
            if i:
                report.count_bad(f"record {i}", error)
            else:
                report.records += 1

    def read_in_parts(records):
        for start in range(0, len(records), 4):
            part = PartReport()
            read(part, records[start : start + 4])
            total.add(part)

    records = [0, 2, 0, 0, *[0] * 20, 25, 26, 27, 0]
    with pytest.raises(TooManyBadRecordsError) as expected:
        read(whole, records)
    with pytest.raises(TooManyBadRecordsError) as found:
        read_in_parts(records)
    assert str(found.value) == str(expected.value)
    assert total == whole


def test_cleaning_and_scoring_give_the_same_bytes_with_workers(tmp_path, monkeypatch, capsys):
    import numpy as np

    from plamo2_jax.data.quality import BINS, QualityModel

    documents = list(itertools.islice(corpus.documents(split="heldout"), 60))
    lines = [json.dumps({**one, "text": one["text"][:2000] + f"\nFooter of the site {i}, all rights reserved"}).encode()
             for i, one in enumerate(documents)]  # fmt: skip
    lines[5:5] = [b"\xff", b'{"a": 1}', lines[2], b'{"text": "\\ud800"}', b'{"text": "short", "x": NaN}']
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join(lines[:40]) + b"\n")
    (tmp_path / "in" / "b.jsonl").write_bytes(b"\n".join(lines[30:]) + b"\n")
    (tmp_path / "in" / "c.txt").write_text(documents[0]["text"] * 2)
    weights = np.random.default_rng(0).normal(size=BINS).astype(np.float32)
    QualityModel(weights, 0.0, 30.0, 0.0, {}).save(tmp_path / "model")
    monkeypatch.setattr("plamo2_jax.data.chunks.CHUNK_RECORDS", 6)
    monkeypatch.chdir(tmp_path)
    bad = ["--max-bad-rate", "0.5"]
    clean = ["clean", "in", "out.jsonl", "--boilerplate-documents", "3", "--report", "report.json", *bad]
    found = []
    for workers in ("1", "2"):
        for command in (clean, ["score", "in", "scored.jsonl", "--model", "model", "--at-least", "0.4", *bad]):
            assert main(["data", *command, "--workers", workers]) == 0
        files = [(tmp_path / name).read_bytes() for name in ("out.jsonl", "scored.jsonl", "report.json")]
        found.append((capsys.readouterr(), files))
    assert found[0] == found[1]
    report = json.loads(found[0][1][2])
    assert report["reading"]["bad"] == 3
    assert report["cleaning"]["boilerplate_lines"] > 50
    assert report["cleaning"]["rejected"]["short"] == 1
    assert report["deduplication"]["exact"]["documents"] >= 10
    assert min(map(len, found[0][1])) > 500
