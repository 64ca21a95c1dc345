"""HumanEval, JHumanEval and HumanEval+: prompts, programs of answers, tests in the sandbox, and pass@k."""

import gzip
import itertools
import json
import math

import pytest

from plamo2_jax import models
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import BUNDLED
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.eval.tasks.code import pass_at_k
from plamo2_jax.eval.tasks.code_problems import answered, completed
from plamo2_jax.sandbox import isolation_problem
from support.answering_server import answering_server

HUMANEVAL = BUNDLED / "humaneval" / "HumanEval.jsonl.gz"
with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as file:
    ROWS = [json.loads(line) for line in file]
pytestmark = pytest.mark.skipif(isolation_problem() is not None, reason=str(isolation_problem()))


def opened(name="humaneval", **options):
    return open_task(name, TaskOptions(processes=2, **options))


def scores(task, texts):
    """Scores of the first items for one answer each."""
    items = task.items[: len(texts)]
    return task.score(items, [{"text": text} if isinstance(text, str) else {"texts": text} for text in texts])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_canonical_solutions_pass_in_completion_mode_and_stubs_do_not():
    task = opened()
    assert len(task.items) == 164
    assert task.provenance["data_sha256"].startswith("b796127e")  # The file of openai/human-eval.
    # A model goes on after the function: the stop sequences end it.
    solutions = [f"{row['canonical_solution']}\ndef other():\n    raise SystemExit\n" for row in ROWS]
    found = scores(task, solutions)
    assert found == [{"pass@1": 1.0}] * 164
    summary = task.summarize(task.items, found)
    assert summary["pass@1"].value == 1
    assert summary["pass@1"].n == 164
    some = task.items[::8]
    assert task.score(some, [{"text": "    pass\n"}] * len(some)) == [{"pass@1": 0.0}] * len(some)


@pytest.mark.peer
def test_no_stub_passes():
    assert scores(opened(), ["    pass\n"] * 164) == [{"pass@1": 0.0}] * 164


def test_a_server_is_asked_and_its_answers_are_scored(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    solutions = {row["prompt"]: row["canonical_solution"] for row in ROWS}

    def answer(body):
        if "prompt" in body:
            return solutions[body["prompt"]]
        row = next(row for row in ROWS if row["prompt"].rstrip() in body["messages"][-1]["content"])
        whole = row["prompt"][row["prompt"].rindex(f"def {row['entry_point']}(") :] + row["canonical_solution"]
        return f"まず誤った例です。\n```python\nraise ValueError\n```\n答え:\n```python\n{whole}```\n以上です。"

    with answering_server(answer) as server, models.open(server.url, model="m", concurrency=4) as model:
        for mode in ("completion", "chat"):
            task = opened(mode=mode, trials=2)
            # 32, 38 and 50 need helper functions of their prompt, and 0 its imports.
            some = [task.items[i] for i in (0, 32, 38, 50, 163)]
            answers = answer_items(task, model, items=some)
            assert task.score(some, answers) == [{"pass@1": 1.0}] * 5
            body = server.bodies[-1]
            assert (body["temperature"], body["top_p"]) == (0.8, 0.95)
            assert body.get("stop", []) == (
                ["\nclass", "\ndef", "\n#", "\nif", "\nprint"] if mode == "completion" else []
            )
        assert len({body["seed"] for body in server.bodies}) == 10
        answer_items(opened(), model, items=some[:1])
        assert server.bodies[-1]["temperature"] == 0


def test_pass_at_k_is_the_share_of_subsets_with_a_pass():
    for n, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct <= n and k <= n:
            subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
            assert math.isclose(pass_at_k(n, correct, k), sum(map(any, subsets)) / len(subsets))
    right, wrong = ROWS[0]["canonical_solution"], "    return None\n"
    task = opened(trials=10)
    assert scores(task, [[right] * 3 + [wrong] * 7]) == [{"pass@1": pytest.approx(0.3), "pass@10": 1.0}]


def test_the_program_of_an_answer():
    problem = opened().problems["HumanEval/32"]
    assert answered(problem, "```\na\n```\n```js\nb\n```").endswith(
        "return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])\n\n\n\na\n"
    )
    assert answered(problem, "```python\nx = 1").endswith("\nx = 1")
    assert answered(problem, "x = 2").endswith("\nx = 2")
    assert completed(problem, "    return 1\nprint(2)\ndef f") == f"{problem.prompt}    return 1"


def test_japanese_prompts_have_precedence(tmp_path):
    rows = [{**row, "prompt_ja": row["prompt"].replace('"""', '"""日本語。', 1)} for row in ROWS[:2]]
    task = opened("jhumaneval", path=write(tmp_path / "ja.jsonl", rows))
    request = next(task.requests(task.items[0]))
    assert request.prompt == rows[0]["prompt_ja"]
    assert scores(task, [row["canonical_solution"] for row in rows]) == [{"pass@1": 1.0}] * 2
    hub = opened("jhumaneval", path=write(tmp_path / "hub.jsonl", ROWS[:1]), mode="chat")
    assert "を完成させてください" in next(hub.requests(hub.items[0])).messages[0]["content"]


PLUS = [
    {
        "task_id": "HumanEval/2",
        "prompt": 'def truncate(x: float) -> float:\n    """Return the decimal part."""\n',
        "entry_point": "truncate",
        "canonical_solution": "    return x % 1.0\n",
        "base_input": [[3.5], [1.33]],
        "plus_input": [[123.456], [1e9 + 0.25], [5]],
        "atol": 0,
    },
    {
        "task_id": "HumanEval/152",
        "prompt": 'def compare(game, guess):\n    """Return the distances."""\n',
        "entry_point": "compare",
        "canonical_solution": "    return [abs(x - y) for x, y in zip(game, guess)]\n",
        "base_input": [[[1, 2], [1, 4]]],
        "plus_input": [[[], []], [[1], [-1]]],
        "atol": 0,
    },
    {
        "task_id": "HumanEval/32",
        "prompt": ROWS[32]["prompt"],
        "entry_point": "find_zero",
        "canonical_solution": ROWS[32]["canonical_solution"],
        "base_input": [[[1, 2]]],
        "plus_input": [[[-6, 11, -6, 1]]],
        "atol": 0.0001,
    },
]


@pytest.mark.parametrize(
    ("number", "body", "base", "plus"),
    [
        (0, "    return x % 1.0\n", 1, 1),
        (0, "    return x - int(x) + 1e-9\n", 1, 1),  # Close enough for floats.
        (0, "    return x - int(x) + 1e-3\n", 0, 0),
        (0, "    return x % 1.0 if x < 100 else 0.456\n", 1, 0),
        (0, "    return str(x % 1.0)\n", 0, 0),
        (1, "    return [abs(x - y) for x, y in zip(game, guess)]\n", 1, 1),
        (1, "    return tuple(abs(x - y) for x, y in zip(game, guess))\n", 0, 0),
        (1, "    game.clear()\n    return [0, 2]\n", 1, 0),
        # The programs of one process cannot see the canonical solution.
        (1, "    return reference[name](game, guess)\n", 0, 0),
        (2, "    return 1.0 if len(xs) > 2 else -0.5\n", 1, 1),
        (2, "    return 1.5\n", 0, 0),
    ],
)
def test_the_comparison_of_humaneval_plus(tmp_path, number, body, base, plus):
    task = opened("humaneval_plus", path=write(tmp_path / "plus.jsonl", [PLUS[number]]))
    assert scores(task, [body]) == [{"pass@1": plus, "base_pass@1": base}]


def test_malformed_problems_are_refused(tmp_path):
    def problem_of(name, *rows):
        with pytest.raises(PlamoError) as error:
            opened(name, path=write(tmp_path / "a.jsonl", rows))
        return str(error.value)

    assert "a.jsonl, line 2: the field 'test' is int: it must be a text" in problem_of(
        "jhumaneval", ROWS[0], {**ROWS[1], "test": 1}
    )
    assert "line 1: the field 'base_input' is missing (the record has canonical_solution," in problem_of(
        "humaneval_plus", ROWS[0]
    )
    assert "entry_point is 'a b'" in problem_of("humaneval", {**ROWS[0], "entry_point": "a b"})
    assert "must contain `def f(`" in problem_of("humaneval", {**ROWS[0], "entry_point": "f"})
    assert "two problems with the task_id 'HumanEval/0'" in problem_of("humaneval", ROWS[0], ROWS[0])
    assert "base_input" in problem_of("humaneval_plus", {**PLUS[0], "base_input": [1]})
    with pytest.raises(
        PlamoError,
        match=r"jhumaneval needs data .* \(licence: MIT\): get it from .*kogi-jwu/jhumaneval.* --path jhumaneval=PATH",
    ):
        opened("jhumaneval")
    with pytest.raises(PlamoError, match="no mode 'qa'"):
        opened(mode="qa")
