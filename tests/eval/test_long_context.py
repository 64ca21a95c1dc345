"""RULER's kinds: lengths, positions, references and scores."""

import re

import pytest

from plamo2_jax.eval.ruler import needles
from plamo2_jax.eval.ruler.words import corpus_words
from plamo2_jax.eval.run import answer_items, spread
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task
from plamo2_jax.eval.tasks.long_context import KINDS
from plamo2_jax.models import ChatRequest, ChatResponse


def count(text):
    """Tokens of two characters."""
    return -(-len(text) // 2)


def opened(name="ruler", **options):
    return open_task(
        name, TaskOptions(**{"lengths": (2000,), "depths": 3, "trials": 1, "count_tokens": count} | options)
    )


def prompts(task):
    return {item.id: next(task.requests(item)) for item in task.items}


@pytest.mark.parametrize("name", ["ruler", "ruler_ja"])
@pytest.mark.parametrize("length", [2000, 5000])
def test_prompts_fill_their_length_and_hold_the_references(name, length):
    task = opened(name, lengths=(length,))
    assert len(task.items) == len(KINDS) * 3
    for item in task.items:
        [kind, _, number, _] = item.id.split("/")
        request = next(task.requests(item))
        used = 1 + count(request.prompt) + request.stop.max_new_tokens
        # The largest unit of a context is a sentence of needles or of noise, and steps of cwe are 3 words.
        assert length - 90 <= used <= length, item.id
        assert request.sampling.temperature == 0
        for reference in item.reference:
            assert reference in request.prompt, item.id
        if kind in needles.KINDS and needles.KINDS[kind].one_answer:
            [answer] = item.reference
            assert request.prompt.count(answer) == 1
            place = request.prompt.index(answer) / len(request.prompt)
            assert abs(place - 0.5 * int(number)) < 0.25, item.id


def test_questions_are_the_same_at_all_lengths_and_in_every_run():
    task, again = opened(lengths=(2000, 3000)), opened(lengths=(2000, 3000))
    assert prompts(task) == prompts(again)
    references = {}
    for item in task.items:
        kind, _, *rest = item.id.split("/")
        references.setdefault((kind, *rest), []).append(item.reference)
    # The words of fwe are as many as the length allows, and its first ones stay.
    assert all(short == long for short, long in references.values())
    assert prompts(opened(seed=1)).values() != prompts(opened()).values()


@pytest.mark.parametrize("name", ["ruler", "ruler_ja"])
def test_the_references_are_the_answers(name):
    """Solve each kind from the text of its prompt alone."""
    asked = prompts(opened(name))
    task = opened(name)
    for item in task.items:
        kind, text = item.id.split("/")[0], asked[item.id].prompt
        if kind == "vt":
            value = re.findall(r"VAR \w+ = (\d+)", text)[1]
            names, last = set(), text[text.index(f"= {value}") - 12 :]
            for left, right in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", last):
                if right == value or right in names:
                    names.add(left)
            found = names
        elif kind in ("cwe", "fwe"):
            pattern = r"\d+\. (\S+)" if kind == "cwe" else r"(?<=\s)([a-z]{6}|[ァ-ヴ]{4})(?=\s)"
            context = text.rpartition("\n1. " if kind == "cwe" else "\n")[2] if kind == "cwe" else text
            words = re.findall(pattern, context)
            most = sorted(set(words), key=lambda word: -words.count(word))
            found = set(most[: len(item.reference)])
            assert words.count(most[len(item.reference) - 1]) > words.count(most[len(item.reference)])
        else:
            key = (
                r"for (\S+?) is: ([\w-]+)\." if name == "ruler" else r"(\S+?)の特別な魔法の\w+?の一つは([\w-]+?)です。"
            )
            values = {}
            for owner, value in re.findall(key, text):
                values.setdefault(re.split(r"[。\s]", owner)[-1], []).append(value)
            question = item.question
            found = {value for owner, row in values.items() if owner in question for value in row}
        assert found == set(item.reference), item.id


def test_a_limited_evaluation_has_all_kinds_lengths_and_depths():
    task = opened(lengths=(2000, 3000), trials=4)
    items = spread(task.items, 2 * len(KINDS))
    assert len({item.group for item in items}) == 2 * len(KINDS)
    assert len({item.id.split("/")[2] for item in items}) == 3


def test_the_score_is_the_share_of_references():
    task = opened(kinds=("niah_multivalue",), depths=1)
    [item] = task.items
    first, second, *_ = item.reference
    scores = task.score([item] * 3, [{"text": f"{first}, {second}"}, {"text": "".join(item.reference)}, {"text": ""}])
    assert [row["score"] for row in scores] == [0.5, 1.0, 0.0]
    task = opened(kinds=("cwe",), depths=1)
    [item] = task.items
    assert task.score([item], [{"text": " ".join(item.reference).upper()}]) == [{"score": 1.0}]


class Reader:
    """A chat model that finds the needles of one kind."""

    chat = score = None
    parallel, description = False, {}

    def complete(self, requests):
        return [[ChatResponse(" ".join(re.findall(r"\d{7}", one.prompt)), "stop")] for one in requests]


def test_means_and_maps(tmp_path):
    task = opened(kinds=("niah_single_2", "vt"), lengths=(2000, 3000))
    scores = task.score(task.items, answer_items(task, Reader()))
    metrics = task.summarize(task.items, scores)
    assert list(metrics)[:3] == ["score", "score/2000", "score/3000"]
    assert metrics["score/niah_single_2/3000"].value == 1
    assert metrics["score/vt/2000"].value == 0
    assert metrics["score/2000"].value == metrics["score"].value == 0.5
    paths = task.plots(task.items, scores, tmp_path)
    assert [path.name for path in paths] == ["ruler.png", "ruler_depths.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_chat_mode_leaves_room_for_the_template():
    task = opened(mode="chat", kinds=("fwe",))
    request = next(task.requests(task.items[0]))
    assert isinstance(request, ChatRequest)
    [message] = request.messages
    assert 1 + count(message["content"]) + request.stop.max_new_tokens <= 2000 - 32


def test_refusals():
    with pytest.raises(ValueError, match=r"--lengths 300 is not allowed for cwe.* Use at least \d+"):
        opened(lengths=(300,), kinds=("cwe",))
    with pytest.raises(ValueError, match="--kinds qa_1 is not allowed"):
        opened(kinds=("qa_1",))
    with pytest.raises(ValueError, match="--mode score is not allowed"):
        opened(mode="score")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_word_of_the_lists_contains_another(language):
    words = corpus_words(language)
    # A context of 32K tokens needs about this many.
    assert len(words) > 1900
    joined = "\n".join(words)
    assert all(joined.count(word) == 1 for word in words)
