"""Held-out bits per byte against a sum by hand, and xz against xz."""

import dataclasses
import json
import lzma
import math
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.data.batch import batch_shapes
from plamo2_jax.data.corpus import documents
from plamo2_jax.data.documents import Document
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.data.shards import open_shards
from plamo2_jax.eval.heldout import compare, xz_bits_per_byte
from plamo2_jax.model.bits_per_byte import evaluation_step
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, init_params
from support.models import tiny
from support.tokenizers import byte_tokenizer

LENGTH = 48
CONFIG = tiny()
MODEL = Plamo2(CONFIG, dtype=jnp.float32)
TOKENIZER = byte_tokenizer()


def texts(language):
    return [entry["text"][:150] for _, entry in zip(range(3), documents(language, "heldout"), strict=False)]


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    """Folders of shards of real text by language."""
    root = tmp_path_factory.mktemp("heldout")
    for language in ("ja", "en"):
        some = [Document(text, str(i), {"language": language}) for i, text in enumerate(texts(language))]
        write_shards(some, TOKENIZER, root / language, progress=False)
    return {language: root / language for language in ("ja", "en")}


@pytest.fixture(scope="module")
def params():
    initial = jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()
    # Larger than a new model's, so that no two tokens cost the same.
    return jax.tree.map(lambda leaf: 3 * leaf, initial)


@pytest.fixture(scope="module")
def results(params, heldout):
    return compare(MODEL, params, TOKENIZER, heldout, sequence_length=LENGTH, batch_size=2)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_bits_per_byte_by_hand(results, params, language):
    """Each piece of each document by itself: nats of every target, the end's too, over ln 2 and the text's bytes."""
    apply = jax.jit(lambda tokens: MODEL.apply({"params": params}, tokens)[0])
    nats, targets = 0.0, 0
    for text in texts(language):
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text).tolist(), TOKENIZER.eos_id]
        for start in range(0, len(ids) - 1, LENGTH):
            piece = ids[start : start + LENGTH + 1]
            # Padded behind to one shape; a causal model does not see it.
            row = np.pad(piece, (0, LENGTH + 1 - len(piece)))
            logits = np.asarray(apply(row[None, :-1]), np.float64)[0, : len(piece) - 1]
            log_z = np.log(np.exp(logits).sum(-1))
            nats += (log_z - logits[np.arange(len(piece) - 1), piece[1:]]).sum()
            targets += len(piece) - 1
    size = sum(len(text.encode()) for text in texts(language))
    result = results[language].model
    assert (result.tokens, result.bytes) == (targets, size)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_batches_do_not_matter(results, params, heldout):
    again = compare(MODEL, params, TOKENIZER, heldout, sequence_length=LENGTH, batch_size=5)
    for language, result in results.items():
        assert again[language].model.nats == pytest.approx(result.model.nats, rel=1e-6)
        assert again[language].model.correct == result.model.correct


@pytest.mark.parametrize("language", ["ja", "en"])
def test_xz_sees_the_very_text(results, heldout, language):
    text = "\n".join(texts(language)).encode()
    expected = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert results[language].xz_bits_per_byte == expected
    assert xz_bits_per_byte(open_shards(heldout[language]), TOKENIZER) == expected


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz command is not installed")
def test_xz_is_the_command(results):
    text = "\n".join(texts("en")).encode()
    size = len(subprocess.run(["xz", "-9e", "--stdout"], input=text, capture_output=True, check=True).stdout)
    assert results["en"].xz_bits_per_byte == pytest.approx(8 * size / len(text), rel=0.02)


def test_padded_rows_of_the_embedding_have_no_bytes():
    lengths = TOKENIZER.padded_byte_lengths(400)
    assert lengths.shape == (400,)
    assert not lengths[TOKENIZER.vocab_size :].any()
    with pytest.raises(ValueError, match=r"ModelConfig\.vocab_size=319 is not allowed"):
        TOKENIZER.padded_byte_lengths(319)


def test_the_default_batch_of_a_large_vocabulary_stays_under_a_gigabyte():
    model = Plamo2(dataclasses.replace(CONFIG, vocab_size=100_000), dtype=jnp.float32)
    # The defaults of `plamo2 evaluate`; whole rows of logits would take 6.6 GB.
    step = evaluation_step(model, np.ones(100_000, np.int32))
    memory = step.lower(abstract_params(model), batch_shapes(8, 2048)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e9


def test_the_verb_prints_and_writes(results, params, heldout, tmp_path, capsys):
    checkpoint.save_model(tmp_path / "model", CONFIG, params, TOKENIZER)
    folders = [f"{language}={folder}" for language, folder in heldout.items()]
    options = ["--sequence-length", str(LENGTH), "--output", str(tmp_path / "out" / "evaluation.json")]
    assert main(["evaluate", str(tmp_path / "model"), "--heldout", *folders, *options]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for language, result in results.items():
        assert written["languages"][language]["bits_per_byte"] == pytest.approx(result.model.bits_per_byte, rel=1e-6)
        assert f"{result.model.bits_per_byte:.4f}" in printed
        assert f"{result.xz_bits_per_byte:.4f}" in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [("ja", "must be NAME=PATH"), ("=x", "must be NAME=PATH"), ("ja=", "must be NAME=PATH")],
)
def test_a_bad_heldout_argument_is_named(argument, message, capsys):
    assert main(["evaluate", "model", "--heldout", argument]) == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "NAME=PATH" in text
    assert "models with different vocabularies can be compared" in text
