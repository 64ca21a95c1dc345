"""The quality model: features, training, calibration, files and commands."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from plamo2_jax.cli.main import main
from plamo2_jax.data import corpus
from plamo2_jax.data.quality import QualityModel, auc, features
from plamo2_jax.data.quality_training import QualityConfig, calibration_error, platt, train_quality
from plamo2_jax.errors import PlamoError


def markov(texts, order, count, length, seed=0):
    """Texts of a Markov chain of characters: locally plausible, without sense."""
    after = {}
    for text in texts:
        for i in range(len(text) - order):
            after.setdefault(text[i : i + order], []).append(text[i + order])
    rng, starts = random.Random(seed), sorted(after)
    made = []
    for _ in range(count):
        text = rng.choice(starts)
        while len(text) < length:
            text += rng.choice(after.get(text[-order:]) or [rng.choice(starts)])
        made.append(text)
    return made


@pytest.fixture(scope="module")
def classes():
    """Real pages, and texts of a chain that has read other pages."""
    return shuffled_pages()[:250], markov(shuffled_pages()[250:500], 2, 250, 400)


def shuffled_pages():
    """Beginnings of pages; the corpus has them in the order of their sources."""
    pages = [d["text"][:400] for d in corpus.documents("ja", "train") if len(d["text"]) > 400]
    random.Random(0).shuffle(pages)
    return pages


@pytest.fixture(scope="module")
def trained(classes):
    good, bad = classes
    return train_quality(good + bad, [1.0] * len(good) + [0.0] * len(bad))


def test_real_text_is_told_from_a_markov_chain(trained, classes):
    assert trained.training["heldout_auc"] > 0.9 > trained.training["length_auc"]
    # Other pages, and a chain that has read yet others.
    pages = shuffled_pages()[500:]
    real, fresh = pages[::2], markov(pages[1::2], 2, 100, 400, seed=1)
    scores = [trained.probability(text) for text in real + fresh]
    assert auc(scores, [True] * len(real) + [False] * len(fresh)) > 0.7


def test_training_is_deterministic_and_learns_scores(classes):
    good, bad = classes
    texts, scores = good[:60] + bad[:60], [0.75] * 60 + [0.25] * 60
    first, second = (train_quality(texts, scores) for _ in range(2))
    assert np.array_equal(first.weights, second.weights)
    assert (first.scale, first.shift, first.training) == (second.scale, second.shift, second.training)
    # Soft targets give softer probabilities.
    certain = train_quality(texts, np.round(scores))
    distances = [np.mean([abs(model.probability(text) - 0.5) for text in texts]) for model in (first, certain)]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(("good", "bad", "fraction", "empty"), [(10, 40, 0.96, "good"), (40, 10, 0.96, "bad")])
def test_a_class_without_training_texts_is_refused(good, bad, fraction, empty):
    """round(0.96 * 10) is 10: all ten texts of the smaller class would be held out."""
    with pytest.raises(
        PlamoError, match=rf"heldout_fraction=0\.96 leaves no {empty} text for training .* Lower heldout_fraction"
    ):
        train_quality(["text"] * (good + bad), [1.0] * good + [0.0] * bad, QualityConfig(heldout_fraction=fraction))


@given(st.text(max_size=200))
def test_the_logit_is_the_mean_weight_of_the_features(text):
    weights = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    model, bins = QualityModel(weights, 0.25, 1.0, 0.0, {}), features(text)
    assert np.all((bins >= 0) & (bins < 1 << 20))
    assert np.isclose(model.logit(text), 0.25 + (weights[bins].astype(float).mean() if bins.size else 0), atol=1e-6)
    assert np.array_equal(bins, features(text.replace(" ", " \n")))


def test_features_are_the_ngrams_of_the_folded_text():
    # " ab " has three pairs, two triples and one text of four characters.
    assert len(features("AB")) == 6
    assert np.array_equal(features("AB"), features("\nab\t"))
    assert len(set(features("あいう").tolist()) & set(features("あい").tolist())) == 3


def test_auc_counts_pairs():
    scores, labels = [0.1, 0.4, 0.4, 0.8, 0.4], [0, 0, 1, 1, 1]
    both = list(zip(scores, labels, strict=True))
    pairs = [(a > b) + (a == b) / 2 for a, x in both for b, y in both if x > y]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    with pytest.raises(PlamoError, match="both positive and negative"):
        auc([1, 2], [1, 1])


def test_platt_scaling_finds_the_scale_of_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    targets = rng.random(20_000) < 1 / (1 + np.exp(-(3 * logits - 1)))
    scale, shift = platt(logits, targets)
    assert (scale, shift) == (pytest.approx(3, rel=0.05), pytest.approx(-1, rel=0.1))
    assert calibration_error(1 / (1 + np.exp(-(scale * logits + shift))), targets) < 0.01
    # Separated classes keep finite numbers.
    assert np.isfinite(platt(np.array([-1.0, 1.0]), np.array([0, 1]))).all()


def test_a_model_is_saved_and_read(trained, tmp_path):
    trained.save(tmp_path / "quality.safetensors")
    read = QualityModel.load(tmp_path / "quality.safetensors")
    assert np.array_equal(read.weights, trained.weights)
    assert dataclass_numbers(read) == dataclass_numbers(trained)


def dataclass_numbers(model):
    return model.bias, model.scale, model.shift, model.training


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"no"), "cannot be read as a quality model"),
        (lambda path: save_file({"weights": np.zeros(3)}, path), "is not a quality model"),
        (
            lambda path: save_file(load_file(path) | {"numbers": np.zeros(2)}, path, {"format": "plamo2 quality 1"}),
            "its tensors have the shapes",
        ),
        (
            lambda path: save_file(
                load_file(path) | {"numbers": np.array([0, np.nan, 1])}, path, {"format": "plamo2 quality 1"}
            ),
            "not finite",
        ),
    ],
)
def test_a_damaged_model_is_one_sentence(trained, tmp_path, damage, message):
    path = tmp_path / "quality.safetensors"
    trained.save(path)
    damage(path)
    with pytest.raises(PlamoError, match=message):
        QualityModel.load(path)


def test_the_commands_train_and_score(classes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, texts in zip(("good", "bad"), classes, strict=True):
        lines = (json.dumps({"id": f"{name}{i}", "text": text}) + "\n" for i, text in enumerate(texts))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    assert main(["data", "quality", "--good", "good.jsonl", "--bad", "bad.jsonl", "--output", "q.safetensors"]) == 0
    assert re.search(r"AUC (0\.9|1\.0)", capsys.readouterr().out)
    assert main(["data", "score", "good.jsonl", "scored.jsonl", "--model", "q.safetensors", "--at-least", "0.5"]) == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert len(scored) > 0.8 * len(classes[0])
    model = QualityModel.load(tmp_path / "q.safetensors")
    assert all(one["quality"] == round(model.probability(one["text"]), 6) >= 0.5 for one in scored)
    # The scores of a judge are labels too.
    (tmp_path / "scored5.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "score": score}) + "\n"
            for texts, score in zip(classes, (5, 1), strict=True)
            for text in texts
        )
    )
    assert main(["data", "quality", "--scored", "scored5.jsonl", "--output", "q5.safetensors"]) == 0
    capsys.readouterr()
    for command, message in [
        ("data quality --good good.jsonl --output q.safetensors", "give either --good and --bad, or --scored"),
        ("data quality --scored good.jsonl --output q.safetensors", "good0: the field score is None"),
        ("data score good.jsonl s.jsonl --model good.jsonl", "cannot be read as a quality model"),
        ("data score good.jsonl s.jsonl --model q.safetensors --field text", "--field text is not allowed"),
    ]:
        assert main(command.split()) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "s.jsonl").exists()
