"""JMMLU and MMLU: reading the files, prompts, choices, and means over subjects. The rows here are made up in the benchmarks' layout."""

import csv
import io
import math
import statistics

import pytest

from plamo2_jax import models
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from support.answering_server import answering_server


def rows(subject, count):
    """Rows of a subject; the answer of row i is the letter i mod 4."""
    return [[f"{subject}の第{i}問", *(f"{letter}{i}" for letter in "甲乙丙丁"), "ABCD"[i % 4]] for i in range(count)]


def write(path, rows, mark=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8-sig" if mark else "utf-8")


@pytest.fixture
def jmmlu(tmp_path):
    # As in the repository: a byte order mark in most files, and texts that span lines.
    write(tmp_path / "JMMLU" / "anatomy.csv", rows("解剖学", 8))
    write(tmp_path / "JMMLU" / "world_history.csv", rows("世界史", 12), mark=False)
    first = [["「一,二」\n次の行 ", "一\n二", "三", "四", "五", "D"]]
    write(tmp_path / "JMMLU_NC_ND" / "japanese_idiom.csv", first + rows("熟語", 9))
    return tmp_path


def opened(name, path, **options):
    return open_task(name, TaskOptions(path=path, **options))


def choose(task, item, letter):
    """Answer of an item for which a letter is the likeliest."""
    requests = task.requests(item)
    next(requests)
    with pytest.raises(StopIteration) as end:
        requests.send([models.Score(-1.0 - (one != letter), False, ()) for one in "ABCD"])
    return end.value.value


def test_items_and_prompts_of_jmmlu(jmmlu):
    task = opened("jmmlu", jmmlu, shots=2)
    assert [
        (group, sum(item.group == group for item in task.items)) for group in sorted({one.group for one in task.items})
    ] == [
        ("anatomy", 8),
        ("japanese_idiom", 10),
        ("world_history", 12),
    ]
    by_id = {item.id: item for item in task.items}
    assert by_id["japanese_idiom/1"].question == "「一,二」\n次の行\nA. 一\n二\nB. 三\nC. 四\nD. 五"
    request = next(task.requests(by_id["anatomy/5"]))
    assert request.context == (
        "以下は、解剖学に関する四択問題とその答えです。\n\n"
        "問題: 解剖学の第0問\nA. 甲0\nB. 乙0\nC. 丙0\nD. 丁0\n答え:A\n\n"
        "問題: 解剖学の第1問\nA. 甲1\nB. 乙1\nC. 丙1\nD. 丁1\n答え:B\n\n"
        "問題: 解剖学の第4問\nA. 甲4\nB. 乙4\nC. 丙4\nD. 丁4\n答え:"
    )
    assert list(request.continuations) == ["A", "B", "C", "D"]


def test_an_item_is_not_its_own_example_and_the_others_share_their_prefix(jmmlu):
    task = opened("jmmlu", jmmlu)
    contexts = {item.id: next(task.requests(item)).context for item in task.items}
    for item in task.items:
        text = item.question.partition("\n")[0]
        assert contexts[item.id].count(text) == 1
        assert contexts[item.id].count("答え:") == 6
    rest = [contexts[f"world_history/{i}"].rpartition("問題: ")[0] for i in range(6, 13)]
    assert len(set(rest)) == 1
    assert len(task.provenance["data_sha256"]) == 64
    assert task.provenance["examples"]["anatomy"] == [f"anatomy/{i}" for i in range(1, 6)]


def test_means_over_items_and_subjects(jmmlu):
    task = opened("jmmlu", jmmlu)
    answers = [choose(task, item, "A") for item in task.items]
    found = task.summarize(task.items, task.score(task.items, answers))
    # Of 8, 12 and 10 questions, 2, 3 and 3 have the answer A.
    assert found["accuracy"].value == pytest.approx(8 / 30)
    shares = {"anatomy": (8, 2), "japanese_idiom": (10, 3), "world_history": (12, 3)}
    for subject, (n, right) in shares.items():
        assert found[f"accuracy/{subject}"].value == right / n
        assert found[f"accuracy/{subject}"].n == n
    assert task.metric == "macro"
    assert found["macro"].value == pytest.approx((0.25 + 0.3 + 0.25) / 3)
    assert found["macro_japan"].value == pytest.approx((0.3 + 0.25) / 2)
    assert found["macro_translated"].value == 0.25
    assert found["macro_without_nc_nd"].value == 0.25
    assert found["macro_without_nc_nd"].n == 20
    errors = [statistics.stdev([1] * right + [0] * (n - right)) / math.sqrt(n) for n, right in shares.values()]
    assert found["macro"].stderr == pytest.approx(math.sqrt(sum(one**2 for one in errors)) / 3)
    assert found["accuracy"].stderr == pytest.approx(statistics.stdev([1] * 8 + [0] * 22) / math.sqrt(30))
    assert answers[0] == {"choice": "A", "logprobs": [-1.0, -2.0, -2.0, -2.0]}


def test_a_server_scores_the_letters(jmmlu, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    task = opened("jmmlu", jmmlu, shots=1)

    def logprob(prompt):
        number = int(prompt.rpartition("の第")[2].partition("問")[0]) if "の第" in prompt.rpartition("問題: ")[2] else 3
        return -0.5 if prompt[-1] == "ABCD"[number % 4] else -3.0

    with answering_server(logprob=logprob) as server, models.open(server.url, model="m", concurrency=4) as model:
        answers = answer_items(task, model)
    assert task.score(task.items, answers) == [{"accuracy": 1.0}] * 30


def test_mmlu_has_its_own_examples_and_wording(tmp_path):
    write(
        tmp_path / "dev" / "high_school_physics_dev.csv",
        [[f"d{i}", "1", "2", "3", "4", "C"] for i in range(5)],
        mark=False,
    )
    write(tmp_path / "test" / "high_school_physics_test.csv", [["q ", "a", "b", "c", "d", "B"]], mark=False)
    task = opened("mmlu", tmp_path, shots=1)
    (item,) = task.items
    request = next(task.requests(item))
    assert request.context == (
        "The following are multiple choice questions (with answers) about  high school physics.\n\n"
        "d0\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\nq \nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert list(request.continuations) == [" A", " B", " C", " D"]
    assert task.score([item], [choose(task, item, "B")]) == [{"accuracy": 1.0}]
    found = task.summarize([item], [{"accuracy": 1.0}])
    assert list(found) == ["accuracy", "macro", "accuracy/high_school_physics"]
    assert found["macro"].stderr is None
    (tmp_path / "dev" / "high_school_physics_dev.csv").unlink()
    with pytest.raises(
        PlamoError,
        match=r"high_school_physics_dev.csv is missing: each subject in test/ must have its examples in dev/",
    ):
        opened("mmlu", tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "q,a,b,c,d,A\nq,a,b,c,d,e,f,A\n",
            "anatomy.csv, line 2: the row has 8 fields, not 6: each row must have question",
        ),
        ("q\n", "anatomy.csv, line 1: the row has 1 fields, not 6"),
        ('"q\nr",a,b,c,d,A\nq,a,b,c,d,E\n', "anatomy.csv, line 3: the answer is 'E': it must be A, B, C or D"),
        ('q,a,b,c,d,A\n"q,a,b,c,d,A\n', "anatomy.csv, line 2: unexpected end of data"),
        ("", "anatomy.csv has no rows"),
        (" ,a,b,c,d,A\n", "line 1: the question is empty"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, content, problem):
    (tmp_path / "anatomy.csv").write_text(content, encoding="utf-8-sig")
    with pytest.raises(PlamoError) as error:
        opened("jmmlu", tmp_path, shots=0)
    assert problem in str(error.value)


def test_folders_without_the_data_are_refused(tmp_path, jmmlu):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        PlamoError, match=r"has no CSV file: it must be the folder of https://github.com/nlp-waseda/JMMLU"
    ):
        opened("jmmlu", tmp_path / "empty")
    with pytest.raises(PlamoError, match=r"has no test/\*_test.csv"):
        opened("mmlu", tmp_path / "empty")
    with pytest.raises(PlamoError, match=r"is not a folder"):
        opened("mmlu", tmp_path / "none")
    with pytest.raises(
        PlamoError, match=r"CC BY-NC-ND 4.0.* get it from https://github.com/nlp-waseda/JMMLU .* --path jmmlu=PATH"
    ):
        opened("jmmlu", None)
    with pytest.raises(PlamoError, match=r"shots is 8 \(task jmmlu\): the subject anatomy has only 7 rows"):
        opened("jmmlu", jmmlu, shots=8)
    (jmmlu / "JMMLU" / "anatomy.csv").write_bytes("解".encode("cp932"))
    with pytest.raises(PlamoError, match=r"anatomy.csv is not UTF-8 .*: save the file as UTF-8"):
        opened("jmmlu", jmmlu)
