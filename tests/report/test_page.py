"""The report page: what it says comes from the run's files, and what is not there is said."""

import json

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.report.page import write_report

DATA = {"batch_size": 2, "sequence_length": 8}


@pytest.fixture
def run(tmp_path):
    """A run folder's files as training and evaluation write them, with figures known beforehand."""
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
    assert "What it writes" not in page


def test_a_folder_without_steps_is_refused(run):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no training step yet"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", r"evaluation\.json is not JSON"),
        ("evaluation.json", "[1]", r"evaluation\.json must be a JSON object, not list"),
        ("evaluation.json", '{"x": 1}', r'evaluation\.json must hold "languages"'),
        ("samples.jsonl", '{"prompt": "a"}', r"samples\.jsonl, line 1, lacks finish_reason, text, token_ids"),
        ("samples.jsonl", "no", r"samples\.jsonl, line 1, is not JSON"),
    ],
)
def test_a_damaged_file_is_named(run, name, content, message):
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json", "samples.jsonl"])
def test_a_link_out_of_the_run_does_not_come_into_the_page(run, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("private") / "secret.jsonl"
    outside.write_text('{"prompt": "", "text": "secret", "token_ids": [1], "finish_reason": "length", "step": 1}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with pytest.raises(ValueError, match=r"is a symbolic link out of its folder"):
        write_report(run)
    assert not (run / "report.html").exists()
