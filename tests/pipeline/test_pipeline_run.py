"""Which stages of a pipeline run and which are skipped: real stages, in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from plamo2_jax.cli.main import main
from plamo2_jax.pipeline.state import State
from support.pipelines import CONFIG, OUTPUTS, STAGES, write, write_trained


def contents():
    """Return the content and modification time of all files."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_finished_stages_are_skipped(small, run, plan):
    assert plan() == {
        "books": "to run (new)",
        "vocabulary": "to run (follows from books)",
        "shards": "to run (follows from books)",
        "ids": "to run (follows from vocabulary)",
    }
    assert [path.name for path in small.iterdir()] == ["p.py"]
    assert list(run()) == list(STAGES)
    before = contents()
    assert set(plan().values()) == {"finished"}
    assert run() == {}
    lock = Path("runs/.pipeline/.lock")
    assert {path: file for path, file in contents().items() if path != lock} == {
        path: file for path, file in before.items() if path != lock
    }


def test_a_change_reruns_what_depends_on_it_and_nothing_else(finished, run, plan):
    write({**STAGES, "shards": STAGES["shards"] + " --tokens-per-shard 500"}, OUTPUTS)
    assert plan()["shards"] == "to run (its command changed)"
    assert run() == {"shards": "its command changed"}
    write({**STAGES, "books": STAGES["books"] + " --seed 3"}, OUTPUTS)
    why = run()
    assert why["books"] == "its command changed"
    assert why["vocabulary"] == "input runs/books.jsonl changed"


def test_outputs_that_are_gone_or_changed_are_made_again_and_stages_with_equal_inputs_are_not(finished, run, plan):
    ids = Path("runs/ids.txt").read_text()
    Path("runs/ids.txt").write_text("1\n")
    Path("runs/books.jsonl").unlink()
    assert plan() == {
        "books": "to run (output runs/books.jsonl is missing)",
        "vocabulary": "to run (follows from books)",
        "shards": "to run (follows from books)",
        "ids": "to run (follows from vocabulary)",
    }
    # The phonebooks come out unchanged, so the stages that read them are skipped.
    assert run() == {"books": "output runs/books.jsonl is missing", "ids": "output runs/ids.txt changed"}
    assert Path("runs/ids.txt").read_text() == ids
    assert Path("runs/.pipeline/stale/ids/ids.txt").read_text() == "1\n"


def test_touching_is_not_changing(finished, run):
    for path in ("runs/books.jsonl", "runs/tokenizer.jsonl"):
        os.utime(path, (1, 1))
    Path("runs/mine.txt").touch()
    assert run() == {}


def test_a_file_of_the_users_is_an_input_by_its_content(folder, run, plan):
    Path("text").mkdir()
    Path("text/a.txt").write_text("one two three " * 40)
    stages = {"vocabulary": "tokenizer train --input text/a.txt --vocab-size 274 --output runs/tokenizer.jsonl"}
    write(stages, OUTPUTS, {"vocabulary": ("text/a.txt",)})
    assert run() == {"vocabulary": "new"}
    os.utime("text/a.txt")
    assert plan() == {"vocabulary": "finished"}
    Path("text/a.txt").write_text("one two tree " * 40)
    assert plan() == {"vocabulary": "to run (input text/a.txt changed)"}


def test_logs_of_a_run_are_no_inputs(folder, run, plan):
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    Path("base/a.txt").write_text("one two three " * 40)
    stages = {"vocabulary": "tokenizer train --input base/a.txt --vocab-size 274 --output runs/tokenizer.jsonl"}
    write(stages, OUTPUTS, {"vocabulary": ("base",)})
    assert run() == {"vocabulary": "new"}
    for name in ("metrics.jsonl", "goodput.json", ".lock", "report.html"):
        Path("base", name).touch()
    assert plan() == {"vocabulary": "finished"}
    Path("base/b.txt").touch()
    assert plan() == {"vocabulary": "to run (input base changed)"}


def test_the_files_of_a_pattern_are_inputs_at_any_depth(folder, run, plan):
    Path("text/deep/er").mkdir(parents=True)
    Path("text/deep/er/a.txt").write_text("one two three " * 40)
    stages = {"vocabulary": "tokenizer train --input 'text/**/*.txt' --vocab-size 274 --output runs/tokenizer.jsonl"}
    write(stages, OUTPUTS, {"vocabulary": ("text/**/*.txt",)})
    assert run() == {"vocabulary": "new"}
    Path("text/deep/er/b.txt").write_text("one two tree " * 40)
    assert plan() == {"vocabulary": "to run (input text/**/*.txt changed)"}


def test_only_what_is_asked_for(small, run, plan):
    assert list(run("--until", "vocabulary")) == ["books", "vocabulary"]
    assert plan()["shards"] == "to run (new)"
    assert run("--until", "ids", "--force", "vocabulary") == {"vocabulary": "forced", "ids": "new"}


def test_a_stage_that_fails_ends_the_pipeline_and_leaves_what_is_done(small, run, capsys):
    write({**STAGES, "vocabulary": STAGES["vocabulary"].replace("480", "8")}, OUTPUTS)
    assert main(["pipeline", "p.py"]) == 2
    assert "[2/4] vocabulary: ended with status 2" in capsys.readouterr().err
    assert not Path("runs/shards").exists()
    progress = State(small / "runs").read_progress()
    assert {name: (stage.status, stage.before) for name, stage in progress.items()} == {
        "books": ("done", []),
        "vocabulary": ("failed", ["books"]),
        "shards": ("waiting", ["books", "vocabulary"]),
        "ids": ("waiting", ["vocabulary"]),
    }
    assert progress["books"].seconds > 0
    write(STAGES, OUTPUTS)
    assert list(run()) == ["vocabulary", "shards", "ids"]
    statuses = [stage.status for stage in State(small / "runs").read_progress().values()]
    assert statuses == ["skipped", "done", "done", "done"]


def test_a_stage_that_prints_keeps_nothing_when_it_fails(finished, capsys):
    Path("runs/ids.txt").unlink()
    write({**STAGES, "ids": "tokenizer decode runs/tokenizer.jsonl 5 x > runs/ids.txt"}, OUTPUTS)
    assert main(["pipeline", "p.py"]) == 2
    assert not any("ids" in path.name for path in Path("runs").iterdir())


def test_an_output_that_does_not_come_is_an_error(small, capsys):
    write({"books": STAGES["books"].replace("runs/books", "else")}, {"books": "runs/book.jsonl"})
    assert main(["pipeline", "p.py"]) == 2
    assert "stage books succeeded but did not write runs/book.jsonl" in capsys.readouterr().err


def test_two_at_once_are_refused(small, refused):
    with State(small / "runs").lock():
        assert f"runs/.pipeline is in use by another process (process {os.getpid()} on " in refused()


def test_a_record_with_other_inputs_is_understood_and_its_stage_run_again(finished, run):
    """Versions that took inputs from the words of a command may have recorded others."""
    path = Path("runs/.pipeline/shards.json")
    record = json.loads(path.read_text())
    record["key"]["inputs"]["text/b.jsonl"] = "0"
    path.write_text(json.dumps(record))
    assert run() == {"shards": "input text/b.jsonl is gone"}
    assert run() == {}


def test_a_damaged_record_is_named(finished, run, refused):
    Path("runs/.pipeline/ids.json").write_text("{")
    assert "ids.json is not the record of a stage" in refused("--dry-run")


def test_a_changed_config_reruns_the_run_and_what_is_made_of_it(finished, run, plan):
    write_trained()
    assert list(run()) == ["model", "merged"]
    first = Path("runs/merged/model.safetensors").read_bytes()
    # Another text with the same config, and a changed log, change nothing.
    Path("model.py").write_text(CONFIG + "# The same.\n")
    (Path("runs/model/metrics.jsonl")).write_text("")
    assert set(plan().values()) == {"finished"}
    Path("model.py").write_text(CONFIG.replace("steps=6", "steps=6, seed=5"))
    why = "config changed: seed: 0, now 5"
    assert run() == {"model": why, "merged": "input runs/model changed"}
    assert Path("runs/merged/model.safetensors").read_bytes() != first
    assert Path("runs/.pipeline/stale/merged/merged/model.safetensors").read_bytes() == first
    assert Path("runs/.pipeline/stale/model/model/config.json").exists()


def test_sigterm_stops_a_run_with_a_checkpoint_and_the_pipeline_with_its_status(finished):
    write_trained()
    Path("model.py").write_text(CONFIG.replace("steps=6", "steps=200000"))
    process = subprocess.Popen(
        [sys.executable, "-m", "plamo2_jax.cli.main", "pipeline", "p.py"], stderr=subprocess.PIPE
    )
    metrics = Path("runs/model/metrics.jsonl")
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=600)[1].decode()
    assert process.returncode == 128 + signal.SIGTERM
    assert "model: ended with status 143" in error
    assert any(path.name.isdigit() for path in Path("runs/model/checkpoints").iterdir())
    assert (
        "interrupted: resumes"
        in subprocess.run(
            [sys.executable, "-m", "plamo2_jax.cli.main", "pipeline", "p.py", "--dry-run"],
            capture_output=True,
            text=True,
        ).stdout
    )
