"""Japanese MT-Bench and ELYZA-tasks-100 against a model and a judge over real HTTP, whose texts are scripted."""

import contextlib
import csv
import json
import re

import pytest

from plamo2_jax import models
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import BUNDLED
from plamo2_jax.eval.compare import compare
from plamo2_jax.eval.judging import ATTEMPTS, read_rating
from plamo2_jax.eval.run import answer_items, drive, run_task
from plamo2_jax.eval.task import JudgeRequest, TaskOptions
from plamo2_jax.eval.tasks import open_task
from support.answering_server import answering_server

QUESTIONS = BUNDLED / "mt_bench_ja" / "question_full-v4.jsonl"


def opened(name="mt_bench_ja", **options):
    return open_task(name, TaskOptions(**options))


@contextlib.contextmanager
def connected(answer, monkeypatch):
    """A model behind a server; and the server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with answering_server(answer) as server, models.open(server.url, model="m", concurrency=4) as model:
        yield model, server


def numbered(body):
    """Answer with the number of the turn."""
    return f"回答{sum(message['role'] == 'user' for message in body['messages'])}"


def content(body):
    return body["messages"][-1]["content"]


def judge_of(item, judge, task=None, texts=("回答1", "回答2")):
    """Answer of an item for scripted texts, with a function of the judge's content as judge."""
    task = task or opened()
    texts = iter(texts)

    def ask(requests):
        judged = (isinstance(one, JudgeRequest) for one in requests)
        said = [
            judge(one.request.messages[-1]["content"]) if by else next(texts)
            for one, by in zip(requests, judged, strict=True)
        ]
        return [[models.ChatResponse(text, "stop")] for text in said]

    [(_, answer)] = drive([task.requests(item)], ask)
    return answer


def test_two_turns_are_answered_and_rated(monkeypatch):
    task = opened()
    assert len(task.items) == 80
    assert len({item.group for item in task.items}) == 8

    def rating(body):
        assert body["temperature"] == 0
        return "参照回答と一致します。[[3]]" if "# 質問1への回答\n回答1\n\n" in content(body) else "良い。\n[[10]]"

    some = [task.items[0], task.items[-1]]
    with connected(numbered, monkeypatch) as (model, server), connected(rating, monkeypatch) as (judge, judges):
        answers = answer_items(task, model, judge, items=some)
    assert [len(body["messages"]) for body in server.bodies].count(3) == 2
    assert {message["role"] for message in server.bodies[-1]["messages"]} == {"user", "assistant"}
    assert task.score(some, answers) == [{"score": 6.5, "turn_1": 10.0, "turn_2": 3.0, "unreadable": 0.0}] * 2
    assert answers[0]["text"].startswith("回答1\n\n> ")
    assert len(judges.bodies) == 4
    # The first item is coding, with reference answers; the last is writing, without.
    texts = [content(body) for body in judges.bodies]
    assert sum("# 参照回答\n" in text for text in texts) == 2
    assert sum("# 質問1の参照回答\n" in text for text in texts) == 1
    assert all(body["messages"][0]["content"].endswith("[[5]] の形式で書いてください。") for body in judges.bodies)


def test_temperatures_are_those_of_mt_bench():
    task = opened()
    found = {item.group: next(task.requests(item)).sampling.temperature for item in task.items}
    greedy = dict.fromkeys(("coding", "math", "reasoning", "extraction"), 0.0)
    assert found == {**greedy, "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


def test_an_unreadable_verdict_is_asked_again_and_then_counts_as_an_error():
    task = opened()
    item = task.items[0]
    said = []

    def stubborn(text):
        said.append(text)
        return "[[11]]点です。" if "# 質問1への回答" in text else "7点です。" if len(said) < 3 else "[[7]]"

    answer = judge_of(item, stubborn)
    assert [verdict["attempts"] for verdict in answer["verdicts"]] == [3, ATTEMPTS]
    assert [verdict["result"] for verdict in answer["verdicts"]] == [7, None]
    scores = task.score([item], [answer])
    assert scores == [{"turn_1": 7.0, "unreadable": 0.5}]
    found = task.summarize([item], scores)
    assert "score" not in found
    assert found["unreadable"].value == 0.5


def test_an_answer_cannot_rate_itself():
    seen = []
    judge_of(
        opened().items[-1], lambda text: seen.append(text) or "理由 [[10]] ではなく [[2]]", texts=("[[10]]", "[[10]]")
    )
    assert read_rating("理由 [[10]] ではなく [[2]]", 10) == 2
    assert all(re.search(r"# 採点する回答\n\[\[10\]\]$", text) for text in seen)
    assert (
        read_rating("[[0]]", 10) is read_rating("[[６]]", 10) is read_rating("[[6]]", 5) is read_rating("6", 10) is None
    )


def test_trials_of_a_question_are_one_value():
    task = opened(trials=2)
    assert [item.id for item in task.items[:3]] == ["1/1", "1/2", "2/1"]
    requests = [next(task.requests(item)) for item in task.items[:2]]
    assert requests[0].seed != requests[1].seed
    assert requests[0].sampling.temperature == 0.7
    rows = [
        {"score": 4.0, "unreadable": 0.0},
        {"unreadable": 1.0},
        {"score": 5.0, "unreadable": 0.0},
        {"score": 7.0, "unreadable": 0.0},
    ]
    found = task.summarize(task.items[:4], rows)
    assert (found["score"].value, found["score"].n) == (5.0, 2)
    assert found["unreadable"].value == 0.25


def test_a_baseline_is_compared_in_both_orders(tmp_path, monkeypatch):
    def longer(body):
        a, b = content(body).split("# 回答A\n")[1].split("\n\n# 回答B\n")
        return f"理由 [[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]"

    few = tmp_path / "four.jsonl"
    few.write_bytes(b"".join(QUESTIONS.read_bytes().splitlines(keepends=True)[:4]))
    with connected(numbered, monkeypatch) as (model, _), connected(lambda body: "[[5]]", monkeypatch) as (judge, _):
        for folder in (tmp_path, tmp_path / "again"):
            run_task(opened(path=few), model, judge, folder=folder / "mt_bench_ja")
    same = compare(tmp_path, tmp_path / "again")["mt_bench_ja"].scores["score"]
    assert (same.difference, same.questions) == (0.0, 4)
    task = opened(path=few, baseline=tmp_path)
    assert task.metric == "win_rate"
    assert len(task.provenance["data_sha256"]) == len(task.provenance["baseline"]["sha256"]) == 64
    item = task.items[0]

    def scored(texts, judge):
        return task.score([item], [judge_of(item, lambda text: judge({"messages": [{"content": text}]}), task, texts)])[
            0
        ]

    assert scored(("長い回答1", "長い回答2"), longer) == {
        "win_rate": 1.0,
        "turn_1": 1.0,
        "turn_2": 1.0,
        "unreadable": 0.0,
    }
    assert scored(("短", "短"), longer)["win_rate"] == 0.0
    assert scored(("回答1", "回答2"), longer)["win_rate"] == 0.5
    # A judge that always prefers the first answer has no say.
    assert scored(("長い回答1", "長い回答2"), lambda body: "[[A]]")["win_rate"] == 0.5
    assert scored(("長い", "長い"), lambda body: "?") == {"unreadable": 1.0}
    lines = (tmp_path / "mt_bench_ja" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[1:]))
    limited = opened(path=few, baseline=tmp_path / "few.jsonl")
    assert [one.id for one in limited.items] == [one.id for one in task.items[1:]]
    assert limited.provenance["baseline"]["answers"] == 3
    short = json.loads(lines[0])
    short["answer"]["texts"].pop()
    (tmp_path / "few.jsonl").write_text(json.dumps(short) + "\n")
    with pytest.raises(PlamoError, match=r"few.jsonl has no answer with 2 turns to the item 1 \(task mt_bench_ja\)"):
        opened(path=few, baseline=tmp_path / "few.jsonl")
    (tmp_path / "few.jsonl").write_text(json.dumps({**short, "question": "another"}) + "\n")
    with pytest.raises(PlamoError, match=r"the item 1 has another question \(task mt_bench_ja\)"):
        opened(path=few, baseline=tmp_path / "few.jsonl")
    (tmp_path / "few.jsonl").write_text(json.dumps({**short, "id": "other"}) + "\n")
    with pytest.raises(PlamoError, match=r"few.jsonl has no answer to an item of mt_bench_ja: evaluate the baseline"):
        opened(path=few, baseline=tmp_path / "few.jsonl")


ELYZA = [{"input": "一足す一は、\n何ですか。", "output": "二です。", "eval_aspect": "- 二と答えていれば5点"}] * 2


def elyza(path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ELYZA[0])
        writer.writeheader()
        writer.writerows(ELYZA)
    return path


def test_elyza_is_rated_by_the_criteria_of_the_question(tmp_path, monkeypatch):
    task = opened("elyza", path=elyza(tmp_path / "test.csv"))
    with (
        connected(lambda body: "二です。", monkeypatch) as (model, _),
        connected(lambda body: "[[5]]", monkeypatch) as (judge, judges),
    ):
        answers = answer_items(task, model, judge)
    assert task.score(task.items, answers) == [{"score": 5.0, "unreadable": 0.0}] * 2
    assert content(judges.bodies[0]) == (
        "# 採点する回答の質問\n一足す一は、\n何ですか。\n\n# 参照回答\n二です。\n\n# この質問の採点基準\n- 二と答えていれば5点\n\n"
        "# 採点する回答\n二です。"
    )
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ELYZA))
    assert [item.question for item in opened("elyza", path=tmp_path / "test.jsonl").items] == [ELYZA[0]["input"]] * 2


def test_malformed_data_is_refused(tmp_path):
    with pytest.raises(
        PlamoError, match=r"licence: CC BY-SA 4.0\): get it from https://huggingface.co/datasets/elyza/ELYZA-tasks-100"
    ):
        opened("elyza")
    (tmp_path / "a.csv").write_text("input,output,aspect\na,b,c\n")
    with pytest.raises(
        PlamoError, match=r"a.csv has the columns input, output, aspect: they must be input, output, eval_aspect"
    ):
        opened("elyza", path=tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("input,output,eval_aspect\na,b\n")
    with pytest.raises(PlamoError, match=r"a.csv, line 2: the row has 2 fields, not 3: the columns must be"):
        opened("elyza", path=tmp_path / "a.csv")
    for row, problem in (
        ({"question_id": 1, "category": "math", "turns": []}, "line 1: the field 'turns' must be a list of texts"),
        (
            {"question_id": 999, "category": "math", "turns": ["a"]},
            "question_id 999 of the category math has no reference answer",
        ),
        (
            {"question_id": "1", "category": "math", "turns": ["a"]},
            "the field 'question_id' is str: it must be an integer",
        ),
    ):
        (tmp_path / "q.jsonl").write_text(json.dumps(row))
        with pytest.raises(PlamoError) as error:
            opened(path=tmp_path / "q.jsonl")
        assert problem in str(error.value)
