"""The bundled corpus is what its manifest says, speaks the languages it names, and keeps its held-out split apart."""

import hashlib
import json
import lzma
import re

import numpy as np
import pytest

from plamo2_jax.data import corpus
from plamo2_jax.data.clean import guess_language, normalize_text
from plamo2_jax.data.minhash import DedupConfig, Signer, similarity, squeeze

WINDOW = {"ja": 25, "en": 50}


@pytest.fixture(scope="module")
def all_documents() -> list[dict[str, str]]:
    return list(corpus.documents())


def windows(text: str, size: int) -> set[str]:
    text = squeeze(text)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def test_manifest_hashes_and_counts_hold(all_documents):
    manifest = corpus.manifest()
    for name, facts in manifest["files"].items():
        packed = (corpus.bundled_folder() / name).read_bytes()
        raw = lzma.decompress(packed)
        assert hashlib.sha256(packed).hexdigest() == facts["sha256"]
        assert hashlib.sha256(raw).hexdigest() == facts["jsonl_sha256"]
        assert (len(packed), len(raw)) == (facts["bytes"], facts["jsonl_bytes"])
    assert manifest["heldout_fraction"] == corpus.HELDOUT_FRACTION
    for language, splits in manifest["languages"].items():
        for split, facts in splits.items():
            mine = list(corpus.documents(language, split))
            assert len(mine) == facts["documents"]
            assert sum(len(d["text"].encode()) for d in mine) == facts["text_bytes"]
    assert len(all_documents) == sum(s["documents"] for by in manifest["languages"].values() for s in by.values())


def test_documents_have_their_fields_and_unique_ids_in_order(all_documents):
    for document in all_documents:
        assert set(document) == set(corpus.FIELDS)
        assert all(isinstance(value, str) and value for value in document.values())
        assert document["id"] == document["pair"].replace("/", f"/{document['language']}/", 1)
    ids = [(d["language"] != "ja", d["id"]) for d in all_documents]
    assert ids == sorted(set(ids))


def test_size_is_worth_training_on():
    for language in corpus.LANGUAGES:
        sizes = {s: sum(len(d["text"].encode()) for d in corpus.documents(language, s)) for s in ("train", "heldout")}
        assert sizes["train"] > 2_500_000
        assert sizes["heldout"] > 150_000


def test_languages_are_what_they_say(all_documents):
    for document in all_documents:
        assert guess_language(document["text"]) == document["language"], document["id"]
    japanese = "".join(d["text"] for d in all_documents if d["language"] == "ja")
    english = "".join(d["text"] for d in all_documents if d["language"] == "en")
    script = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
    assert len(script.findall(japanese)) > 0.6 * len(re.findall(r"[^\W\d_]", japanese))
    assert len(script.findall(english)) < 0.001 * len(english)


def test_text_is_clean(all_documents):
    for document in all_documents:
        text = document["text"]
        assert normalize_text(text) == text
        # One page shows what a file name in the wrong encoding looks like.
        assert "\ufffd" not in text or "convmv" in text
        assert not re.search(r"</?(?:div|span|p|td|li|code|emph)\b[^>]*(?:class|id)=", text), document["id"]
        assert not re.search(r"&(?:nbsp|amp|lt|gt|quot);(?=[ぁ-ん一-龥])", text), document["id"]


def test_every_license_is_bundled(all_documents):
    licenses = corpus.manifest()["licenses"]
    assert {d["license"] for d in all_documents} == set(licenses)
    texts = {name: (corpus.bundled_folder() / file).read_text(encoding="utf-8") for name, file in licenses.items()}
    assert "Mozilla Public License" in texts["MPL-2.0"]
    assert "Creative Commons Attribution-ShareAlike 3.0" in texts["CC-BY-SA-3.0"]
    attribution = (corpus.bundled_folder() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for source in {d["source"] for d in all_documents}:
        assert f"`{source}`" in attribution
    for package in corpus.manifest()["packages"]:
        assert f"{package['package']} {package['version']}" in attribution


def test_most_pages_have_their_translation(all_documents):
    pairs = {language: {d["pair"] for d in all_documents if d["language"] == language} for language in corpus.LANGUAGES}
    assert len(pairs["ja"] & pairs["en"]) > 0.9 * len(pairs["ja"])


def test_splits_partition_the_documents(all_documents):
    train = {d["id"] for d in corpus.documents(split="train")}
    heldout = {d["id"] for d in corpus.documents(split="heldout")}
    assert not train & heldout
    assert train | heldout == {d["id"] for d in all_documents}
    # A translation is never on the other side.
    assert not {d["pair"] for d in corpus.documents(split="train")} & {
        d["pair"] for d in corpus.documents(split="heldout")
    }


def test_split_depends_on_the_key_alone_and_has_its_fraction():
    keys = [f"source/page{i}" for i in range(20_000)]
    share = sum(corpus.split_of(key) == "heldout" for key in keys) / len(keys)
    assert abs(share - corpus.HELDOUT_FRACTION) < 0.006
    # Golden: a change of the rule would silently move documents between the splits of existing models.
    assert corpus.split_of("debian-handbook/sect.selected-approach") == "heldout"
    assert corpus.split_of("debian-handbook/apt") == "train"


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_no_train_paragraph_repeats_heldout_text(language):
    size = WINDOW[language]
    known: set[str] = set()
    for document in corpus.documents(language, "heldout"):
        for paragraph in document["text"].split("\n"):
            known |= windows(paragraph, size)
    assert len(known) > 30_000
    shared = [
        paragraph
        for document in corpus.documents(language, "train")
        for paragraph in document["text"].split("\n")
        if not known.isdisjoint(windows(paragraph, size))
    ]
    assert not shared


def test_no_train_document_is_a_near_duplicate_of_a_heldout_one():
    signer = Signer(DedupConfig(permutations=64))
    heldout = np.stack([signer(d["text"])[1] for d in corpus.documents(split="heldout")])
    for document in corpus.documents(split="train"):
        _, signature = signer(document["text"][:20_000])
        assert similarity(signature, heldout).max() < 0.7, document["id"]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="language='fr' is not allowed: it must be None or one of ja, en"):
        corpus.documents("fr")
    with pytest.raises(ValueError, match="split='test' is not allowed: it must be one of all, train, heldout"):
        corpus.documents("ja", "test")


def test_other_folders_are_read_alike(tmp_path):
    some = list(corpus.documents("ja"))[:3]
    lines = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in some)
    (tmp_path / "ja.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    assert list(corpus.documents("ja", folder=tmp_path)) == some
    with pytest.raises(FileNotFoundError, match=r"en\.jsonl\.xz"):
        list(corpus.documents("en", folder=tmp_path))


def test_manifest_is_plain_json():
    text = (corpus.bundled_folder() / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text) == corpus.manifest()
