"""The report page: it shows the contents of the run's files, and notes about missing and damaged ones."""

import html
import json
import re

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.report.page import write_report

DATA = {"batch_size": 2, "sequence_length": 8}


@pytest.fixture
def run(tmp_path):
    """Return a run folder with files as training and evaluation write them, with known figures."""
    config = {"name": "a <b> run", "model": preset("tiny").to_hf(), "data": DATA}
    checkpoint.write_json(tmp_path / checkpoint.CONFIG, config)
    steps = [
        {
            "step": i,
            "time": 100.0 + i,
            "loss": 9.0 - i,
            "bits_per_byte": 3.0 / i,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
        }
        for i in range(1, 5)
    ]
    heldout = {"step": 4, "time": 105.0, "heldout/ja/bits_per_byte": 1.25, "heldout/en/bits_per_byte": 2.5}
    lines = [json.dumps(line) + "\n" for line in [*steps, heldout]]
    (tmp_path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_figures_samples_and_names_are_on_the_page(run):
    languages = {
        "ja": {"bits_per_byte": 1.25, "xz_bits_per_byte": 2.0, "bytes": 1234},
        "en": {"bits_per_byte": 2.5, "xz_bits_per_byte": 2.0, "bytes": 99},
    }
    (run / "evaluation.json").write_text(json.dumps({"languages": languages}), encoding="utf-8")
    sample = {"prompt": "日本", "text": "語 & <i>", "finish_reason": "length", "token_ids": [1, 2, 3]}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    for text in (
        "1.250",
        "2.000",
        "1,234",
        "38 % fewer than xz",
        "25 % more than xz",
        "語 &amp; &lt;i&gt;",
        "3 tokens",
    ):
        assert text in page
    assert "a &lt;b&gt; run" in page
    assert "1,267,440 parameters" in page
    assert page.count("<svg") == 4


def test_of_samples_with_steps_the_newest_are_shown(run):
    rest = {"prompt": "p", "finish_reason": "length", "token_ids": [1]}
    said = [{**rest, "step": step, "text": f"said at {step}"} for step in (50, 100)]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "said at 100" in page
    assert "said at 50" not in page


def test_a_run_without_evaluation_still_has_its_curves(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "1.250" in page
    assert "than xz" not in page
    assert "<h2>Samples</h2>" not in page


def test_a_run_without_a_step_has_a_page_too(run):
    (run / "metrics.jsonl").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert "No training step has been logged yet." in page
    assert "<svg" not in page
    assert "1,267,440 parameters" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config\.json"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match='has no object under the key "model"'):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("evaluation.json", "{", "evaluation.json is not valid JSON"),
        (
            "samples.jsonl",
            '{"prompt": "a"}\nno\n',
            "2 damaged line(s) skipped; the first: {run}/samples.jsonl, line 1, has no finish",
        ),
        (
            "samples.jsonl",
            '{"prompt": 1, "text": "", "token_ids": [], "finish_reason": ""}\n',
            "line 1, is not a sample: prompt, text and finish_reason must be strings",
        ),
    ],
)
def test_a_damaged_file_is_left_out_with_a_note(run, name, content, note, capsys):
    (run / name).write_text(content, encoding="utf-8")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    note = note.format(run=run) if "{run}" in note else note
    assert note in page
    assert page.count("<svg") == 4
    assert html.unescape(note) in capsys.readouterr().err


ODD_LINES = [
    b"{",
    b"[1]",
    b"null",
    b'{"loss": 1}',
    b'{"step": "1", "loss": 1}',
    b'{"step": true, "loss": 1}',
    b'{"step": -1, "loss": 1}',
    b'{"step": 1e3, "loss": 1}',
    b'{"step": 99999999999999999999, "loss": 1}',
    b'{"step": 5, "loss": "1"}',
    b'{"step": 5, "loss": null, "time": 1}',
    b'{"step": 5, "loss": NaN, "time": 1}',
    b'{"step": 5, "loss": 1, "time": "noon"}',
    b'{"step": 5, "loss": 1, "heldout/ja/bits_per_byte": {}}',
    b'{"step": 5, "loss": 1' + b"0" * 400 + b"}",
    b"[" * 5000,
    b'{"step": 5, "loss": \xff}',
    b"",
]


def test_odd_lines_of_the_log_are_counted_and_left_out(run):
    expected = write_report(run).read_bytes()
    log = run / "metrics.jsonl"
    first, *rest = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([first, *ODD_LINES, *rest, b'{"step": 9, "lo']))
    page = write_report(run).read_text(encoding="utf-8")
    assert (
        f"{len(ODD_LINES)} damaged line(s) skipped; the first: {run}/metrics.jsonl, line 2, is not valid JSON" in page
    )
    note = re.compile('<ul class="notes">.*?</ul>', re.DOTALL)
    assert note.sub("", page).split() == expected.decode().split()


def test_strange_but_possible_figures_are_drawn(run):
    """No times, only a loss, huge values, one step; names with special characters of Matplotlib and HTML; more sets than colors."""
    names = ["$x^", "_hidden", "<b>", "a/b", "日本", *"cdefgh"]
    lines = [{"step": 1, "loss": 1e308}, {"step": 1, "loss": 2, "grad_norm": 0, "learning_rate": -1}]
    lines += [
        {"step": 1} | {f"heldout/{name}/bits_per_byte": 10**30 for name in names},
        {"step": 2, "heldout/": 1, "heldout/x": 2},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "a/b" in page
    assert "1e+30" in page


def test_preferences_have_margins_and_no_bytes(run):
    config = json.loads((run / "config.json").read_text())
    checkpoint.write_json(run / "config.json", {**config, "task": {"kind": "dpo", "lora": {"rank": 2}}})
    pairs = {"reward_margin": 0.5, "reward_accuracy": 0.75, "kl": 0.1}
    pairs |= {f"{name}_{side}": 1.0 for name in ("reward", "log_ratio", "log_prob") for side in ("chosen", "rejected")}
    steps = [{"step": i, "time": 100.0 + i, "loss": 0.6, "tokens": 500_000, **pairs} for i in range(1, 5)]
    measured = {"pairs": 20.0, "count_chosen": 20.0, "count_rejected": 20.0, "loss": 0.625, **pairs}
    heldout = {"step": 4, "time": 105.0} | {f"heldout/pairs/{name}": value for name, value in measured.items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, heldout]), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    for text in (
        "preferences, adapters",
        "margin",
        "0.500",
        "75.0%",
        "0.625",
        "reward margin",
        "log-ratio to the reference",
    ):
        assert text in page, text
    assert "over\n2.00 M tokens" in page
    for text in ("xz", "bits per byte", "UTF-8"):
        assert text not in page, text


def test_fine_tuning_says_nothing_of_xz(run):
    config = json.loads((run / "config.json").read_text())
    checkpoint.write_json(run / "config.json", {**config, "task": {"kind": "sft"}})
    page = write_report(run).read_text(encoding="utf-8")
    assert "fine-tuning · 1,267,440 parameters" in page
    checkpoint.write_json(run / "config.json", {**config, "forked_from": {"run": "runs/other"}})
    assert "fork of runs/other at step None" in write_report(run).read_text(encoding="utf-8")
    assert "targets are the assistant&#39;s tokens" in page
    assert "xz" not in page


def test_runs_below_and_their_evaluations_are_shown(run):
    below = run / "sft_1"
    below.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (below / name).write_bytes((run / name).read_bytes())
    (run / "data").mkdir()
    (run / "bad").mkdir()
    (run / "bad" / "config.json").write_text("{")
    figures = {"ja": {"bits_per_byte": 1.375, "odd": "x"}}
    (run / "merged_evaluation.json").write_text(json.dumps({"languages": figures}), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h3>sft_1</h3>" in page
    # Four plots of the run itself, and the two summary plots of the run inside it.
    assert page.count("<svg") == 6
    assert "merged_evaluation.json" in page
    assert "1.375" in page
    assert "bad/config.json is not valid JSON" in page


def write_scores(folder, task, score, finished, **fields):
    place = folder / task
    place.mkdir(parents=True)
    result = {"task": task, "metric": "accuracy", "score": score, "stderr": 0.125, "n": 4, "failed": 0, "metrics": {}}
    result |= {"provenance": {"chance": 0.25}, "model": {}, "settings": {}, "versions": {}, "tokens": {}}
    (place / "result.json").write_text(json.dumps(result | {"finished": finished} | fields), encoding="utf-8")
    (place / "answers.jsonl").write_text("", encoding="utf-8")


def test_scores_of_models_are_in_one_table_in_the_order_of_their_evaluation(run, tmp_path):
    write_scores(run / "scores" / "zeroth", "cloze", 0.5, "2026-01-01T00:00:00Z")
    write_scores(run / "scores" / "first", "cloze", 0.75, "2026-01-02T00:00:00Z")
    write_scores(run / "scores" / "first", "rules", None, "2026-01-02T00:00:01Z", stderr=None, provenance={})
    figures = {"languages": {"ja": {"bits_per_byte": 1.375}}}
    (run / "scores" / "first" / "evaluation.json").write_text(json.dumps(figures), encoding="utf-8")
    (run / "scores" / "bad").mkdir()
    (run / "scores" / "away").symlink_to(run / "scores" / "first")
    page = write_report(run).read_text(encoding="utf-8")
    table = page[page.index("Scores of the models") : page.index("Scores are means over items")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.splitlines() if "<tr>" in line]
    assert rows == [
        ["model", "bits per byte, ja", "cloze: accuracy", "rules: accuracy"],
        ["zeroth", "–", "0.500 ± 0.125", "–"],
        ["first", "1.375", "0.750 ± 0.125", "–"],
        ["random answers", "", "0.250", ""],
    ]
    assert "bad has no results" in page


def test_synthetic_data_has_counts_by_reason_and_its_card(run, capsys):
    stage = {"records": {"in": 9, "out": 7}, "refused": {"duplicate": 2}}
    made = {"entries": 1234, "refused": {"facts <ja>: too short": 3}, "failed": {"timeout": 1}}
    made["recipes"] = {"facts <ja>": {"records": 9, "refused": 3, "failed": 1}}
    report = {
        "generate": made,
        "records": 7,
        "stages": {"deduplicate": stage},
        "mix": {"synthetic_share": {"text": 0.0625}},
    }
    for name in ("synth", "damaged", "linked"):
        (run / name / "records").mkdir(parents=True)
        (run / name / "records" / "README.md").touch()
        (run / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (run / "damaged" / "report.json").write_text(json.dumps({"generate": {}}), encoding="utf-8")
    (run / "linked" / "report.json").rename(run / "elsewhere.json")
    (run / "linked" / "report.json").symlink_to(run / "elsewhere.json")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in page.splitlines() if line.startswith("<tr>")]
    for row in (
        ["facts &lt;ja&gt;", "9", "3", "1"],
        ["deduplicate", "9", "7"],
        ["facts &lt;ja&gt;: too short", "3"],
        ["failed: timeout", "1"],
        ["deduplicate: duplicate", "2"],
    ):
        assert row in rows
    assert "7 records from 1,234 entries · 6.2 % of the texts of the mixture" in page
    assert '<a href="synth/records/README.md">data card</a>' in page
    assert "Synthetic data: linked" not in page
    assert "damaged/report.json is not the report of plamo2 synth" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json", "samples.jsonl"])
def test_a_link_out_of_the_run_does_not_come_into_the_page(run, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("private") / "secret.jsonl"
    outside.write_text('{"prompt": "", "text": "secret", "token_ids": [1], "finish_reason": "length", "step": 1}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with pytest.raises(ValueError, match=r"is a symbolic link out of its folder"):
        write_report(run)
    assert not (run / "report.html").exists()
