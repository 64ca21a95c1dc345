"""Pairs out of scored answers, a judge's verdicts, and the journal."""

import dataclasses
import json

import pytest

from plamo2_jax.align.preference_data.judge import JudgeConfig, Verdict, compare, win_shares
from plamo2_jax.align.preference_data.pairing import Pairing, PairingConfig, repeated
from plamo2_jax.eval.judging import read_verdict
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatRequest, ChatResponse, RequestError
from plamo2_jax.storage import lock_folder


def answers(*scores_and_texts):
    return [{"sample": i, "text": text, "score": score} for i, (score, text) in enumerate(scores_and_texts)]


def made(config, *scores_and_texts):
    pairs, why = Pairing(config).pairs(answers(*scores_and_texts))
    return [(a["sample"], b["sample"]) for a, b in pairs], why


def test_best_and_worst():
    config = PairingConfig(margin=0.2)
    assert made(config, (0.5, "a"), (0.9, "b"), (0.1, "c")) == ([(1, 2)], "")
    assert made(config, (0.5, "a"), (0.5, "b"), (0.6, "c")) == ([], "margin")
    assert made(config, (0.5, "a")) == ([], "one answer")
    # 0.3 - 0.1 is a little less than 0.2 in binary.
    assert made(config, (0.3, "a"), (0.1, "b")) == ([(0, 1)], "")


def test_all_pairs_above_the_margin_and_lengths():
    config = PairingConfig(choose="all", margin=0.3)
    scored = (0.9, "aaaa"), (0.6, "bb"), (0.1, "c")
    assert made(config, *scored) == ([(0, 1), (0, 2), (1, 2)], "")
    assert made(dataclasses.replace(config, length_ratio=2.0), *scored) == ([(0, 1), (1, 2)], "")
    assert made(dataclasses.replace(config, length_ratio=1.0), *scored) == ([], "length")


def test_balanced_pairs_keep_both_sides_equally_long():
    pairing = Pairing(PairingConfig(choose="balanced", margin=0.1))
    plain = Pairing(PairingConfig(margin=0.1))
    surplus = {"balanced": 0, "best_worst": 0}
    for i in range(40):
        # The longer the better, but for one short good answer.
        scored = answers((0.9, "a" * (20 + i % 5)), (0.6, "b" * 12), (0.2, "c" * (15 + i % 3)))
        for name, maker in (("balanced", pairing), ("best_worst", plain)):
            surplus[name] += sum(len(a["text"]) - len(b["text"]) for a, b in maker.pairs(scored)[0])
    assert abs(surplus["balanced"]) <= 10 < surplus["best_worst"]


@pytest.mark.parametrize(
    ("field", "value"), [("choose", "some"), ("margin", 0), ("length_ratio", 0.5), ("near_answers", 2)]
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"PairingConfig\.{field}=.*is not allowed"):
        PairingConfig(**{field: value})


def test_answers_that_repeat_earlier_ones():
    long = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"
    texts = [long, long.replace("。", "。 "), long + "。", "別の答え", long[:20]]
    assert repeated(texts, 0.9) == [None, 0, 0, None, None]
    assert repeated(texts, None) == [None, 0, None, None, None]


class Scripted:
    """A judge that prefers longer answers, or always the first it reads."""

    description, parallel = {}, False

    def __init__(self, fair):
        self._fair = fair
        self.read = []

    def chat(self, requests):
        def say(request):
            self.read.append(request.messages[1]["content"])
            a, b = request.messages[1]["content"].split("# 回答A\n")[1].split("\n\n# 回答B\n")
            if "壊" in a + b:
                return RequestError("broken")
            wins = "A" if not self._fair or len(a) > len(b) else "B"
            return [ChatResponse(f"[[C]]ではなく\n[[{wins}]]", "stop")]

        return [say(request) for request in requests]


REQUEST = ChatRequest("q", ({"role": "user", "content": "猫とは？"},))


def test_a_judge_that_is_fair_and_one_that_leans():
    texts = {0: "長い長い答え", 2: "短い", 3: "まあまあ"}
    judge = Scripted(fair=True)
    (verdicts,) = compare(judge, JudgeConfig("judge"), [REQUEST], [texts], 0)
    assert [(one.pair, one.said, one.winner) for one in verdicts] == [
        ((0, 2), ("A", "B"), 0),
        ((0, 3), ("A", "B"), 0),
        ((2, 3), ("B", "A"), 3),
    ]
    assert win_shares([0, 2, 3], verdicts) == {0: 1.0, 2: 0.0, 3: 0.5}
    assert all("猫とは？" in text for text in judge.read)
    (verdicts,) = compare(Scripted(fair=False), JudgeConfig("judge"), [REQUEST], [texts], 0)
    assert {one.winner for one in verdicts} == {None}
    assert win_shares([0, 2, 3], verdicts) == {0: 0.5, 2: 0.5, 3: 0.5}


def test_a_judge_that_fails_fails_its_question_alone():
    found = compare(Scripted(True), JudgeConfig("judge"), [REQUEST] * 2, [{0: "壊", 1: "a"}, {0: "ab", 1: "c"}], 0)
    assert found[0] == RequestError("the judge: broken")
    assert isinstance(found[1][0], Verdict)
    assert compare(Scripted(True), JudgeConfig("judge"), [REQUEST], [{0: "a"}], 0) == [[]]


def test_verdicts_are_read_from_the_end():
    assert read_verdict("[[A]]とも思えるが [[B]]") == "B"
    assert read_verdict("どちらも良い") == "?"


def test_a_journal_survives_a_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, lambda entry: True)
    for number in range(3):
        journal.append({"id": str(number), "text": "猫\u2028"})
    journal.append({"id": "1", "text": "犬"})
    journal.close()
    whole = path.read_bytes()
    for torn in (b'{"id": "3", "te', b"\0\0\0\n", b'{"id": "3"}', b'["id"]\n{"id": "4"}\n'):
        path.write_bytes(whole + torn)
        journal = Journal(path, lambda entry: True)
        assert path.read_bytes() == whole
        assert [journal.entries[name]["text"] for name in ("0", "1", "2")] == ["猫\u2028", "犬", "猫\u2028"]
        journal.append({"id": "3"})
        journal.close()
        assert json.loads(path.read_bytes().splitlines()[-1]) == {"id": "3"}


def test_a_folder_in_use_is_refused(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ValueError, match="is in use by another process"), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        pass
