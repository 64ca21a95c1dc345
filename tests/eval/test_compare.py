"""Tests of paired comparisons."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.compare import compare, table


def write(folder, scores, *, data="00", prompt="p", questions=None, metric="accuracy", judge=None, **provenance):
    """A result of the task `made` with the accuracies of items."""
    folder = folder / "made"
    folder.mkdir(parents=True)
    result = {"task": "made", "metric": metric, "metrics": {}, "model": {}, "judge": judge}
    result["provenance"] = {"data_sha256": data, **provenance}
    result |= {"settings": {}, "versions": {}, "tokens": {}, "n": len(scores), "failed": 0}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    rows = [
        {"id": id, "question": (questions or {}).get(id, id), "prompt_hash": prompt + id, "scores": {"accuracy": score}}
        for id, score in scores.items()
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_interval_is_that_of_a_paired_t_test_on_common_items(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.random(40), rng.random(40)
    write(tmp_path / "a", {str(i): one for i, one in enumerate(first)} | {"only": 1.0})
    write(tmp_path / "b", {str(i): one for i, one in enumerate(second)})
    comparison = compare(tmp_path / "a", tmp_path / "b")["made"]
    expected = stats.ttest_rel(second, first)
    found = comparison.scores["accuracy"]
    assert found.difference == pytest.approx(np.mean(second - first))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.items, comparison.only_first, comparison.only_second) == (40, 1, 0)
    assert f"{np.mean(second - first):+.4f}" in table(tmp_path / "a", tmp_path / "b", {"made": comparison})


def test_trials_of_a_question_are_one_observation(tmp_path):
    ids = [f"{q}/{trial}" for q in "abcde" for trial in range(4)]
    questions = {id: id[0] for id in ids}
    write(tmp_path / "a", dict.fromkeys(ids, 0.0), questions=questions)
    write(tmp_path / "b", {id: float(id[0] in "ab") for id in ids}, questions=questions)
    found = compare(tmp_path / "a", tmp_path / "b")["made"].scores["accuracy"]
    assert (found.questions, found.items, found.difference) == (5, 20, 0.4)
    spread = math.sqrt(sum((x - 0.4) ** 2 for x in (1, 1, 0, 0, 0)) / 4 / 5)
    assert found.interval[1] == pytest.approx(0.4 + stats.t.ppf(0.975, 4) * spread)


def test_items_with_one_text_are_several_questions(tmp_path):
    ids = [str(i) for i in range(6)]
    write(tmp_path / "a", dict.fromkeys(ids, 0.0), questions=dict.fromkeys(ids, "Which is right?"))
    write(tmp_path / "b", {id: float(id in "012") for id in ids}, questions=dict.fromkeys(ids, "Which is right?"))
    assert compare(tmp_path / "a", tmp_path / "b")["made"].scores["accuracy"].questions == 6


def test_equal_differences_have_no_interval(tmp_path):
    write(tmp_path / "a", {"x": 0.0, "y": 0.0})
    write(tmp_path / "b", {"x": 1.0, "y": 1.0})
    found = compare(tmp_path / "a", tmp_path / "b")["made"].scores["accuracy"]
    assert (found.difference, found.interval, found.p_value) == (1.0, None, None)


def test_equal_and_single_results(tmp_path):
    write(tmp_path / "a", {"x": 1.0})
    assert compare(tmp_path / "a", tmp_path / "a")["made"].scores["accuracy"].interval is None
    write(tmp_path / "b", {"x": 1.0, "y": 0.0})
    found = compare(tmp_path / "b", tmp_path / "b")["made"].scores["accuracy"]
    assert (found.interval, found.p_value) == ((0.0, 0.0), 1.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": "11"}, "the data differs"),
        ({"prompt": "q"}, "the prompt of the item x differs"),
        ({"metric": "f1"}, "the metric differs"),
        ({"judge": {"model": "large"}}, "the judge differs \\(None and {'model': 'large'}\\)"),
        ({"rubric_sha256": "22"}, "the sha256 of the rubrics differs"),
        ({"baseline": {"sha256": "33"}}, "the sha256 of the baseline's answers differs"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, other, message):
    write(tmp_path / "a", {"x": 1.0, "y": 0.0})
    write(tmp_path / "b", {"x": 1.0, "y": 0.0}, **other)
    with pytest.raises(PlamoError, match=message):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_judge_may_have_moved_to_another_folder(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, {"x": 1.0}, judge={"model": f"{folder}/judge", "fingerprint": "44"})
    assert compare(tmp_path / "a", tmp_path / "b")["made"].scores["accuracy"].items == 1


def test_folders_without_results_are_refused(tmp_path):
    write(tmp_path / "a", {"x": 1.0})
    with pytest.raises(PlamoError, match="has no results"):
        compare(tmp_path / "a", tmp_path / "nothing")
    (tmp_path / "a" / "made" / "answers.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(PlamoError, match=r"answers\.jsonl, line 1 is not an answer"):
        compare(tmp_path / "a", tmp_path / "a")
