"""Tests of tasks that a user describes in YAML."""

import json
import math

import pytest
import yaml

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.run import answer_items, run_task
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks.user import character_f1, open_file
from support.canned_model import CannedModel

ROWS = [
    {"q": "日本", "a": "東京", "b": "横浜市", "t": "A", "area": "asia"},
    {"q": "英国", "a": "バース", "b": "ロンドン", "t": "ロンドン", "area": "europe"},
    {"q": "仏国", "a": "パリ", "b": "リヨン", "t": "0", "area": "europe"},
]
CHOICE = {
    "name": "capitals",
    "kind": "multiple_choice",
    "data": "rows.jsonl",
    "prompt": "{{ q }}の首都:",
    "choices": ["{{ a }}", "{{ b }}"],
    "target": "{{ t }}",
}
TEXT = {"name": "text", "kind": "generate", "data": "rows.jsonl", "prompt": "{{ q }} x", "target": "{{ q }} X"}


def open_tasks(folder, *tasks, **options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "tasks.yaml").write_text(yaml.safe_dump(list(tasks), allow_unicode=True), encoding="utf-8")
    return open_file(folder / "tasks.yaml", TaskOptions(**options))


def test_multiple_choice_with_examples(tmp_path):
    (task,) = open_tasks(tmp_path, CHOICE | {"shots": 1, "group": "area"})
    model = CannedModel()
    result = run_task(task, model)
    # The first record is the example. The canned model prefers the shorter choice: バース before ロンドン, パリ before リヨン.
    assert model.asked == [("score", f"日本の首都:東京\n\n{q}の首都:") for q in ("仏国", "英国")]
    assert (result["score"], result["n"], result["metrics"]["accuracy/europe"]["value"]) == (0.5, 2, 0.5)
    assert result["provenance"]["chance"] == 0.5
    assert result["provenance"]["examples"] == ["rows.jsonl, line 1"]


def test_choices_of_a_field_and_shots_of_the_command_line(tmp_path):
    ROWS_WITH_LISTS = [row | {"all": [row["a"], row["b"], "?"]} for row in ROWS]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS_WITH_LISTS), encoding="utf-8")
    (task,) = open_tasks(tmp_path, CHOICE | {"choices": "all", "data": "lists.jsonl"}, shots=2)
    assert [item.question for item in task.items] == ["仏国の首都:"]
    assert task.items[0].reference == {"choice": 0, "text": "パリ"}
    assert task.provenance["chance"] == pytest.approx(1 / 3)


def test_generated_answers_by_completion_and_chat(tmp_path):
    both = open_tasks(tmp_path, TEXT, TEXT | {"name": "chat", "mode": "chat", "system": "短く。", "shots": 1})
    for task, kind, count in zip(both, ("complete", "chat"), (3, 2), strict=True):
        model = CannedModel()
        result = run_task(task, model)
        assert {one for one, _ in model.asked} == {kind}
        assert (result["score"], result["n"]) == (1.0, count)
    request = next(both[1].requests(both[1].items[0]))
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]


def test_trials_have_seeds_of_their_own(tmp_path):
    (task,) = open_tasks(tmp_path, TEXT | {"temperature": 1.0}, trials=2, seed=5)
    assert [item.id for item in task.items] == ["1/1", "1/2", "2/1", "2/2", "3/1", "3/2"]
    assert [next(task.requests(item)).seed for item in task.items[:2]] == [5, 6]


def test_trials_of_a_record_are_one_observation(tmp_path):
    (task,) = open_tasks(tmp_path, TEXT | {"temperature": 1.0}, trials=50)
    scores = [{"exact_match": float(item.id.startswith("1/"))} for item in task.items]
    found = task.summarize(task.items, scores)["exact_match"]
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)
    assert found.stderr == pytest.approx(math.sqrt(sum((x - 1 / 3) ** 2 for x in (1, 0, 0)) / 2 / 3))


def test_accepted_texts(tmp_path):
    (task,) = open_tasks(tmp_path, TEXT | {"target": "a"})
    # The name of a field stands for its text.
    assert task.items[0].reference == [ROWS[0]["a"]]
    with pytest.raises(PlamoError, match=r"an accepted text of rows.jsonl, line 1 is empty"):
        open_tasks(tmp_path, TEXT | {"target": " "})


def test_a_wrong_target_among_many_choices_is_named(tmp_path):
    with pytest.raises(PlamoError, match=r"a letter from A to Z, or a number from 0 to 29"):
        open_tasks(tmp_path, CHOICE | {"choices": [f"choice {i}" for i in range(30)], "target": "none"})


def test_rolling_is_the_ratio_of_sums(tmp_path):
    (task,) = open_tasks(tmp_path, {"name": "texts", "kind": "rolling", "data": "rows.jsonl", "prompt": "{{ b }}"})
    answers = answer_items(task, CannedModel())
    metrics = task.summarize(task.items, task.score(task.items, answers))
    # The canned model gives a nat to each character: 3 + 4 + 3 characters of three bytes, and one token a text.
    assert metrics["bits_per_byte"].value == pytest.approx(1 / 3 / math.log(2))
    assert metrics["bits_per_byte"].stderr == pytest.approx(0, abs=1e-9)
    assert metrics["perplexity"].value == pytest.approx(math.exp(10 / 3))


def test_character_f1():
    assert character_f1("東京都", "東京") == pytest.approx(0.8)
    assert character_f1("", "") == 1.0
    assert character_f1("あ", "い") == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "unknown field 'promt'; did you mean prompt?"),
        ({"kind": "quiz"}, "kind='quiz' is not allowed: it must be one of multiple_choice, generate, rolling"),
        ({"metric": "f1"}, "metric='f1' is not allowed: it must be one of accuracy, accuracy_normalized"),
        ({"choices": []}, "at least two templates"),
        ({"choices": ["{{ a }}"]}, "rows.jsonl, line 1 has 1 choices"),
        ({"target": "C"}, "the target 'C' of rows.jsonl, line 1 is not a choice"),
        (
            {"prompt": "{{ question }}"},
            "the template `prompt` fails for rows.jsonl, line 1: 'question' is undefined. The record has the ",
        ),
        ({"prompt": "{{ q"}, "the template `prompt` cannot be compiled"),
        ({"prompt": "{{ q.__class__.__mro__ }}"}, "access to attribute '__class__'"),
        ({"shots": 3}, "too few records for shots=3"),
        ({"shots": "3"}, "an integer of at least 0"),
        ({"stop": ["x"]}, "it applies only to generate"),
        ({"id": "area"}, "has the id 'europe' of an earlier record"),
        ({"group": "nothing"}, "has no field 'nothing'"),
        ({"data": "missing.jsonl"}, "missing.jsonl does not exist"),
        ({"name": "../up"}, "letters, digits"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(PlamoError) as error:
        open_tasks(tmp_path, CHOICE | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["name: [", "just text", "- 3", "a: &a [*a]\n"])
def test_what_is_not_a_task_is_refused(tmp_path, content):
    (tmp_path / "tasks.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(PlamoError, match=r"tasks\.yaml"):
        open_file(tmp_path / "tasks.yaml", TaskOptions())
