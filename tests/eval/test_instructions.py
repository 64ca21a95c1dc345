"""IFEval, M-IFEval-ja and JFBench: the bundled data has checkers, answers are scored as defined, and a model is asked once a prompt."""

import pytest

from plamo2_jax import checkers
from plamo2_jax.checkers.checker import CheckerError
from plamo2_jax.checkers.ifeval import INSTRUCTIONS, to_checker
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.bundled import FOLDER, read_json, read_lines
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import TASKS, open_task
from plamo2_jax.eval.tasks.instructions import IFEVAL_FILES, jfbench_prompt, jfbench_wording, variants
from plamo2_jax.models import ChatResponse

NAMES = ("ifeval", "mifeval_ja", "jfbench")


class Fixed:
    """A chat model that gives one answer to every question and keeps the questions."""

    description, parallel = {"fingerprint": "fixed"}, False

    def __init__(self, text):
        self.text, self.requests = text, []

    def chat(self, requests, *, accept=None):
        self.requests += requests
        return [[ChatResponse(self.text, "stop")] for _ in requests]


@pytest.fixture(scope="module")
def tasks():
    return {name: open_task(name, TaskOptions()) for name in NAMES}


def test_every_bundled_instruction_has_a_checker():
    found = set()
    for file in IFEVAL_FILES.values():
        records, _ = read_lines(file)
        for record in records:
            for one, arguments in zip(record["instruction_id_list"], record["kwargs"], strict=True):
                checkers.validate(*to_checker(one, arguments, file))
                found.add(one)
    assert len(found) == 33 + 25
    assert found == set(INSTRUCTIONS)


def test_every_bundled_constraint_has_a_checker_and_wordings():
    constraints, _ = read_json("jfbench/constraints.json")
    assert len(constraints) == 98
    for constraint in constraints:
        parameters = constraint["parameters"] | ({"document": "猫。"} if constraint.get("document") else {})
        checkers.validate(constraint["checker"], parameters)
        assert all(constraint["wordings"])


def test_benchmark_wordings_are_not_training_wordings():
    constraints, _ = read_json("jfbench/constraints.json")
    train = {text for one in checkers.CHECKERS.values() for texts in one.wordings.values() for text in texts.train}
    assert not train & {text for constraint in constraints for text in constraint["wordings"]}


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in FOLDER.iterdir() if path.name in ("m_ifeval", "jfbench"))
)
def test_bundled_data_has_its_licence_and_notice(folder):
    assert (FOLDER / folder / "LICENSE").stat().st_size > 500
    assert "https://github.com/" in (FOLDER / folder / "NOTICE").read_text()


def test_numbers_of_items(tasks):
    assert {name: len(task.items) for name, task in tasks.items()} == {"ifeval": 541, "mifeval_ja": 172, "jfbench": 294}
    assert all(name in TASKS for name in NAMES)


def test_a_blank_answer_follows_no_instruction_of_ifeval(tasks):
    for name in ("ifeval", "mifeval_ja"):
        task = tasks[name]
        metrics = task.summarize(task.items, task.score(task.items, [{"text": " \n"}] * len(task.items)))
        assert {
            metrics[f"{level}_{mode}"].value for level in ("prompt", "instruction") for mode in ("strict", "loose")
        } == {0.0}


def test_the_eight_variants():
    assert variants("*a*\nb\nc") == ["*a*\nb\nc", "b\nc", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert variants("a") == ["a", "", "", "", "a", "", "", ""]


def item_of(task, kind):
    """Return an item with a single instruction of a kind."""
    return next(item for item in task.items if list(task._calls[item.id][1]) == [kind])


@pytest.mark.parametrize(
    ("name", "kind", "answer", "strict", "loose"),
    [
        ("mifeval_ja", "startend:quotation", "「猫です。」", 1, 1),
        ("mifeval_ja", "startend:quotation", "はい、こちらです。\n「猫です。」", 0, 1),
        ("mifeval_ja", "startend:quotation", "猫です。", 0, 0),
        ("mifeval_ja", "letters:no_katakana", "猫です。\nニャー", 0, 1),
        ("ifeval", "punctuation:no_comma", "Sure, here it is:\nno comma", 0, 1),
        ("ifeval", "detectable_format:json_format", "*{}*", 0, 1),
        ("ifeval", "detectable_format:json_format", "{}", 1, 1),
    ],
)
def test_strict_and_loose(tasks, name, kind, answer, strict, loose):
    task = tasks[name]
    (row,) = task.score([item_of(task, kind)], [{"text": answer}])
    assert (row["prompt_strict"], row["prompt_loose"]) == (strict, loose)
    assert row[f"strict/{kind}"] == strict


def test_instruction_scores_weigh_instructions_and_prompt_scores_weigh_prompts(tasks):
    task = tasks["ifeval"]
    by_count = {len(task._calls[item.id][0]): item for item in task.items}
    items = [by_count[1], by_count[3]]
    scores = [
        {"prompt_strict": 1.0, "prompt_loose": 1.0, "instruction_strict": 1.0, "instruction_loose": 1.0},
        {"prompt_strict": 0.0, "prompt_loose": 1.0, "instruction_strict": 1 / 3, "instruction_loose": 1.0},
    ]
    metrics = task.summarize(items, scores)
    assert metrics["prompt_strict"].value == 0.5
    assert metrics["instruction_strict"].value == pytest.approx(2 / 4)
    # Residuals 1 * (1 - 1/2) and 3 * (1/3 - 1/2) are 1/2 and -1/2.
    assert metrics["instruction_strict"].stderr == pytest.approx((0.5 * 2) ** 0.5 / 4)
    assert metrics["instruction_loose"].value == 1.0


def test_a_model_is_asked_the_prompt_itself_once(tasks):
    task = tasks["mifeval_ja"]
    model = Fixed("猫です。")
    answers = answer_items(task, model)
    assert len(model.requests) == len(answers) == 172
    assert {request.id: request.messages for request in model.requests} == {
        item.id: [{"role": "user", "content": item.question}] for item in task.items
    }
    assert model.requests[0].sampling.temperature == 0.0
    metrics = task.summarize(task.items, task.score(task.items, answers))
    assert 0 < metrics["prompt_strict"].value < metrics["instruction_strict"].value < 0.5


def test_jfbench_asks_in_the_words_of_the_benchmark():
    task = open_task("jfbench", TaskOptions(kinds=("Length",), trials=1))
    assert {item.group for item in task.items} == {"Length"}
    assert all(item.question.startswith("# 指示文\n") for item in task.items)
    assert jfbench_prompt("問い", "短く。").endswith("守ってください。\n- 短く。")
    # Drawn by JFBench's own code for prompt 0 and constraint 94, and for prompt 299 and constraint 118.
    wordings = {one["number"]: one["wordings"] for one in read_json("jfbench/constraints.json")[0]}
    assert jfbench_wording(wordings[94], 0, 94) == wordings[94][1]
    assert jfbench_wording(wordings[118], 299, 118) == wordings[118][3]


def test_a_constraint_may_ask_for_the_contrary():
    task = open_task("jfbench", TaskOptions(kinds=("Logic",), trials=1))
    item = next(item for item in task.items if "次の制約は満たさないでください: 空白文字" in item.question)
    scores = task.score([item, item], [{"text": "空白 あり"}, {"text": "空白なし"}])
    assert [row["prompt_strict"] for row in scores] == [1.0, 0.0]


def test_wrong_options_and_ids_are_refused():
    with pytest.raises(PlamoError, match="no kind 'length': it must be one of Character, Content"):
        open_task("jfbench", TaskOptions(kinds=("length",)))
    with pytest.raises(PlamoError, match="trials 301 is not allowed for jfbench: it must be from 1 to 300"):
        open_task("jfbench", TaskOptions(trials=301))
    with pytest.raises(CheckerError, match="line 1: the instruction 'ja:x' is unknown"):
        to_checker("ja:x", {}, "line 1")
    with pytest.raises(CheckerError, match="has no argument or no value 'num_bullets'"):
        to_checker("ja:detectable_format:number_bullet_lists", {"num_bullets": None}, "line 1")
