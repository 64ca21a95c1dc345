"""Recipe files of users: what they may contain, what errors say, and one recipe with a model."""

import copy
import dataclasses
import random
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from plamo2_jax import models
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatResponse, CompletionRequest, RequestError
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.synth.parsers import PARSERS
from plamo2_jax.synth.recipe_config import DraftConfig, RecipeConfig, StepConfig, parse_recipe
from plamo2_jax.synth.recipe_files import builtin_recipes, open_recipe
from plamo2_jax.synth.record import Draft, Refusal, Seed
from plamo2_jax.synth.template_recipe import TemplateRecipe
from plamo2_jax.synth.try_recipe import try_recipe
from plamo2_jax.synth.user_turn import local_user_turn
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from support.canned_answers import drive
from support.canned_model import CannedModel
from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]


@pytest.fixture
def chat_model(generator):
    return LocalChatModel(generator, ChatTemplate.load("chat"), {"model": "tiny"})


RECIPE = yaml.safe_load("""
name: titles
version: "1"
language: en
kind: text
source: document
fields: [topic]
parameters: {style: short}
draw:
  mood: [calm, loud]
  pair: {of: [a, b, c], count: 2}
  number: {least: 1, most: 3}
steps:
  - name: title
    chat: ["{{ parameters.style }} {{ drawn.mood }} title of {{ text }}", "{{ fields.topic }}: {{ text }}"]
    parse: {name: passage, prefix: ["Title:"]}
    refuse: [{when: "steps.title == 'no'", reason: title}]
  - name: next
    when: drawn.number > 1
    complete: "{{ text }} {{ steps.title }}"
    n: 3
    choose: {by: agreement, least: 0.5}
    stop: ["\\n"]
    max_new_tokens: 9
drafts:
  - text: "{{ steps.title }} {{ steps.next.value if steps.next else drawn.pair | join('') }}"
    fields: {mood: drawn.mood, pair: "drawn.pair | reverse | list"}
    scores: {length: steps.title | length}
verify: [language, {length_ratio: {least: 0.1}}]
""")
SEED = Seed("1", "en", "cats", {"topic": "pets"})


def recipe(**changes):
    return TemplateRecipe(parse_recipe(copy.deepcopy(RECIPE) | changes, "recipe titles.yaml"), "recipe titles.yaml")


def answer(*texts):
    return lambda request, step: ["Title: Big"] if step.name == "title" else list(texts)


def test_a_file_is_a_recipe(tmp_path):
    path = tmp_path / "titles.yaml"
    path.write_text(yaml.dump(RECIPE))
    prompts, kinds = set(), set()
    for i in range(40):
        asked, [draft] = drive(open_recipe(path), SEED, answer("x", "y", "x"), random=i)
        prompts.add(asked[0].messages[0]["content"])
        kinds.add(len(asked))
        mood, pair = draft.fields["mood"], draft.fields["pair"]
        assert draft.scores == {"length": 3.0}
        assert draft.text == ("Big x" if len(asked) == 2 else "Big " + "".join(pair[::-1]))
        if len(asked) == 2:
            assert asked[1].prompt == "cats Big"
            assert (asked[1].n, asked[1].stop.strings, asked[1].stop.max_new_tokens) == (3, ("\n",), 9)
        assert mood in ("calm", "loud")
        assert len(set(pair)) == 2
    assert prompts == {"short calm title of cats", "short loud title of cats", "pets: cats"}
    assert kinds == {1, 2}


def test_refusals_have_reasons():
    run = lambda seed, answer, one=None: drive(one or recipe(), seed, answer)[1]  # noqa: E731
    assert run(dataclasses.replace(SEED, fields={}), answer()) == Refusal("seed: no field topic")
    assert run(dataclasses.replace(SEED, text=" "), answer()) == Refusal("seed: no text")
    assert run(SEED, lambda request, step: ["Title: no"]) == Refusal("title")
    three = recipe(draw={**RECIPE["draw"], "number": {"least": 3, "most": 3}})
    assert run(SEED, answer("x", "y", "z"), three) == Refusal("agreement: too low")
    assert run(SEED, answer("", "", ""), three) == Refusal("parse: too short")
    assert run(SEED, answer(), three) == Refusal("response: none")
    japanese = recipe(source_language="ja")
    assert run(SEED, answer("x", "x", "x"), japanese) == Refusal("seed: other language")
    failing = recipe(drafts=[{"text": "{{ 1 / (steps.title | length - 3) }}"}])
    assert run(SEED, answer("x", "x", "x"), failing) == Refusal("template: ZeroDivisionError")
    empty = recipe(drafts=[{"text": " "}])
    assert run(SEED, answer("x", "x", "x"), empty) == Refusal("draft: empty")


def test_values_are_never_templates():
    hostile = "{{ 7 * 7 }}{% for i in x %}"
    asked, [draft] = drive(
        recipe(draw={**RECIPE["draw"], "number": {"least": 1, "most": 1}}),
        Seed("1", "en", hostile, {"topic": hostile}),
        lambda request, step: [f"Title: {hostile}"],
    )
    assert hostile in asked[0].messages[0]["content"]
    assert draft.text.startswith(hostile)


def test_the_hash_covers_what_affects_requests_only():
    base = recipe().prompt_sha256
    assert recipe(drafts=[{"text": "other"}], verify=[], description="d", version="2").prompt_sha256 == base
    last = [RECIPE["steps"][0], {**RECIPE["steps"][1], "parse": {"name": "list"}}]
    assert recipe(steps=last).prompt_sha256 == base
    for change in (
        {"parameters": {"style": "long"}},
        {"source_language": "en"},
        {"draw": {**RECIPE["draw"], "mood": ["calm"]}},
        {"steps": [{**RECIPE["steps"][0], "parse": {"name": "passage"}}, RECIPE["steps"][1]]},
        {"steps": [{**RECIPE["steps"][0], "sampling": {"temperature": 0.5}}, RECIPE["steps"][1]]},
        {"steps": [RECIPE["steps"][0], {**RECIPE["steps"][1], "complete": "{{ text }}"}]},
    ):
        assert recipe(**change).prompt_sha256 != base, change


def step(**changes):
    return {"steps": [{**RECIPE["steps"][0], **changes}, RECIPE["steps"][1]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": []}, "the key 'stepz' is unknown: it must be one of name, version"),
        ({"name": "a b"}, "name='a b' is not allowed"),
        ({"version": 1}, "version=1 is not allowed: it must be a text"),
        ({"kind": "chat"}, "kind='chat' is not allowed: it must be text or messages"),
        ({"source": "web"}, "source='web' is not allowed: it must be document, fields or none"),
        ({"source": "fields", "fields": []}, "fields=[] is not allowed: it must be the names of the seed's fields"),
        ({"steps": []}, "steps=[] is not allowed"),
        ({"steps": [RECIPE["steps"][0]] * 2}, "two steps have the name title"),
        ({"draw": {"mood": []}}, "draw.mood=[] is not allowed"),
        ({"draw": {"mood": {"least": 3, "most": 1}}}, "least=3, most=1 is not allowed"),
        ({"draw": {"mood": {"checkers": [["furigana"]], "least": 1, "most": 1}}}, "furigana has no wordings for 'en'"),
        ({"draw": {"mood": {"checkers": [["nothing"]], "least": 1, "most": 1}}}, "the checker 'nothing' is unknown"),
        (step(chat=[]), "step title: chat=() is not allowed"),
        (step(chat=[[{"role": "robot", "content": "x"}]]), "a list of wordings"),
        (step(complete="x"), "step title has chat and complete: give one of"),
        (step(parse={"name": "passage", "size": 1}), "the parser passage has no parameter 'size'"),
        (step(sampling={"temperature": -1}), "SamplingConfig.temperature=-1 is not allowed"),
        (step(sampling={"heat": 1}), "sampling: the key 'heat' is unknown"),
        (step(sampling={"temperature": "hot"}), "temperature='hot' is not allowed: it must be a number"),
        (step(max_new_tokens=0), "StopConfig.max_new_tokens=0 is not allowed"),
        (step(n=0), "n=0 is not allowed: it must be a whole number from 1 to 64"),
        (step(choose={"by": "all"}), "first for a step with one sample"),
        (step(keep={"least": 0}), "keep.least=0 is not allowed"),
        (step(refuse=[{"when": "true"}]), "refuse: the key reason is missing. Add it"),
        (step(chat="{{ texts }}"), "step title: the variable texts does not exist: it must be one of"),
        (step(chat="{{ fields.topik }}"), "fields.topik does not exist: fields has topic"),
        (step(chat="{{ steps.next }}"), "steps.next does not exist: steps has none"),
        (step(chat="{{ drawn.x }}"), "drawn.x does not exist: drawn has mood, pair, number"),
        (step(chat="{{ text "), "step title: the template has an error in line 1"),
        (step(chat="{{ text | random }}"), "No filter named 'random'"),
        (step(when="1 +"), "the template has an error"),
        ({"drafts": [{"messages": [{"role": "user", "content": "x"}]}]}, "draft 1 does not fit kind: text"),
        ({"drafts": [{"text": "{{ item }}"}]}, "the variable item does not exist"),
        ({"drafts": [{"text": "x", "scores": {"a": 1}}]}, "a mapping of names to Jinja expressions"),
        ({"verify": ["nothing"]}, "a step must be one of"),
        ({"verify": [{"length_ratio": {"most": "x"}}]}, "length_ratio.most='x' is not allowed"),
    ],
)
def test_errors_name_the_file_and_the_key(changes, message):
    with pytest.raises(PlamoError) as error:
        recipe(**changes)
    assert message in str(error.value)
    # Checkers are named by their own registry.
    assert str(error.value).startswith("recipe titles.yaml") or "checker" in message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "is not a recipe: it must be a YAML mapping"),
        ("name: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("name: x", "the key version is missing. Add it"),
        ("x: " + "y" * (1 << 20), "is too large for a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(PlamoError, match=r"r\.yaml") as error:
        open_recipe(path)
    assert message in str(error.value)


def test_unknown_recipes_are_refused(tmp_path):
    with pytest.raises(PlamoError, match=r"the recipe 'rephrase' is unknown: .* rephrase_simple_ja"):
        open_recipe("rephrase")
    with pytest.raises(PlamoError, match=r"cannot be read: No such file"):
        open_recipe(tmp_path / "none.yml")


def test_an_undefined_value_is_an_error_of_the_recipe():
    one = recipe(drafts=[{"text": "{{ steps.title.body }}"}])
    with pytest.raises(PlamoError, match=r"recipe titles.yaml: draft 1: text: a value does not exist: .*body"):
        drive(one, SEED, answer("x", "x", "x"))


def test_templates_use_no_global_random_state():
    one = recipe(draw={**RECIPE["draw"], "number": {"least": 3, "most": 3}})
    state = random.getstate(), np.random.get_state()[1].tolist()
    drive(one, SEED, answer("x", "x", "x"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_a_model_writes_a_record_and_a_message_of_the_user(chat_model, tmp_path):
    """The tiny model's answers are noise, so this recipe asks for no form."""
    path = tmp_path / "noise.yaml"
    step = {"max_new_tokens": 6, "allow_cut": True, "parse": {"name": "passage", "plain": False}}
    content = {
        **{"name": "noise", "version": "1", "language": "ja", "kind": "messages", "source": "none"},
        "steps": [
            {"name": "ask", "user_turn": "<|user|>", **step},
            {"name": "reply", "chat": "{{ steps.ask }}", **step},
        ],
        "drafts": [
            {
                "messages": [
                    {"role": "user", "content": "{{ steps.ask }}"},
                    {"role": "assistant", "content": "{{ steps.reply }}"},
                ]
            }
        ],
    }
    path.write_text(yaml.dump(content))
    server = open_recipe(path)
    request = next(server.requests(Seed("1", "ja"), 0, np.random.default_rng(0)))
    assert (request.prompt, request.bos, request.stop.ids) == ("<|user|>", False, None)

    one = open_recipe(path, model=chat_model)
    assert one.prompt_sha256 == server.prompt_sha256
    drafts = []
    for _ in range(2):
        generator = one.requests(Seed("1", "ja"), 0, np.random.default_rng(0))
        request = next(generator)
        assert isinstance(request, CompletionRequest)
        [[first]] = chat_model.complete([request])
        second = generator.send([first])
        [[reply]] = chat_model.chat([second])
        with pytest.raises(StopIteration) as end:
            generator.send([reply])
        drafts.append(end.value.value)
    assert drafts[0] == drafts[1]
    assert isinstance(drafts[0][0], Draft)
    assert [message["content"] for message in drafts[0][0].messages] == [first.text.strip(), reply.text.strip()]


def test_the_user_turn_is_the_beginning_of_the_chat_template(chat_model):
    turn = local_user_turn(chat_model)
    tokenizer, template = chat_model.tokenizer, chat_model.template
    for text in ("猫", "a cat", "12"):
        ids = template.encode(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True).ids.tolist()
        assert ids[: len(turn.prompt)] == turn.prompt
        after = ids[len(turn.prompt) + len(tokenizer.encode(f"{text}\n")) :]
        assert after[0] in turn.stop_ids
    assert tokenizer.decode(turn.prompt).endswith("user\n")
    assert local_user_turn(object()) is None


PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def block(name):
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glossary_en.yaml").write_text(block("example"))
    canned = CannedModel()
    canned._answer = lambda text: [ChatResponse("- purr: a sound\n- larynx: a part of the throat", "stop")]
    monkeypatch.setattr(models, "open", lambda name: canned)
    exec(block("try"), {})
    assert "text='Glossary\\npurr: a sound\\nlarynx: a part of the throat'" in capsys.readouterr().out
    assert [kind for kind, _ in canned.asked] == ["chat"]


def test_the_documentation_lists_all_recipes_and_parsers():
    table = PAGE.partition("## Recipes of this package")[2]
    for name in builtin_recipes():
        listed = {name, name.removesuffix("_ja").removesuffix("_en"), re.sub("_(chat|plamo)$", "", name)}
        assert any(f"`{one}`" in table for one in listed), name
    parsers = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Parsers")[2].partition("\n## ")[0], re.MULTILINE)
    assert parsers == list(PARSERS)
    keys = set(re.findall(r"`(\w+)[`:]", PAGE.partition("## Keys of a recipe")[2].partition("## Parsers")[0]))
    assert {
        field.name for kind in (RecipeConfig, StepConfig, DraftConfig) for field in dataclasses.fields(kind)
    } <= keys


def test_a_recipe_is_tried_on_several_seeds():
    seeds = [Seed(f"{i}", "ja") for i in range(5)]
    results = try_recipe(open_recipe("word_problems_ja"), seeds)
    assert results == try_recipe(open_recipe("word_problems_ja"), seeds)
    assert len({result[0].text for result in results}) == 5
    assert try_recipe(recipe(), [SEED]) == [Refusal("request: the recipe needs a model: give `model`")]
    failing = CannedModel()
    failing._answer = lambda text: RequestError("it failed")
    assert try_recipe(recipe(), [SEED], failing) == [Refusal("request: it failed")]
