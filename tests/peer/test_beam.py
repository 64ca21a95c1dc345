"""`plamo2 data beam` in process gives the documents of the local functions. `make peers` installs Beam."""

import json
from pathlib import Path

import pytest

from plamo2_jax.cli.against import evaluation_items
from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.data.contamination import ContaminationIndex, decontaminate
from plamo2_jax.data.join import JoinConfig, join
from plamo2_jax.data.quality_training import QualityConfig, train_quality
from plamo2_jax.data.sources import read_documents

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module", autouse=True)
def apache_beam():
    return pytest.importorskip("apache_beam", reason="apache-beam is not installed (make peers installs it)")


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def lines(*files):
    """The records of files, sorted."""
    return sorted(line for file in files for line in file.read_text(encoding="utf-8").splitlines())


def parts(folder):
    return lines(*sorted(folder.glob("part-*.jsonl")))


@pytest.fixture(scope="module")
def pages():
    return [{**page, "text": page["text"][:2000]} for page in corpus.documents(split="heldout")][:160]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pages):
    """Three files: pages with a footer, copies and near-copies of earlier pages, and pages that contain evaluation items."""
    folder = tmp_path_factory.mktemp("inputs")
    footer = "\n\nお問い合わせはこちらのページからお願いいたします\nCopyright 2026 Example\nAll rights reserved"
    write(folder / "a.jsonl", [{**page, "text": page["text"] + footer} for page in pages[:80]])
    copies = [
        {**page, "id": f"copy-{i}", "text": (page["text"] + footer).replace("\n", " \n ")}
        for i, page in enumerate(pages[:30])
    ]
    edits = [{**page, "id": f"edit-{i}", "text": page["text"] + f"追記{i}"} for i, page in enumerate(pages[60:90])]
    write(folder / "b.jsonl", [*copies, *edits, *pages[80:120]])
    leaks = [
        {**page, "id": f"leak-{i}", "text": page["text"] + "\n" + leaked["text"][100:300]}
        for i, (page, leaked) in enumerate(zip(pages[120:140], pages[140:160], strict=True))
    ]
    write(folder / "c.jsonl", [*leaks, {"text": "short"}])
    (folder / "evaluation").mkdir()
    write(folder / "evaluation" / "items.jsonl", [{"question": page["text"][:400]} for page in pages[140:160]])
    return folder


def beam(files, output, *options):
    assert main(["data", "beam", "--input", *map(str, files), "--output", str(output), *options]) == 0


def inputs(folder):
    return [str(folder / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]


def test_clean(folder, tmp_path):
    write(
        tmp_path / "all.jsonl",
        [json.loads(line) for file in inputs(folder) for line in Path(file).read_text(encoding="utf-8").splitlines()],
    )
    assert (
        main(["data", "clean", str(tmp_path / "all.jsonl"), str(tmp_path / "local.jsonl"), "--duplicates", "keep"]) == 0
    )
    beam([tmp_path / "all.jsonl"], tmp_path / "out", "--stages", "clean")
    found = parts(tmp_path / "out")
    assert found == lines(tmp_path / "local.jsonl")
    # The footer is removed, but not from the copies, where its lines are indented.
    assert len(found) > 100
    assert sum("All rights reserved" in line for line in found) == 30


def test_deduplicate(folder, tmp_path, capsys):
    arguments = ["--input", *inputs(folder)]
    assert main(["data", "deduplicate", *arguments, "--output", str(tmp_path / "local")]) == 0
    local = json.loads((tmp_path / "local" / "report.json").read_text())["deduplication"]
    assert main(["data", "beam", *arguments, "--output", str(tmp_path / "out"), "--stages", "deduplicate"]) == 0
    assert parts(tmp_path / "out") == lines(*sorted((tmp_path / "local").glob("0*.jsonl")))
    error = capsys.readouterr().err
    counts = json.loads(error[error.rindex("{") : error.rindex("}") + 1])
    assert counts["duplicates: exact"] == local["exact"]["documents"] > 0
    assert counts["duplicates: near"] == local["near"]["documents"] > 10


def test_decontaminate(folder, tmp_path):
    against = str(folder / "evaluation" / "items.jsonl")
    index = ContaminationIndex(evaluation_items([against]))
    local = [
        json.dumps(document.to_json(), ensure_ascii=False)
        for document in decontaminate(read_documents(inputs(folder)), index)
    ]
    beam(inputs(folder), tmp_path / "out", "--stages", "decontaminate", "--against", against)
    found = parts(tmp_path / "out")
    assert found == sorted(local)
    assert len(found) > 150
    assert not any('"leak-' in line for line in found)


def test_score_and_join(folder, pages, tmp_path):
    texts, model = [page["text"] for page in pages], str(tmp_path / "model")
    train_quality(texts, [float(i % 2) for i in range(len(texts))], QualityConfig(epochs=1)).save(Path(model))
    assert main(["data", "score", str(folder / "c.jsonl"), str(tmp_path / "scored.jsonl"), "--model", model]) == 0
    beam([folder / "c.jsonl"], tmp_path / "scores", "--stages", "score", "--model", model)
    assert parts(tmp_path / "scores") == lines(tmp_path / "scored.jsonl")
    derived = [
        {"id": f"d{i}", "text": "text", "source": [{"id": f"leak-{i}"}, {"id": f"leak-{i + 1}", "license": "CC0"}]}
        for i in range(20)
    ]
    write(tmp_path / "derived.jsonl", derived)
    records, scores = (
        [d.to_json() for d in read_documents([tmp_path / f"{name}.jsonl"])] for name in ("derived", "scored")
    )
    local = join(records, scores, JoinConfig(("quality", "language"), "source"))
    options = ["--join-with", str(tmp_path / "scored.jsonl"), "--join-fields", "quality", "language"]
    beam([tmp_path / "derived.jsonl"], tmp_path / "out", "--stages", "join", *options, "--join-key", "source")
    found = parts(tmp_path / "out")
    assert found == sorted(json.dumps(record, ensure_ascii=False) for record in local)
    assert sum(line.count('"quality"') for line in found) == 39


def test_workers_that_are_processes(folder, tmp_path):
    """All stages are sent to other processes, with nothing that cannot be pickled."""
    arguments = ["--input", *inputs(folder), "--stages", "clean", "decontaminate", "deduplicate"]
    arguments += ["--against", str(folder / "evaluation" / "items.jsonl")]
    for name, options in (("one", []), ("two", ["direct_running_mode=multi_processing", "direct_num_workers=2"])):
        extra = ["--beam-options", *options] if options else []
        main(["data", "beam", *arguments, *extra, "--output", str(tmp_path / name)])
    assert parts(tmp_path / "one") == parts(tmp_path / "two") != []
