"""Retrieval probes: what is asked, how it is scored, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.engine.generator import Generator
from plamo2_jax.eval import needle, phonebook
from plamo2_jax.eval.depths import depths
from plamo2_jax.eval.retrieval import Question, RetrievalTask, ask, table
from plamo2_jax.eval.run import answer_items, spread
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.models import Score
from plamo2_jax.models.scoring import score_batch, split_texts
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

ROWS = [
    [UNK, 0.0, "UNKNOWN"],
    *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD)),
    *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)),
    *([chr(code), -8.0, "NORMAL"] for code in range(32, 127)),
    # Tokens across the boundary of question and answer, and ones of two digits.
    *([text, -9.0, "NORMAL"] for text in (": ", ": 0", "12", "34", "の", "は「")),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_rows(ROWS)


def counter(tokenizer):
    return lambda text: len(tokenizer.encode(text, bos=True))


def test_phonebooks_fit_their_length_and_hold_the_answer_once(tokenizer):
    found = list(phonebook.questions(counter(tokenizer), lengths=(200, 400), depths=(0, 0.5, 1), samples=2))
    assert len(found) == 2 * 2 * 3 * 2
    for question in found:
        prompt, candidates = split_texts(tokenizer, question.prompt, question.candidates)
        assert question.length * 0.75 < len(prompt) + len(candidates[0]) <= question.length
        assert question.prompt.count(question.answer) == 1
        name = question.prompt.rsplit("\n", 1)[1]
        assert f"\n{name}{question.answer}\n" in question.prompt
        assert len(set(question.candidates)) == len(question.candidates)
        assert all(candidate in question.prompt for candidate in question.candidates)
        place = question.prompt.index(question.answer) / len(question.prompt)
        assert abs(place - question.depth) < 0.4
    again = list(phonebook.questions(counter(tokenizer), lengths=(200, 400), depths=(0, 0.5, 1), samples=2))
    assert found == again
    with pytest.raises(ValueError, match="length 30 is not allowed"):
        list(phonebook.questions(counter(tokenizer), lengths=(30,), depths=(0,)))


def test_needles_stand_where_they_should(tokenizer):
    texts = {"ja": ["雨が降る。" * 50], "en": ["The rain is falling. " * 50, "Snow is white. " * 40]}
    found = list(
        needle.questions(counter(tokenizer), texts, lengths=(300,), depths=(0.0, 0.5, 1.0), samples=2, digits=4)
    )
    for question in found:
        prompt, candidates = split_texts(tokenizer, question.prompt, question.candidates)
        assert 300 - 30 < len(prompt) + len(candidates[0]) <= 300 + 4
        assert question.prompt.count(question.answer) == 1
        assert abs(question.prompt.index(question.answer) / len(question.prompt) - question.depth) < 0.3
    with pytest.raises(ValueError, match="length 40 is not allowed"):
        list(needle.questions(counter(tokenizer), texts, lengths=(40,), depths=(0.0,)))


def test_a_token_across_the_boundary_belongs_to_the_answer(tokenizer):
    question = Question("x:", " 01", (" 01", " 91"), "en", 10, 0.0)
    prompt, candidates = split_texts(tokenizer, question.prompt, question.candidates)
    assert tokenizer.decode(prompt[1:]) == "x"
    assert [tokenizer.decode(ids) for ids in candidates] == [": 01", ": 91"]


class Oracle:
    """A chat model that answers right if the context satisfies a condition."""

    chat = complete = None
    description, parallel = {"fingerprint": "oracle"}, False

    def __init__(self, right):
        self.right = right

    def score(self, requests):
        rights = [self.right(request.context) for request in requests]
        return [[Score(0.0 if right else -2.0, right, ()), Score(-1.0, False, ())] for right in rights]


def test_accuracies_by_length_and_depth(tokenizer):
    made = [
        Question(f"{length} {depth}:", " 111", (" 111", " 222"), "en", length, depth)
        for length in (8, 16)
        for depth in (0.0, 1.0)
    ]
    answered = ask(made, Oracle(lambda context: context.endswith("0.0:")), batch_size=2)
    assert [one.exact for one in answered] == [True, False, True, False]
    rows = table(answered)
    assert [(row["length"], row["depth"], row["exact"], row["ranked"]) for row in rows] == [
        (8, None, 0.5, 0.5),
        (8, 0.0, 1.0, 1.0),
        (8, 1.0, 0.0, 0.0),
        (16, None, 0.5, 0.5),
        (16, 0.0, 1.0, 1.0),
        (16, 1.0, 0.0, 0.0),
    ]
    assert depths(3) == (0, 0.5, 1)


def test_equally_likely_candidates_are_no_answer():
    task = RetrievalTask("probe", [Question("a:", " 1", (" 1", " 2"), "en", 8, 0.5)], {})
    requests = task.requests(task.items[0])
    assert next(requests).continuations == (" 1", " 2")
    with pytest.raises(StopIteration) as end:
        requests.send([Score(-1.0, False, ()), Score(-1.0, False, ())])
    assert task.score(task.items, [end.value.value]) == [{"ranked": 0.0, "exact": 0.0, "chance": 0.5}]


@pytest.mark.parametrize("name", ["phonebook", "needle"])
def test_the_tasks_summarize_and_draw(name, tmp_path):
    options = TaskOptions(lengths=(200, 400), depths=2, trials=2)
    task = open_task(name, options)
    assert len(task.items) == 2 * 2 * 2 * 2
    # A limited evaluation has items of all languages and lengths.
    assert {item.group for item in spread(task.items, 4)} == {f"{la}/{n}" for la in ("ja", "en") for n in (200, 400)}
    right = {task.questions[item.id].prompt for item in task.items[::4]}
    answers = answer_items(task, Oracle(right.__contains__))
    scores = task.score(task.items, answers)
    metrics = task.summarize(task.items, scores)
    assert metrics["ranked"].value == metrics["exact"].value == 0.25
    assert metrics["chance"].value == 1 / 8
    assert metrics["ranked/ja/200"].n == 4
    [path] = task.plots(task.items, scores, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--kinds fr is not allowed"):
        open_task(name, TaskOptions(kinds=("fr",)))


@pytest.fixture(scope="module")
def model():
    config = preset(
        "tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=2, mamba_num_heads=2, vocab_size=384,
        attention_window_size=20,
    )  # fmt: skip
    model = Plamo2(config)
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def test_likelihoods_are_those_of_the_whole_text(model):
    network, params = model
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 384, n) for n in (37, 25)]
    # Prompts may have different numbers of candidates. The longest is read in two pieces.
    candidates = [[rng.integers(4, 384, n) for n in sizes] for sizes in ((3, 5, 1), (2, 20))]
    generator = Generator(network, params, prefill_size=16)
    scores = score_batch(generator, prompts, candidates, 8)
    # Candidates read one after another are scored as those read together.
    apart = score_batch(generator, prompts, candidates, 2)
    apply = jax.jit(network.apply)
    for prompt, row, together, others in zip(prompts, candidates, scores, apart, strict=True):
        for ids, score, other in zip(row, together, others, strict=True):
            whole = np.concatenate([prompt, ids])
            padded = np.pad(whole, (0, 48 - len(whole)))[None]
            logits, _ = apply({"params": params}, padded, (np.arange(48) < len(whole))[None].astype(np.int32))
            logprobs = jax.nn.log_softmax(logits[0])[np.arange(len(prompt) - 1, len(whole) - 1), ids]
            assert score.token_logprobs == pytest.approx(logprobs.tolist(), rel=1e-4)
            assert score.logprob == pytest.approx(float(logprobs.sum()), rel=1e-4)
            assert other.logprob == pytest.approx(score.logprob, rel=1e-6)
            likeliest = jnp.argmax(logits[0], axis=-1)[len(prompt) - 1 : len(whole) - 1]
            assert score.is_greedy == bool((likeliest == ids).all())


def test_the_command_writes_results_answers_and_a_map(model, tokenizer, tmp_path, capsys):
    network, params = model
    checkpoint.save_model(tmp_path / "model", network.config, params, tokenizer)
    out = tmp_path / "out"
    argv = [
        "probe",
        str(tmp_path / "model"),
        "--output",
        str(out),
        "--lengths",
        "160",
        "--depths",
        "2",
        "--samples",
        "1",
    ]
    assert main([*argv, "--digits", "3"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {row["language"] for row in results["rows"]} == {"ja", "en"}
    assert all(0 <= row["exact"] <= 1 for row in results["rows"])
    assert len((out / "answers.jsonl").read_text().splitlines()) == 4
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert "ranked" in capsys.readouterr().out
    assert main(argv) == 2
    assert "already exists" in capsys.readouterr().err
    argv[3] = str(tmp_path / "other")
    assert main([*argv, "--language", "fr"]) == 2
    assert "--language fr is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_phonebooks_to_train_on(tmp_path, capsys):
    path = tmp_path / "books.jsonl"
    assert (
        main(["phonebook", str(path), "--documents", "6", "--entries", "3", "5", "--queries", "2", "--digits", "4"])
        == 0
    )
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["language"] for record in records] == ["ja", "en"] * 3
    for record in records:
        book, asked = record["text"].split("\n\n")
        assert 3 <= len(book.splitlines()) - 1 <= 5
        assert set(asked.splitlines()[1:]) <= set(book.splitlines())
    assert main(["phonebook", str(path), "--entries", "5", "3"]) == 2
    assert "the first must be" in capsys.readouterr().err


def test_every_field_of_a_question_is_kept():
    assert {field.name for field in dataclasses.fields(Question)} >= {"depth", "length", "language"}
