"""The recipe files of this package: each renders, accepts good answers and refuses bad ones."""

import dataclasses
import itertools

import numpy as np
import pytest

from plamo2_jax import checkers
from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest
from plamo2_jax.synth.recipe_files import builtin_recipes, open_recipe
from plamo2_jax.synth.record import Refusal, Seed
from plamo2_jax.synth.verify import Verified, verify
from support.canned_answers import OTHER, TEXT, drive, finish, good

MODEL = [name for name in builtin_recipes() if open_recipe(name).uses_model]
INSTRUCTION = {"ja": "図書館の使い方を紹介してください。", "en": "Describe how to use a library."}


def seed_of(recipe):
    language = recipe.source_language or recipe.language
    fields = {"instruction": INSTRUCTION[recipe.language]} if recipe.fields else {}
    return Seed("seed/1", language, TEXT[language] if recipe.source == "document" else "", fields)


def answer_well(recipe):
    """Answer all steps so that the last one passes verification: translations go to the other language."""

    def answer(request, step):
        language = recipe.language
        if step.name == "back":
            return [good(step, recipe.source_language, 1)]
        if step.name == "followup":
            return [good(step, language, 1)]
        return (
            [good(step, language, number) for number in range(request.n)] if request.n > 1 else [good(step, language)]
        )

    return answer


@pytest.mark.parametrize("name", MODEL)
def test_a_recipe_turns_good_answers_into_drafts_that_pass_its_verification(name):
    recipe = open_recipe(name)
    assert recipe.name == name
    assert name.endswith(recipe.language)
    seed = seed_of(recipe)
    for random in range(3):
        asked, drafts = drive(recipe, seed, answer_well(recipe), random=random)
        assert not isinstance(drafts, Refusal), drafts
        assert asked
        assert all(isinstance(request, ChatRequest | CompletionRequest) for request in asked)
        assert len({request.id for request in asked}) == len(asked)
        for draft in drafts:
            assert (draft.text is None) == (recipe.kind == "messages")
            if draft.messages is not None:
                assert draft.messages[-1]["role"] == "assistant"
                assert all(message["content"].strip() for message in draft.messages)
            if recipe.name.startswith("instruct_constrained"):
                continue  # The canned answers do not know the conditions.
            verified = finish(verify("id", draft, seed, recipe.verify, language=recipe.language))
            assert isinstance(verified, Verified), verified


@pytest.mark.parametrize("name", MODEL)
def test_a_recipe_refuses_bad_answers_at_each_step(name):
    recipe = open_recipe(name)
    well = answer_well(recipe)
    names = [step.name for step in recipe.config.steps]
    for bad, text in itertools.product(names, ("", " \n", "…")):

        def answer(request, step, bad=bad, text=text):
            return [text] * request.n if step.name == bad else well(request, step)

        asked, result = drive(recipe, seed_of(recipe), answer)
        # Answers of chat models are free text, so "…" is only refused if the step asks for a form.
        reached = any(request.id.endswith(f"/{bad}") for request in asked)
        free = text == "…" and name.startswith("instruct_constrained")
        if reached and not free:
            assert isinstance(result, Refusal), (bad, text, result)
            assert result.reason.startswith("parse: ")
    assert isinstance(drive(recipe, Seed("empty", "xx"), well)[1], Refusal) or recipe.source == "none"


@pytest.mark.parametrize("name", MODEL)
def test_requests_depend_on_seed_sample_and_random_state_only(name):
    first, second = open_recipe(name), open_recipe(name)
    assert first.prompt_sha256 == second.prompt_sha256
    runs = [drive(one, seed_of(one), answer_well(one), sample=2, random=4) for one in (first, second)]
    assert runs[0] == runs[1]


def test_the_wordings_of_a_recipe_are_all_used():
    recipe = open_recipe("rephrase_encyclopedia_ja")
    prompts = {
        drive(recipe, seed_of(recipe), answer_well(recipe), random=i)[0][0].messages[-1]["content"] for i in range(40)
    }
    assert len(prompts) == len(recipe.config.steps[0].chat) == 3


def test_prompt_hashes_differ():
    assert len({open_recipe(name).prompt_sha256 for name in builtin_recipes()}) == len(builtin_recipes())


@pytest.mark.parametrize("language", ["ja", "en"])
def test_constraints_are_in_training_wordings_only_and_are_verified(language):
    recipe = open_recipe(f"instruct_constrained_{language}")
    tests = {
        word for one in checkers.CHECKERS.values() if language in one.wordings for word in one.wordings[language].test
    }
    for random in range(60):
        [request], drafts = drive(recipe, seed_of(recipe), lambda request, step: ["A", "B", "C", "A b."], random=random)
        assert len(drafts) == 4
        prompt = drafts[0].messages[0]["content"]
        assert request.messages[0]["content"] == prompt
        for one in drafts[0].fields["constraints"]:
            checker, parameters = checkers.find(one["name"]), one["parameters"]
            assert one["instruction"] in prompt
            words = {name: checker.parameters[name].words(value, language) for name, value in parameters.items()}
            train = [text.format(**words) for text in checker.wordings[language].train]
            assert one["instruction"] in train
            held = {text.format(**words) for text in tests & set(checker.wordings[language].test)}
            assert one["instruction"] not in held - set(train)
    [_], drafts = drive(recipe, seed_of(recipe), lambda request, step: [OTHER[language]] * 4)
    result = finish(verify("id", drafts[0], seed_of(recipe), recipe.verify, language=language))
    wanted = drafts[0].fields["constraints"]
    passed = all(checkers.check(one["name"], OTHER[language], one["parameters"]) for one in wanted)
    assert isinstance(result, Verified) == passed


def test_problems_need_agreement():
    recipe = open_recipe("math_word_problems_ja")
    [problem, _] = recipe.config.steps

    def answer(*numbers):
        texts = [f"計算すると次のようになります。12 × 4 = {n}\n答え: {n}冊" if n else "分かりません" for n in numbers]
        return lambda request, step: texts if step.name == "solution" else [good(problem, "ja")]

    _, [draft] = drive(recipe, seed_of(recipe), answer(48, 48, 50, 48))
    assert draft.scores == {"agreement": 0.75}
    assert draft.fields == {"answer": "48"}
    assert draft.messages[1]["content"].endswith("答え: 48冊")
    assert drive(recipe, seed_of(recipe), answer(48, 48, 50, 51))[1] == Refusal("agreement: too low")
    # Unreadable samples count against the agreement.
    assert drive(recipe, seed_of(recipe), answer(48, 48, None, None))[1] == Refusal("agreement: too low")


def test_the_number_of_questions_grows_with_the_document():
    recipe = open_recipe("diverse_qa_ja")
    many = "\n".join(f"質問: {i}番目は何ですか。\n回答: {i}です。" for i in range(8))
    counts = {}
    for length in (1, 12):
        seed = dataclasses.replace(seed_of(recipe), text=TEXT["ja"] * length)
        runs = [drive(recipe, seed, lambda request, step: [many], random=i)[1][0] for i in range(60)]
        counts[length] = [len(one.fields["pairs"]) for one in runs]
        assert all(one.text.startswith(TEXT["ja"]) for one in runs)
    assert set(counts[1]) == {1}
    assert set(counts[12]) == set(range(1, 9))


def test_evolved_instructions_without_gain_are_refused():
    recipe = open_recipe("instruct_evolve_ja")
    well = answer_well(recipe)

    def with_answer(name, text):
        return lambda request, step: [text] if step.name == name else well(request, step)

    seed = seed_of(recipe)
    assert drive(recipe, seed, with_answer("gain", "同じことを求めています。\nいいえ"))[1] == Refusal("evolve: no gain")
    same = f"新しい指示: {INSTRUCTION['ja']}"
    assert drive(recipe, seed, with_answer("evolved", same))[1] == Refusal("evolve: unchanged")


def test_a_cut_or_filtered_response_is_refused():
    recipe = open_recipe("rephrase_simple_en")
    for ending, reason in (
        ("length", "response: cut at max_new_tokens"),
        ("content_filter", "response: content filter"),
    ):
        generator = recipe.requests(seed_of(recipe), 0, np.random.default_rng(0))
        next(generator)
        with pytest.raises(StopIteration) as end:
            generator.send([ChatResponse(good(recipe.config.steps[0], "en"), ending)])
        assert end.value.value == Refusal(reason)


def test_plamo_translate_gets_its_languages():
    recipe = open_recipe("translate_plamo_ja_en")
    first, back = drive(recipe, seed_of(recipe), answer_well(recipe))[0]
    assert first.messages == [{"role": "user", "content": TEXT["ja"]}]
    assert first.variables == {"source_language": "Japanese", "target_language": "English"}
    assert back.variables == {"source_language": "English", "target_language": "Japanese"}
