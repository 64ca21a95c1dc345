"""Tests of eval/run.py and eval/asking.py: answers in batches, the journal, and what a kill leaves behind."""

import json
import types

import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.contamination import contaminated_by_task
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.run import ANSWERS, JOURNAL, RESULT, TIMES, answer_items, run_task, spread
from plamo2_jax.eval.task import Item, JudgeRequest
from plamo2_jax.models import ChatRequest, CompletionRequest, ScoreRequest
from support.canned_model import CannedModel


def two_steps(item):
    """Complete, then judge the completion; item 1 needs only scores."""
    if item.id == "1":
        scores = yield ScoreRequest(item.question, ["a", "bb"])
        return {"choice": max(range(2), key=lambda i: scores[i].logprob)}
    (response,) = yield CompletionRequest(item.question)
    (verdict,) = yield JudgeRequest(ChatRequest(item.id, [{"role": "user", "content": response.text.lower()}]))
    return {"text": verdict.text}


def task(*questions):
    items = [Item(str(i), question, group=question[0]) for i, question in enumerate(questions)]
    return types.SimpleNamespace(
        name="made",
        metric="length",
        provenance={"data_sha256": "00"},
        items=items,
        requests=two_steps,
        score=lambda items, answers: [{"length": float(len(answer.get("text", "")))} for answer in answers],
        summarize=mean_metrics,
    )


def result_of(folder):
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return {name: value for name, value in result.items() if name not in TIMES}, (folder / ANSWERS).read_bytes()


QUESTIONS = ("b one", "a two", "b three", "a four", "c five", "a six")


def test_requests_of_one_kind_share_a_call_and_answers_keep_their_places():
    model, judge = CannedModel(), CannedModel("judge")
    answers = answer_items(task("x", "y", "z"), model, judge)
    assert answers == [{"text": "X"}, {"choice": 0}, {"text": "Z"}]
    assert model.calls == [("score", 1), ("complete", 2)]
    assert judge.calls == [("chat", 2)]


def test_a_failed_request_and_a_missing_judge_are_refused():
    with pytest.raises(PlamoError, match="item 2 of the task made has no answer: it failed"):
        answer_items(task("x", "y", "fail"), CannedModel(), CannedModel())
    with pytest.raises(PlamoError, match="add --judge"):
        answer_items(task("x"), CannedModel())


def test_equal_beginnings_are_adjacent_and_batches_have_the_given_size():
    model = CannedModel()
    run_task(task(*QUESTIONS), model, CannedModel(), batch_size=2)
    assert model.asked == [("score", "a two"), *(("complete", q) for q in sorted(QUESTIONS) if q != "a two")]
    assert model.calls == [("score", 1), ("complete", 2), ("complete", 2), ("complete", 1)]


def test_the_result_has_metrics_groups_hashes_and_counts(tmp_path):
    result = run_task(task(*QUESTIONS), CannedModel(), CannedModel("judge"), folder=tmp_path, settings={"seed": 0})
    assert result == json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))
    assert result["n"] == 6
    assert result["score"] == result["metrics"]["length"]["value"] == pytest.approx(29 / 6)
    assert result["metrics"]["length/a"]["n"] == 3
    assert result["stderr"] > 0
    assert [one["kind"] for one in result["sampling"]] == ["complete", "score"]
    assert result["sampling"][0]["sampling"]["temperature"] == 1.0
    assert result["sampling"][0]["stop"]["max_new_tokens"] > 0
    assert (result["model"], result["judge"]) == ({"fingerprint": "canned"}, {"fingerprint": "judge"})
    # Two scored tokens; every other token count is that of a completion or a verdict.
    assert result["tokens"] == {"prompt": 2 * 29, "generated": 10, "scored": 2}
    rows = [json.loads(line) for line in (tmp_path / ANSWERS).read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == list("012345")
    assert len({row["prompt_hash"] for row in rows}) == 6


@pytest.mark.parametrize("parallel", [False, True])
def test_after_a_kill_the_result_is_the_same_and_no_stored_response_is_asked_again(tmp_path, parallel):
    """Every state that a kill can leave behind: any number of lines, the last one whole or torn."""
    run_task(task(*QUESTIONS), CannedModel(), CannedModel("judge"), folder=tmp_path / "whole", batch_size=2)
    expected = result_of(tmp_path / "whole")
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) == 11
    for kept in range(len(lines)):
        for torn in (b"", lines[kept][: len(lines[kept]) // 2]):
            folder = tmp_path / f"{kept}{bool(torn)}"
            folder.mkdir()
            (folder / JOURNAL).write_bytes(b"".join(lines[:kept]) + torn)
            model, judge = CannedModel(parallel=parallel), CannedModel("judge", parallel)
            run_task(task(*QUESTIONS), model, judge, folder=folder, batch_size=2)
            assert result_of(folder) == expected
            asked = len(model.asked) + len(judge.asked)
            # A batch of two that was interrupted while it was written is asked as a whole.
            assert len(lines) - kept <= asked <= len(lines) - kept + (not parallel)
    again = CannedModel(parallel=parallel)
    run_task(task(*QUESTIONS), again, again, folder=tmp_path / "whole", batch_size=2)
    # The judge has another fingerprint now, so exactly its verdicts are asked again.
    assert [kind for kind, _ in again.asked] == ["chat"] * 5


def test_a_changed_prompt_or_model_is_asked_again_and_nothing_else_is(tmp_path):
    judge = CannedModel("judge")
    run_task(task(*QUESTIONS), CannedModel(), judge, folder=tmp_path)
    model = CannedModel()
    run_task(task(*QUESTIONS[:-1], "a seven"), model, judge, folder=tmp_path)
    assert model.asked == [("complete", "a seven")]
    other = CannedModel("other")
    run_task(task(*QUESTIONS), other, judge, folder=tmp_path)
    assert len(other.asked) == 6
    run_task(task(*QUESTIONS), other, judge, folder=tmp_path)
    assert len(other.asked) == 6


@pytest.mark.parametrize("parallel", [False, True])
def test_failed_requests_are_listed_and_asked_again_by_the_next_run(tmp_path, parallel):
    questions = ("one", "two", "fail three")
    result = run_task(task(*questions), CannedModel(parallel=parallel), CannedModel("judge"), folder=tmp_path)
    assert (result["n"], result["failed"]) == (2, 1)
    assert result["errors"] == [{"id": "2", "reason": "it failed"}]
    model = CannedModel(parallel=parallel)
    model._answer = lambda text: CannedModel._answer(model, text.replace("fail", "good"))
    result = run_task(task(*questions), model, CannedModel("judge"), folder=tmp_path)
    assert (result["n"], result["failed"]) == (3, 0)
    assert model.asked == [("complete", "fail three")]


def test_a_server_that_fails_everything_ends_the_run(tmp_path):
    model = CannedModel(parallel=True)
    with pytest.raises(PlamoError, match="the last 20 requests failed, the last one because: it failed"):
        run_task(task(*(f"fail {i}" for i in range(200))), model, CannedModel(), folder=tmp_path, concurrency=4)
    assert len(model.asked) < 40
    assert model.closed


def test_a_limit_takes_items_of_all_groups():
    items = [Item(str(i), "q", group=str(i % 10)) for i in range(100)]
    chosen = spread(items, 20)
    assert sorted(item.group for item in chosen) == sorted(2 * "0123456789")
    assert [int(item.id) for item in chosen] == sorted(int(item.id) for item in chosen)
    assert set(spread(items, 10)) < set(chosen)
    assert spread(items, 1000) == items


def test_items_in_the_training_data_are_marked_and_summarized_apart(tmp_path):
    known = "Alice has seven apples and gives three of them to Bob, so how many apples does she have left now?"
    (tmp_path / "train.txt").write_text(f"Some page. {known.upper()} And more.")
    questions = [known, "b two", "c three"]
    rules = contaminated_by_task({"made": task(*questions).items}, [str(tmp_path / "train.txt")], None)
    assert rules == {"made": {"0": "window"}}
    folder = tmp_path / "out"
    result = run_task(task(*questions), CannedModel(), CannedModel("judge"), folder=folder, contaminated=rules["made"])
    found = result["contamination"]
    assert (found["contaminated"]["n"], found["clean"]["n"], found["rules"]) == (1, 2, {"window": 1})
    name = result["metric"]
    parts = [found[each]["metrics"][name]["value"] * found[each]["n"] for each in ("contaminated", "clean")]
    assert sum(parts) == pytest.approx(result["score"] * 3)
    rows = [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]
    assert [row["contaminated"] for row in rows] == ["window", None, None]
