"""The page of a pipeline's folder: the graph of its stages, the table of its models, and their answers side by side."""

import json
import re

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.pipeline.state import FOLDER, PROGRESS, Progress, Record, State
from plamo2_jax.report.layout import place
from plamo2_jax.report.page import write_report

WIDTH, GAP = 100.0, 10.0


def rows_of(table):
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.splitlines() if "<tr>" in line]


def write_model(folder, name, task=None, lines=()):
    folder.mkdir(exist_ok=True)
    config = {"name": name, "model": preset("tiny").to_hf()} | ({"task": {"kind": task}} if task else {})
    checkpoint.write_json(folder / checkpoint.CONFIG, config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_answers(folder, model, score, answers):
    place = folder / "rules"
    place.mkdir(parents=True)
    result = {"task": "rules", "metric": "score", "score": score, "stderr": 0.125, "n": 2, "failed": 0, "metrics": {}}
    result |= {"provenance": {}, "model": {"model": model}, "settings": {}, "versions": {}, "tokens": {"generated": 9}}
    (place / "result.json").write_text(json.dumps(result | {"finished": "2026-01-01"}), encoding="utf-8")
    rows = [{"id": key, "question": key, "answer": {"text": text}, "scores": {}} for key, text in answers.items()]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def home(tmp_path):
    """Return a pipeline's folder whose last call skipped one stage, ran one, failed in one and did not reach one."""
    home = tmp_path / "demo"
    line = {"step": 1, "time": 1.0, "loss": 2.0, "tokens_per_second": 1234.0}
    measured = {"step": 1, "time": 2.0, "heldout/ja/bits_per_byte": 1.5}
    write_model(home, "demo", "pretrain", [line])
    write_model(home / "small", "small", "distill", [line, measured])
    (home / "merged").mkdir()
    checkpoint.write_json(home / "merged" / checkpoint.CONFIG, preset("tiny").to_hf())
    (home / "merged" / "model.safetensors").write_bytes(bytes(2_500_000))
    figures = {"model": "runs/demo", "languages": {"ja": {"bits_per_byte": 1.25}}}
    (home / "evaluation.json").write_text(json.dumps(figures), encoding="utf-8")
    write_answers(home / "scores" / "first", "/elsewhere/runs/demo", 0.5, {"問い": "答え <1>", "other": "x"})
    write_answers(home / "scores" / "merged", "runs/demo/merged", 0.75, {"問い": "答え 2"})
    state = State(home)
    stages = {
        "pretrain": Progress([], "pretrain configs/demo.py", "skipped", 90.0),
        "distil": Progress(["pretrain"], "pretrain configs/small.py", "done", 30.0),
        "merged": Progress(["distil", "pretrain"], "merge <a> b", "done", 120.0),
        "sft": Progress(["pretrain"], "sft configs/sft.py", "failed", 3.0),
        "after": Progress(["sft"], "merge c d"),
        "report": Progress(["merged", "after"], "report runs/demo", "running"),
    }
    state.write_progress(stages)
    for name, path, size in (("pretrain", "config.json", 1500), ("distil", "small/config.json", 3_000_000)):
        state.write(name, Record({}, outputs={path: [size, 0, "x"]}, seconds=stages[name].seconds))
    state.write(
        "merged", Record({}, outputs={"merged/config.json": [5, 0, "x"], "merged/model.safetensors": [7, 0, "x"]})
    )
    state.write("sft", Record({}))
    return home


def test_the_graph_has_status_time_and_size_of_each_stage(home):
    page = write_report(home).read_text(encoding="utf-8")
    graph = page[page.index('<svg class="stages"') : page.index("</svg>")]
    boxes = re.findall(r'<g class="(\w+)".*?<title>(.*?)\n(.*?)</title>', graph)
    assert boxes == [
        ("skipped", "pretrain: skipped (finished earlier), 90.0 s, 1.5 kB", "plamo2 pretrain configs/demo.py"),
        ("done", "distil: done, 30.0 s, 3.0 MB", "plamo2 pretrain configs/small.py"),
        ("done", "merged: done, 2.0 min, 12 B", "plamo2 merge &lt;a&gt; b"),
        ("failed", "sft: failed, 3.0 s, –", "plamo2 sft configs/sft.py"),
        ("waiting", "after: not run, –, –", "plamo2 merge c d"),
    ]
    # merged follows pretrain through distil; the stage that writes the page is not drawn.
    assert graph.count('class="edge"') == 4
    assert "5 stages · 4.0 min · 3.0 MB of outputs" in page


def test_one_table_has_all_models_in_the_order_of_their_stages(home):
    page = write_report(home).read_text(encoding="utf-8")
    table = rows_of(page[page.index("<h2>Models</h2>") : page.index("Scores are means over items")])
    size = "1,267,440"
    assert table == [
        ["model", "stage", "kind", "parameters", "size", "bits per byte, ja", "rules: score", "training, tokens/s"],
        ["first (demo)", "pretrain", "pretraining", size, "–", "1.250", "0.500 ± 0.125", "1,234"],
        ["small", "distil", "distillation", size, "–", "1.500†", "–", "1,234"],
        ["merged", "merged", "merging", size, "2.5 MB", "–", "0.750 ± 0.125", "–"],
    ]


def test_answers_to_shared_prompts_are_side_by_side(home):
    page = write_report(home).read_text(encoding="utf-8")
    assert re.findall(r'<p class="prompt">(.*?)</p>', page) == ["問い"]
    assert "<div><b>first (demo)</b>答え &lt;1&gt;</div><div><b>merged</b>答え 2</div>" in page


def test_the_page_loads_nothing(home):
    page = write_report(home).read_text(encoding="utf-8")
    assert not re.search(r"<link|<img|<iframe|\bsrc=|@import|url\(|fetch\(", page)
    assert re.findall(r"https?://[^\"\s]+", page) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"a": 1}', '{"a": {"before": ["a"], "command": "x", "status": "done", "seconds": 1}}',
     '{"a": {"before": [], "command": "x", "status": "odd", "seconds": 1}}'],
)  # fmt: skip
def test_damaged_progress_is_left_out_with_a_note(home, content):
    (home / FOLDER / PROGRESS).write_text(content, encoding="utf-8")
    page = write_report(home).read_text(encoding="utf-8")
    assert '<ul class="notes"><li>' in page
    assert 'class="stages"' not in page
    assert "<h2>Scores of the models</h2>" in page


def test_records_behind_a_link_are_not_read(home, tmp_path):
    (home / FOLDER).rename(tmp_path / "records")
    (home / FOLDER).symlink_to(tmp_path / "records")
    assert 'class="stages"' not in write_report(home).read_text(encoding="utf-8")


def test_edges_point_down_nodes_do_not_overlap_and_implied_edges_are_left_out():
    before = {
        "a": [],
        "b": ["a"],
        "c": ["a", "b"],
        "d": ["b"],
        "source": [],
        "e": ["d", "source", "a"],
        "f": ["c", "e"],
    }
    layout = place(before, WIDTH, GAP)
    assert set(layout.edges) == {
        ("a", "b"),
        ("b", "c"),
        ("b", "d"),
        ("d", "e"),
        ("source", "e"),
        ("c", "f"),
        ("e", "f"),
    }
    row = {name: at[1] for name, at in layout.places.items()}
    for (start, end), path in layout.edges.items():
        assert row[start] < row[end]
        assert (path[0], path[-1]) == (layout.places[start][0], layout.places[end][0])
        assert len(path) == row[end] - row[start] + 1
    assert row["source"] == row["e"] - 1
    for one, (x, level) in layout.places.items():
        assert WIDTH / 2 <= x <= layout.width - WIDTH / 2
        assert all(
            abs(x - other) >= WIDTH + GAP - 1e-6
            for name, (other, row) in layout.places.items()
            if row == level and name != one
        )
