"""The tasks of the demo: gaps in held-out pages, and prompts with rules."""

import json

import pytest

from plamo2_jax.data.corpus import documents
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.models import ChatResponse, Score


class Model:
    """A chat model that scores continuations by a function, and answers every conversation with one text."""

    parallel, complete = False, None

    def __init__(self, logprob=None, text=""):
        self.logprob, self.text, self.description = logprob, text, {}

    def score(self, requests):
        return [[Score(self.logprob(one.context, text), False, ()) for text in one.continuations] for one in requests]

    def chat(self, requests, *, accept=None):
        return [[ChatResponse(self.text, "stop")] for _ in requests]


def test_the_gaps_are_in_held_out_pages_and_the_words_in_training_pages():
    task = open_task("cloze", TaskOptions())
    texts = {document["id"]: document["text"] for document in documents(None, "heldout")}
    assert sum(item.group == "ja" for item in task.items) > 60
    assert sum(item.group == "en" for item in task.items) > 100
    for item in task.items:
        assert item.question.replace("____", item.reference) in texts[item.id]
        request = next(task.requests(item))
        assert len(set(request.continuations)) == 4
        after = item.question.partition("____")[2]
        words = {text.removesuffix(after) for text in request.continuations}
        assert not any(word in item.question for word in words - {item.reference})
    lengths = [sorted(map(len, next(task.requests(item)).continuations)) for item in task.items]
    assert all(most - least <= 2 for least, *_, most in lengths)


def test_a_model_that_knows_the_pages_is_right_and_one_that_takes_the_first_is_at_chance():
    task = open_task("cloze", TaskOptions(kinds=("ja",)))
    pages = "\n".join(document["text"] for document in documents("ja", "heldout"))
    for model, least, most in (
        (Model(lambda context, text: float(context + text in pages)), 1.0, 1.0),
        (Model(lambda context, text: 0.0), 0.1, 0.4),
    ):
        scores = task.score(task.items, answer_items(task, model))
        assert least <= task.summarize(task.items, scores)["accuracy"].value <= most
    with pytest.raises(ValueError, match="--kinds fr is not allowed for cloze"):
        open_task("cloze", TaskOptions(kinds=("fr",)))


def record(number, **fields):
    messages = [{"role": "user", "content": "質問"}, {"role": "assistant", "content": "答え"}]
    return {"id": str(number), "messages": messages, "rules": {"language": "ja", "characters": [1, 4]}} | fields


def test_rules_score_answers(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [record(0, task="question"), record(1, rules={"contains": ["あ", "い"]}, task="other")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = open_task("rules", TaskOptions(path=path))
    request = next(task.requests(task.items[0]))
    assert [message["role"] for message in request.messages] == ["user"]
    scores = task.score(task.items, answer_items(task, Model(text="ああああああああ")))
    assert scores == [{"score": 0.75, "language": 1.0, "characters": 0.5}, {"score": 0.5, "contains": 0.5}]
    metrics = task.summarize(task.items, scores)
    assert metrics["score"].value == 0.625
    assert metrics["score/question"].value == 0.75
    for line, message in (
        (record(2, rules=None), 'it must have "messages", objects with role and content, and "rules"'),
        (record(3, rules={"odd": 1}), "the rule 'odd' is unknown"),
        (record(0), "an id that occurs once"),
    ):
        path.write_text("".join(json.dumps(one) + "\n" for one in (lines[0], line)))
        with pytest.raises(ValueError, match=message):
            open_task("rules", TaskOptions(path=path))
