"""Duplicates are found, distinct documents are kept, nothing depends on chance."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus, duplicates
from plamo2_jax.data.dedup import DedupReport, deduplicate, duplicates_of
from plamo2_jax.data.dedup_files import deduplicate_files
from plamo2_jax.data.minhash import DedupConfig, Signer, bands_and_rows, fingerprint, shingle_hashes, similarity
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError


@pytest.fixture(scope="module")
def real_documents() -> list[dict[str, str]]:
    """Held-out pages of the bundled corpus, cut to a size that keeps the tests fast."""
    return [{**d, "text": d["text"][:3000]} for d in corpus.documents(split="heldout") if len(d["text"]) > 400]


def run(documents: list[dict], **config) -> tuple[list[dict], DedupReport]:
    report = DedupReport()
    return list(deduplicate(documents, DedupConfig(**config), report, progress=False)), report


def edited(text: str, share: float, seed: int) -> str:
    """The text with about this share of its characters replaced, in runs of ten."""
    rng, letters = random.Random(seed), list(text)
    for _ in range(int(share * len(letters) / 10)):
        start = rng.randrange(len(letters) - 10)
        letters[start : start + 10] = [chr(rng.randrange(0x4E00, 0x9000)) for _ in range(10)]
    return "".join(letters)


def jaccard(a: str, b: str, ngram: int) -> float:
    """The definition, with Python sets."""
    a, b = "".join(a.split()), "".join(b.split())
    a, b = ({t[i : i + ngram] for i in range(len(t) - ngram + 1)} for t in (a, b))
    return len(a & b) / len(a | b)


def test_real_distinct_documents_are_kept(real_documents):
    kept, report = run(real_documents)
    assert kept == real_documents
    assert report.documents_in == report.documents_out == len(real_documents) > 150


def test_planted_duplicates_are_found_and_the_first_stays(real_documents):
    planted = []
    for i, document in enumerate(real_documents[:40]):
        planted.append({**document, "id": f"spaced-{i}", "text": "\n\n " + document["text"].replace("\n", "\n \n")})
        planted.append({**document, "id": f"edited-{i}", "text": edited(document["text"], 0.03, i)})
    kept, report = run(real_documents + planted)
    assert kept == real_documents
    assert (report.exact, report.near) == (40, 40)
    assert [d.id for d in report.first] == [f"{kind}-{i}" for kind in ("spaced", "edited") for i in range(20)]
    for found in report.first:
        assert found.duplicate_of == real_documents[int(found.id.split("-")[1])]["id"]
        assert (found.similarity == 1) == found.id.startswith("spaced")
    assert "exact duplicates 40, near-duplicates 40" in report.summary()


def test_documents_below_the_threshold_are_kept(real_documents):
    changed = [{**d, "id": f"new-{i}", "text": edited(d["text"], 0.3, i)} for i, d in enumerate(real_documents[:40])]
    kept, report = run(real_documents[:40] + changed)
    assert len(kept) == 80
    assert not report.near


def test_deduplication_is_idempotent_and_repeats_itself(real_documents):
    doubled = [d for document in real_documents[:50] for d in (document, {**document, "text": document["text"] + "。"})]
    first, report = run(doubled)
    again, _ = run(doubled)
    twice, second = run(first)
    assert first == again == twice
    assert report.near == 50
    assert not second.near
    assert not second.exact


def test_estimate_is_near_the_true_similarity(real_documents):
    signer = Signer(DedupConfig(permutations=256))
    for i, share in enumerate([0.0, 0.05, 0.1, 0.3, 0.6]):
        text = real_documents[i]["text"]
        other = edited(text, share, i)
        estimate = similarity(signer(text)[1], signer(other)[1])
        assert abs(estimate - jaccard(text, other, 5)) < 4 / 256**0.5 * 0.5


@given(st.text(max_size=60), st.integers(1, 8))
def test_shingles_are_those_of_the_definition(text, ngram):
    squeezed = "".join(text.split())
    expected = {squeezed[i : i + ngram] for i in range(max(1, len(squeezed) - ngram + 1))} if squeezed else set()
    hashes = shingle_hashes(text, ngram)
    assert len(hashes) == len(expected)
    assert np.all(np.diff(hashes.astype(np.int64)) > 0)
    assert np.array_equal(hashes, shingle_hashes(" \n".join(text), ngram))


@given(st.text(), st.text())
def test_fingerprint_ignores_white_space_only(a, b):
    assert (fingerprint(a) == fingerprint(b)) == ("".join(a.split()) == "".join(b.split()))


@given(st.text(max_size=60), st.integers(1, 8))
def test_a_signature_is_the_minimum_over_the_shingles(text, ngram):
    signer = Signer(DedupConfig(permutations=16, ngram=ngram))
    hashes = shingle_hashes(text, ngram)[:, None]
    smallest = np.min(signer._a * hashes + signer._b, axis=0, initial=0xFFFFFFFF)
    assert np.array_equal(signer(text)[1], smallest)


def test_bands_are_those_of_the_literature():
    # datasketch's optimum of the same two integrals.
    assert bands_and_rows(0.8, 128) == (9, 13)
    assert bands_and_rows(0.5, 128) == (25, 5)


def test_empty_documents_and_repeated_ids():
    kept, report = run(
        [{"text": ""}, {"text": " \n"}, {"text": "a"}, {"text": "b", "id": "x"}, {"text": "c", "id": "x"}]
    )
    assert [d["text"] for d in kept] == ["", "a", "b", "c"]
    assert [(d.id, d.duplicate_of) for d in report.first] == [("1", "0")]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", 0.0, r"threshold=0.0 is not allowed: it must be in \(0, 1\]"),
        ("ngram", 0, "ngram=0 is not allowed: it must be at least 1"),
        ("permutations", 8, "permutations=8 is not allowed: it must be between 16 and 4096"),
    ],
)
def test_bad_config_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        DedupConfig(**{field: value})


def planted(real_documents) -> list[dict]:
    """Documents with duplicates of all kinds, in a mixed order."""
    found = [{"id": f"d{i}", "text": d["text"]} for i, d in enumerate(real_documents[:60])]
    for i in range(0, 60, 3):
        found.append({"id": f"copy{i}", "text": found[i]["text"] + " \n"})
        found.append({"id": f"near{i}", "text": edited(found[i]["text"], 0.03, i)})
        found.append({"id": f"nearer{i}", "text": edited(found[i]["text"], 0.03, 1000 + i)})
    random.Random(3).shuffle(found)
    return found


def components(texts: list[str], config: DedupConfig) -> list[int]:
    """The first text of each text's component, by comparing all pairs that share a band."""
    signer = Signer(config)
    signatures = np.stack([signer(text)[1] for text in texts])
    bands, prints = signer.band_hashes(signatures), [fingerprint(text) for text in texts]
    first = list(range(len(texts)))
    for j in range(len(texts)):
        for i in range(j):
            near = np.any(bands[i] == bands[j]) and similarity(signatures[i], signatures[j]) >= config.threshold
            if near or prints[i] == prints[j]:
                old, new = max(first[i], first[j]), min(first[i], first[j])
                first = [new if root == old else root for root in first]
    return first


def test_duplicates_are_the_components_of_similar_texts(real_documents, monkeypatch):
    texts = [document["text"] for document in planted(real_documents)]
    expected = components(texts, DedupConfig())
    assert len(set(expected)) == 60
    assert duplicates_of(texts, DedupConfig()) == expected
    # The result does not depend on the sizes of blocks, parts and batches of pairs.
    monkeypatch.setattr("plamo2_jax.data.dedup.BLOCK", 7)
    monkeypatch.setattr(duplicates, "_PART", 31)
    monkeypatch.setattr(duplicates, "_PAIRS", 5)
    assert duplicates_of(texts, DedupConfig()) == expected


def test_a_group_of_texts_that_share_a_hash_by_accident_is_split():
    keys, texts = np.array([1, 5, 5, 5, 5, 5, 9], np.uint64), np.array([4, 0, 1, 2, 3, 6, 5])
    pairs = duplicates.group_pairs(keys, texts, lambda a, b: a % 2 == b % 2)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 6), (1, 3)]


def read(path, report):
    return read_documents([path], report=report)


def write_files(folder, documents) -> list:
    folder.mkdir()
    paths = [folder / f"{name}.jsonl" for name in "abc"]
    for i, path in enumerate(paths):
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents[i::3])
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def test_files_are_deduplicated_as_a_stream_also_after_interruptions(real_documents, tmp_path, monkeypatch):
    documents = planted(real_documents)
    files = write_files(tmp_path / "in", documents)
    in_order = [document for i in range(3) for document in documents[i::3]]
    kept, expected = run(in_order)
    monkeypatch.setattr("plamo2_jax.data.dedup_files.BLOCK", 16)

    def stopped_after(calls):
        """A reader that fails at its last call, in the middle of a file."""
        left = [calls]

        def read_some(path, report):
            left[0] -= 1
            for i, document in enumerate(read(path, report)):
                if left[0] == 0 and i == 20:
                    raise InterruptedError
                yield document

        return read_some

    # Three files are hashed, then written. Written files are read again for the report.
    for calls in (1, 2, 2, 2, 2, 3):
        with pytest.raises(InterruptedError):
            deduplicate_files(files, tmp_path / "out", tmp_path / "work", stopped_after(calls))
    report, reading = deduplicate_files(files, tmp_path / "out", tmp_path / "work", read)
    written = [
        json.loads(line) for path in sorted((tmp_path / "out").iterdir()) for line in path.open(encoding="utf-8")
    ]
    assert written == kept
    assert report == expected
    assert reading.records == len(documents)
    with pytest.raises(PlamoError, match="belongs to a run with other files or settings"):
        deduplicate_files(files[:2], tmp_path / "out", tmp_path / "work", read)


@pytest.mark.parametrize(("rate", "ends"), [(0.2, False), (0.05, True)])
def test_the_share_of_bad_records_is_that_of_all_files(tmp_path, rate, ends):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": f"文書 {i}"}) + "\n" for i in range(9)), encoding="utf-8")
    bad.write_text(json.dumps({"text": ""}) + "\n", encoding="utf-8")
    arguments = [good, bad], tmp_path / "out", tmp_path / "work", read
    if ends:
        with pytest.raises(PlamoError, match="1 bad records among 10"):
            deduplicate_files(*arguments, max_bad_rate=rate)
    else:
        _, reading = deduplicate_files(*arguments, max_bad_rate=rate)
        assert (reading.records, reading.bad) == (10, 1)


def test_the_command_removes_duplicates_in_processes(real_documents, tmp_path, capsys):
    documents = planted(real_documents)
    write_files(tmp_path / "in", documents)
    command = ["data", "deduplicate", "--input", tmp_path / "in", "--output", tmp_path / "out", "--processes", "2"]
    assert main([*map(str, command)]) == 0
    kept, expected = run([document for i in range(3) for document in documents[i::3]])
    assert expected.summary() in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["deduplication"] == expected.to_json()
    lines = [line for path in sorted((tmp_path / "out").glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    assert [json.loads(line) for line in lines] == kept
    assert not (tmp_path / "out.work").exists()
    assert main([*map(str, command)]) == 2


def test_a_work_folder_with_other_files_is_refused(tmp_path, capsys):
    """The command removes the work folder at the end."""
    (tmp_path / "in.jsonl").write_text('{"text": "a text"}\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    arguments = [
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "mine"),
    ]
    assert main(["data", "deduplicate", *arguments]) == 2
    assert "contains other files: give the name of a new folder for --work" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_file_that_became_shorter_is_refused(tmp_path, real_documents):
    """Without the check, the rest of its documents would be missing from the output."""
    path, reads = tmp_path / "in.jsonl", []
    path.write_text("".join(json.dumps(document) + "\n" for document in real_documents[:4]))

    def read(file, report):
        reads.append(file)
        documents = list(read_documents([file], report=report))
        return iter(documents if len(reads) == 1 else documents[:3])

    with pytest.raises(PlamoError, match="has changed since"):
        deduplicate_files([path], tmp_path / "out", tmp_path / "work", read)
    assert not list((tmp_path / "out").glob("*.jsonl"))
