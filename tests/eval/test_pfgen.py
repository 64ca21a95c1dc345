"""pfgen-bench: scores equal to the original program's, prompts, the task, and stored answers. All texts are made up."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.pfgen.benchmark import Benchmark
from plamo2_jax.eval.pfgen.leaderboard import leaderboard_row
from plamo2_jax.eval.pfgen.ngrams import NgramScorer
from plamo2_jax.eval.pfgen.prompts import make_prompt, trial_seed
from plamo2_jax.eval.pfgen.scorer import score_questions
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest

CASES = json.loads((Path(__file__).parent / "data" / "pfgen_cases.json").read_text())
NAMES = ("fluency", "truthfulness", "helpfulness", "average")
EXAMPLES = [
    *((each["question"], "例の答えです。") for each in CASES["questions"]),
    *((f"問い{i}？", f"答え{i}。") for i in range(30)),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plamo2" / "pfgen"


@pytest.fixture
def checkout(tmp_path):
    """A folder like the benchmark's repository."""
    folder = tmp_path / "bench"
    (folder / "data").mkdir(parents=True)
    for each in CASES["questions"]:
        path = folder / "data" / f"{each['question_id']}.json"
        path.write_text(json.dumps(each, ensure_ascii=False))
    lines = "\n".join(json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in EXAMPLES)
    (folder / "pfgen.py").write_text(
        f'raise SystemExit("this file must not run")\nQUESTION_DATA: str = r"""\n{lines}\n"""\n'
    )
    return folder


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_scores_equal_the_original_program(checkout, processes):
    files = Benchmark(checkout).questions
    cases = [[case for case in CASES["cases"] if case["question"] == file.id] for file in files]
    assert sum(map(len, cases)) == 132
    scores = score_questions(files, [[case["answer"] for case in some] for some in cases], processes=processes)
    for some, result in zip(cases, scores, strict=True):
        for case, one in zip(some, result, strict=True):
            assert [getattr(one, name) for name in NAMES] == [case[name] for name in NAMES], case["answer"]


def slow_fluency(pool, answer):
    """Fluency of one pool, straight from its definition."""

    def best(text, baseline):
        seen, total, value = set(), 0, 0.0
        for i in range(1, min(len(text), 200) + 1):
            for gram in {text[i - n : i] for n in range(1, min(10, i) + 1)} - seen:
                seen.add(gram)
                total += sum(gram in reference for reference in pool)
            value = max(value, total * (1 - max(i - 100, 0) / 50) / baseline)
        return value

    total = 0.0
    for reference in pool:
        total += best(reference, 1.0)
    return best(answer, total / len(pool))


def test_fluency_equals_its_definition_on_random_texts():
    draw = random.Random(1)
    texts = ["".join(draw.choices("あいう、。^$", [5, 4, 3, 2, 1, 1, 1], k=draw.randint(1, 230))) for _ in range(14)]
    pools = {"A": texts[:3], "B": texts[3:8]}
    fluency, _ = NgramScorer(pools).score(texts[8:])
    for answer, row in zip(texts[8:], fluency, strict=True):
        assert row.tolist() == [slow_fluency(pool, answer) for pool in pools.values()]


def test_the_cache_gives_the_same_scores_and_survives_damage(checkout, cache, monkeypatch):
    (file, *_) = Benchmark(checkout).questions
    (first,) = score_questions([file], [["蒸気の力で走る。"]], processes=1)
    (stored,) = cache.iterdir()
    counted = []
    monkeypatch.setattr(
        "plamo2_jax.eval.pfgen.scorer.NgramScorer", lambda pools: counted.append(1) or NgramScorer(pools)
    )
    assert list(score_questions([file], [["蒸気の力で走る。"]], processes=1)) == [first]
    assert not counted
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    assert list(score_questions([file], [["蒸気の力で走る。"]], processes=1)) == [first]
    assert counted == [1]
    assert stored.read_bytes() != bytes(data)


def test_no_cache_folder_is_needed(checkout, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (file, *_) = Benchmark(checkout).questions
    assert next(score_questions([file], [["蒸気"]], processes=1))[0].fluency > 0


def test_prompts_have_the_benchmarks_form():
    order = sorted(EXAMPLES[1:], key=lambda one: hashlib.sha1(f"::3::{one[0]}".encode()).hexdigest())[:2]
    examples = "## 回答例\n" + "\n\n".join(f"Q: {q}\nA: {a}" for q, a in order)
    question = EXAMPLES[0][0]
    prompt = make_prompt(question, EXAMPLES, "completion", 3, 2, "")
    assert (prompt.system, prompt.user) == (None, f"{examples}\n\nQ: {question}\nA:")
    prompt = make_prompt(question, EXAMPLES, "qa", 3, 2, "")
    instruction = "例と同様の文体及び文字数で、質問に1行で答えてください。"
    assert prompt.user == f"{instruction}\n\n{examples}\n\n## 質問\nQ: {question}"
    prompt = make_prompt(question, EXAMPLES, "chat", 3, 2, "")
    assert prompt.system == f"例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n{examples}"
    assert prompt.user == f"Q: {question}"
    assert trial_seed(1, "") == int(hashlib.sha1(b"::1").hexdigest(), 16) % 2**31


def answer(task, item, texts):
    """Answer an item with these texts. Return the answer and the requests."""
    generator, asked = task.requests(item), []
    try:
        request = next(generator)
        for text in texts:
            asked.append(request)
            request = generator.send([ChatResponse(text, "stop")])
    except StopIteration as end:
        return end.value, asked
    raise AssertionError("the task asks more often")


def test_an_empty_answer_is_asked_again_with_another_seed(checkout):
    task = open_task("pfgen", TaskOptions(path=checkout, trials=2))
    assert [item.id for item in task.items] == ["Q01/1", "Q02/1", "Q01/2", "Q02/2"]
    given, asked = answer(task, task.items[2], ["", "", " 蒸気。\n"])
    assert given == {"text": "蒸気。", "attempts": 3}
    assert all(isinstance(request, CompletionRequest) for request in asked)
    assert asked[0].seed == trial_seed(2, "")
    assert len({request.seed for request in asked}) == 3
    assert (asked[0].sampling.temperature, asked[0].sampling.top_p) == (1.0, 0.98)
    assert asked[0].stop.strings == ("Q:", "\n\n")
    assert asked[0].stop.max_new_tokens == 300
    assert answer(task, task.items[0], [""] * 10)[0] == {"text": "", "attempts": 10}


def test_a_chat_answer_follows_the_first_a(checkout):
    task = open_task("pfgen", TaskOptions(path=checkout, trials=1, mode="chat"))
    given, (request,) = answer(task, task.items[0], ["質問です。A: 蒸気。A: 石炭。"])
    assert given["text"] == "蒸気。A: 石炭。"
    assert isinstance(request, ChatRequest)
    assert [one["role"] for one in request.messages] == ["system", "user"]
    assert request.stop.strings == ("Q:",)


def test_the_summary_has_the_leaderboards_std_and_a_standard_error(checkout):
    task = open_task("pfgen", TaskOptions(path=checkout, trials=3, processes=1))
    texts = [
        "蒸気の力で走る乗り物です。",
        "石炭を燃やして",
        "機関車は、1872年に",
        "煙突の煙が",
        "SL",
        "新橋と横浜の間に",
    ]
    scores = task.score(task.items, [{"text": text, "attempts": 1} for text in texts])
    metrics = task.summarize(task.items, scores)
    by_question = [
        [
            row["average"]
            for _, row in sorted(zip(texts[i::2], scores[i::2], strict=True), key=lambda pair: pair[0].encode())
        ]
        for i in (0, 1)
    ]
    row = leaderboard_row(by_question, [len(text) for text in texts])
    assert (metrics["leaderboard_score"].value, metrics["leaderboard_std"].value) == (row.score, row.std)
    assert metrics["average"].value == pytest.approx(sum(row["average"] for row in scores) / 6, abs=1e-15)
    variances = [sum((x - sum(some) / 3) ** 2 for x in some) / 2 for some in by_question]
    assert metrics["average"].stderr == pytest.approx((sum(variances) / 3) ** 0.5 / 2, rel=1e-12)
    assert metrics["length"].value == sum(map(len, texts)) / 6
    assert "average/technology" in metrics


def test_the_command_scores_stored_answers_in_order(checkout, tmp_path, capsys):
    cases = CASES["cases"][::7]
    texts = {each["question_id"]: each["question"] for each in CASES["questions"]}
    names = [case["question"] if i % 2 else texts[case["question"]] for i, case in enumerate(cases)]
    lines = [
        {"question": name, "answer": case["answer"], "timestamp": "2025"}
        for name, case in zip(names, cases, strict=True)
    ]
    file, output = write_lines(tmp_path / "answers.jsonl", lines), tmp_path / "new" / "scores.jsonl"
    argv = ["--tasks", "pfgen", "--pfgen", str(checkout), "--answers", str(file), "--output", str(output)]
    assert main(["evaluate", *argv, "--processes", "1"]) == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == [
        {"question": name, **{key: case[key] for key in NAMES}} for name, case in zip(names, cases, strict=True)
    ]
    assert f"pfgen: {len(cases)} answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Q01"}', "has no text `answer`"),
        ('{"question": "Q01", "answer": 1}', "has no text `answer`"),
        ('{"question": "Q99", "answer": ""}', "'Q99' is unknown"),
        ('{"question": "../Q01", "answer": ""}', "'../Q01' is unknown"),
        ('["Q01"]', "is not a JSON object"),
        ('{"question": "Q01", "answer": "', "is not valid JSON"),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_written(checkout, tmp_path, capsys, line, message):
    file, output = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    file.write_text('{"question": "Q01", "answer": "蒸気"}\n' + line + "\n")
    argv = ["--tasks", "pfgen", "--pfgen", str(checkout), "--answers", str(file), "--output", str(output)]
    assert main(["evaluate", *argv]) != 0
    error = capsys.readouterr().err
    assert f"{file}, line 2" in error
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {}}, "`answers` must be"),
        ({"answers": {"P": ["a", ""]}}, "must be a list of texts, none of them empty"),
        ({"keywords": [{"t": "("}]}, "is not a regular expression"),
        ({"keywords": [{"and": []}]}, "keyword 1 must have a text `t`"),
        ({"question_id": "Q07"}, "must be the name of the file"),
        ({"keywords": [{"t": "(a+)+b"}]}, "longer than"),
    ],
)
def test_a_damaged_question_file_is_named(checkout, change, message, monkeypatch):
    monkeypatch.setattr("plamo2_jax.eval.pfgen.keywords._SECONDS", 0.5)
    path = checkout / "data" / "Q01.json"
    path.write_text(json.dumps({**CASES["questions"][0], **change}))
    with pytest.raises(PlamoError) as error:
        list(score_questions(Benchmark(checkout).questions[:1], [["a" * 60]], processes=1))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_folder_without_the_benchmark_tells_where_to_get_it(tmp_path, checkout):
    with pytest.raises(PlamoError, match=r"github.com/pfnet-research/pfgen-bench.*Apache-2.0"):
        Benchmark(tmp_path / "none")
    (checkout / "pfgen.py").write_text("QUESTION_DATA = open('x').read()\n")
    with pytest.raises(PlamoError, match="does not assign a text to QUESTION_DATA"):
        open_task("pfgen", TaskOptions(path=checkout))


def test_stored_answers_are_scored_without_jax(checkout, tmp_path):
    file = write_lines(tmp_path / "answers.jsonl", [{"question": "Q01", "answer": "蒸気"}])
    argv = ["evaluate", "--tasks", "pfgen", "--pfgen", str(checkout), "--answers", str(file)]
    program = (
        "import sys; sys.modules['jax'] = None\nfrom plamo2_jax.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", program, *argv, "--output", str(tmp_path / "out")], check=True)
    assert len((tmp_path / "out").read_text().splitlines()) == 1


@pytest.mark.peer
def test_stored_public_answers_have_the_leaderboards_scores(tmp_path):
    folder = Path(os.environ.get("PLAMO2_PFGEN", "")).absolute()
    if "PLAMO2_PFGEN" not in os.environ:
        pytest.skip("set PLAMO2_PFGEN to a checkout of pfgen-bench with result/pfnet/plamo-2-8b")
    from plamo2_jax.eval.pfgen.stored import score_file

    (stored,) = (folder / "result" / "pfnet" / "plamo-2-8b").glob("*/result.json")
    expected = json.loads(stored.read_text())
    row = score_file(folder, stored.parent / "trials.jsonl.xz", tmp_path / "scores.jsonl").row
    printed = [expected[name] for name in ("score", "score_std", "num_trials", "length", "length_std")]
    assert [row.score, row.std, row.trials, row.length, row.length_std] == printed
    samples = [
        {"question": id, "answer": sample["answer"], "average": sample["scores"]["average"]}
        for id, question in expected["questions"].items()
        for sample in question["samples"]
    ]
    file = write_lines(tmp_path / "samples.jsonl", samples)
    score_file(folder, file, tmp_path / "sample_scores.jsonl")
    lines = (tmp_path / "sample_scores.jsonl").read_text().splitlines()
    for sample, line in zip(samples, lines, strict=True):
        assert abs(json.loads(line)["average"] - sample["average"]) <= 1.1e-5
