"""The TFDS builder writes ArrayRecord and reads it back, in an interpreter without TensorFlow."""

import importlib.util
import sys

import grain
import pytest
import tensorflow_datasets as tfds

import plamo2_jax.data.tfds_builder
from plamo2_jax.data import corpus


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.data_source("plamo2_corpus/ja", split="heldout", data_dir=folder)
    return folder


def decoded(record: dict) -> dict[str, str]:
    return {name: value.decode() for name, value in record.items()}


def test_name_and_configs():
    assert plamo2_jax.data.tfds_builder.Plamo2Corpus.name == "plamo2_corpus"
    assert set(plamo2_jax.data.tfds_builder.Plamo2Corpus.builder_configs) == {"all", "ja", "en"}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_records_are_the_documents_in_order(data_dir, split):
    source = tfds.data_source("plamo2_corpus/ja", split=split, data_dir=data_dir)
    expected = list(corpus.documents("ja", split))
    assert len(source) == len(expected)
    assert [decoded(source[i]) for i in range(len(source))] == expected


def test_split_slicing(data_dir):
    whole = tfds.data_source("plamo2_corpus/ja", split="heldout", data_dir=data_dir)
    part = tfds.data_source("plamo2_corpus/ja", split="heldout[10:25]", data_dir=data_dir)
    assert [decoded(part[i]) for i in range(len(part))] == [decoded(whole[i]) for i in range(10, 25)]


def test_feeds_grain(data_dir):
    source = tfds.data_source("plamo2_corpus/ja", split="heldout", data_dir=data_dir)
    dataset = grain.MapDataset.source(source).shuffle(seed=1).map(lambda record: record["text"].decode())
    texts = [dataset[i] for i in range(len(dataset))]
    assert sorted(texts) == sorted(d["text"] for d in corpus.documents("ja", "heldout"))


def test_info_says_license_and_format(data_dir):
    builder = tfds.builder("plamo2_corpus/ja", data_dir=data_dir)
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert "MPL-2.0" in builder.info.redistribution_info.license
    assert builder.info.splits["heldout"].num_examples == corpus.manifest()["languages"]["ja"]["heldout"]["documents"]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_tensorflow_was_not_needed(data_dir):
    assert "tensorflow" not in sys.modules
