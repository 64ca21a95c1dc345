"""Verification: each step passes right drafts and refuses planted wrong ones; requests go to the generator or the judge."""

import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import JudgeRequest
from plamo2_jax.models import ChatRequest, ChatResponse
from plamo2_jax.sandbox import isolation_problem
from plamo2_jax.synth.recipe import Verification
from plamo2_jax.synth.recipe_files import builtin_recipes, open_recipe
from plamo2_jax.synth.record import Draft, Refusal, Seed
from plamo2_jax.synth.verify import STEPS, Verified, needs_judge, read_steps, verify

SOURCE = "東京は1868年に江戸から改称され、日本の首都となった。詳しくは https://example.org/tokyo を `tokyo()` で見よ。"
SEED = Seed("s1", "ja", SOURCE)


def run(steps, draft, seed=SEED, replies=(), language="ja", **options):
    """Drive a verification with canned replies. Return the result and the requests."""
    generator = verify("r1", draft, seed, read_steps(steps, "recipe"), language=language, **options)
    replies, asked, said = iter(replies), [], None
    while True:
        try:
            request = generator.send(said)
        except StopIteration as end:
            return end.value, asked
        asked.append(request)
        inner = request.request if isinstance(request, JudgeRequest) else request
        said = [ChatResponse(next(replies), "stop") for _ in range(inner.n)]


def reason(*arguments, **options):
    result, _ = run(*arguments, **options)
    return result.reason if isinstance(result, Refusal) else None


def text(words, **fields):
    return Draft(text=words, fields=fields)


CODE = "関数を書きました。\n```python\ndef double(x):\n    return 2 * x\n```\n"


@pytest.mark.parametrize(
    ("step", "draft", "expected"),
    [
        ({"rules": {"rules": {"characters": [3, 9]}}}, text("猫は動物。"), None),
        ({"rules": {"rules": {"characters": [3, 9]}}}, text("猫"), "rules: rule characters"),
        ("rules", text("猫", rules={"exact": "猫"}), None),
        ("rules", text("猫"), "rules: no field rules"),
        ("constraints", text("猫だ。犬だ。", constraints=[{"name": "no_comma"}]), None),
        ("constraints", text("a, b", constraints=[{"name": "no_comma"}]), "constraints: constraint no_comma"),
        ("number", text("2+3=5\n答え: 5", answer=5), None),
        ("number", text("答え: 5.0", answer="10/2"), None),
        ("number", text("答え: 6", answer=5), "number: another number"),
        ("number", text("答え: 0.00005", answer=0.00005), None),
        ("number", text("答え: 5", answer=0.00005), "number: another number"),
        ("number", text("わからない", answer=5), "number: no number"),
        ("number", text("答え: 6"), "number: no number in the field answer"),
        ({"score": {"name": "votes", "least": 0.5}}, Draft(text="猫", scores={"votes": 0.75}), None),
        ({"score": {"name": "votes", "least": 0.5}}, Draft(text="猫", scores={"votes": 0.25}), "score: votes"),
        ({"score": {"name": "votes"}}, text("猫"), "score: no score votes"),
        ("length_ratio", text(SOURCE[:40]), None),
        ("length_ratio", text("首都。"), "length_ratio: too short"),
        ("length_ratio", text(SOURCE * 4), "length_ratio: too long"),
        ("copy", text("明治維新の年に、江戸は東京という名に変わった。"), None),
        ("copy", text(SOURCE), "copy: copied share"),
        ({"copy": {"most": 1.0, "window": 30}}, text(f"要点。{SOURCE[:36]}である。"), "copy: longest copy"),
        ("meta_phrases", text("東京は首都である。"), None),
        ("meta_phrases", text("以下に書き換えた文章を示します。"), "meta_phrases: 以下に"),
        ("language", text("東京は日本の首都である。"), None),
        ("language", text("Tokyo is the capital of Japan, and it is large."), "language: en"),
        ({"language": {"language": "en"}}, text("Tokyo is the capital of Japan."), None),
        ("repetition", text("東京は日本の首都である。江戸時代は将軍の町であった。"), None),
        ("repetition", text("東京は首都である。\n" * 5), "repetition: lines"),
        ("repetition", text("あいうえおかきくけこ" * 9), "repetition: ngram"),
        (
            {"repetition": {"ngram": 1.0, "compression": 4}},
            text("".join(f"第{i}に、東京は日本の首都であると言われている。" for i in range(20))),
            "repetition: compression",
        ),
    ],
)
def test_steps_without_requests(step, draft, expected):
    assert reason([step], draft) == expected


GOOD = "Tokyo was renamed from Edo in 1868. See https://example.org/tokyo with `tokyo()`."


@pytest.mark.parametrize(
    ("translation", "fields", "expected"),
    [
        (GOOD, {}, None),
        (GOOD.replace("1868", "1869"), {}, "kept: numbers"),
        (GOOD.replace("tokyo ", "kyoto "), {}, "kept: urls"),
        (GOOD.replace("`", "'"), {}, "kept: code"),
        (GOOD, {"terms": {"江戸": "Edo", "京都": "Kyoto"}}, None),
        (GOOD, {"terms": {"首都": "capital"}}, "kept: terms"),
        (GOOD, {"terms": ["Edo"]}, None),
    ],
)
def test_a_translation_keeps_what_must_survive(translation, fields, expected):
    assert reason(["kept"], text(translation, **fields), language="en") == expected


def test_numbers_survive_in_other_units_and_words():
    seed = Seed("s", "ja", "人口は1億2000万人、5月に3人増えた。")
    assert reason(["kept"], text("It had 120 million people; three more came in May."), seed) is None
    assert reason(["kept"], text("It had 12 million people; three more came in May."), seed) == "kept: numbers"


@pytest.mark.skipif(isolation_problem() is not None, reason=str(isolation_problem()))
def test_code_must_pass_tests_that_can_fail():
    assert reason(["code"], text(CODE, tests="assert double(4) == 8")) is None
    assert reason(["code"], text(CODE.replace("2 *", "3 *"), tests="assert double(4) == 8")) == "code: tests fail"
    assert reason(["code"], text(CODE, tests="assert True")) == "code: tests pass without the program"
    assert reason(["code"], text(CODE)) == "code: no field tests"


def test_the_judge_is_asked_again_at_most_three_times():
    steps = [{"judge": {"least": 3}}]
    result, asked = run(steps, text("東京は首都。"), replies=["よい文章です。", "[[9]]", "理由…\n[[4]]"])
    assert isinstance(result, Verified)
    assert result.scores == {"judge": 4.0}
    assert result.verdicts == {"judge": True}
    assert all(isinstance(request, JudgeRequest) for request in asked)
    assert len({request.request.id for request in asked}) == 3
    assert "東京は首都。" in asked[0].request.messages[1]["content"]
    assert SOURCE in asked[0].request.messages[1]["content"]
    assert reason(steps, text("東京"), replies=["?", "?", "?"]) == "judge: no score"
    assert reason(steps, text("東京"), replies=["[[2]]"]) == "judge: score 2"
    assert reason(steps, text("東京"), replies=["[[0]]"]) == "judge: score 0"


def test_agreement_counts_equal_answers():
    draft = Draft(
        messages=[{"role": "user", "content": "2+3は{何}？"}, {"role": "assistant", "content": "5です。答え: 5"}]
    )
    result, (request,) = run(["agreement"], draft, replies=["答え: 5", "答え: 6", "5.0", "不明"])
    assert result.scores == {"agreement": 0.5}
    assert isinstance(request, ChatRequest)
    assert request.n == 4
    assert request.messages[0]["content"] == "2+3は{何}？"
    assert reason(["agreement"], draft, replies=["答え: 5", "答え: 6", "7", "不明"]) == "agreement: disagreement"
    words = {"agreement": {"numeric": False, "samples": 2, "least": 1.0, "question_field": "q", "answer_field": "a"}}
    assert reason([words], text("x", q="首都は？", a="東京。"), replies=["考える\n東京", "Ｔｏｋｙｏ"]) is not None
    assert reason([words], text("x", q="首都は？", a="東京。"), replies=["考える\n東京", "東 京"]) is None
    assert reason(["agreement"], text("5")) == "agreement: no question"


def test_the_round_trip_is_asked_only_without_a_translation_back():
    back = SOURCE.replace("改称", "改名")
    result, (request,) = run(["round_trip"], text(GOOD), replies=[back])
    assert 70 < result.scores["round_trip_chrf"] < 100
    assert "日本語に翻訳" in request.messages[0]["content"]
    result, asked = run(["round_trip"], text(GOOD, back_translation="猫。"))
    assert result == Refusal("round_trip: chrF")
    assert not asked


def test_the_first_failure_ends_the_verification():
    result, asked = run(["language", "judge", "round_trip"], text(GOOD))
    assert result == Refusal("language: en")
    assert not asked
    result, _ = run(["language", {"judge": {"name": "style"}}, "copy"], text("首都は東京。"), replies=["[[5]]"])
    assert list(result.verdicts) == ["language", "judge", "copy"]
    assert result.scores["style"] == 5.0
    assert needs_judge([Verification("judge")])
    assert not needs_judge([Verification("copy")])


def test_other_fields_can_be_verified():
    draft = text(f"{SOURCE}\n{GOOD}", translation=GOOD)
    assert reason([{"language": {"language": "en", "of": "translation"}}], draft) is None
    assert reason([{"kept": {"of": "missing"}}], draft) == "kept: numbers"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["smell"], r"r: verify, step 1 has 'smell': a step must be one of rules, constraints"),
        ([{"copy": {"mots": 1}}], r"r: verify, step 1: copy has no parameter 'mots': it has of, against, most"),
        ([{"copy": {"most": "1"}}], r"copy\.most='1' is not allowed: it must be a number"),
        ([{"copy": {"most": 2.0}}], r"Copy\.most=2\.0 is not allowed: it must be between 0 and 1"),
        ([{"judge": {"least": 2.5}}], r"judge\.least=2\.5 is not allowed: it must be a whole number"),
        ([{"judge": {"least": True}}], r"judge\.least=True is not allowed"),
        (["score"], r"score: the parameter name is missing"),
        ([{"copy": {}, "judge": {}}], r"it must be a name, or one name with parameters"),
        ([{"copy": [1]}], r"parameters must be an object"),
        ([{"constraints": {"constraints": [{"name": "nosuch"}]}}], r"the checker 'nosuch' is unknown"),
        ([{"meta_phrases": {"allow": [1]}}], r"meta_phrases\.allow=\(1,\) is not allowed: it must be a list of texts"),
    ],
)
def test_a_wrong_step_is_refused_with_its_place(steps, message):
    with pytest.raises(PlamoError, match=message):
        read_steps(steps, "r")


def test_every_step_has_defaults_that_are_allowed():
    for name in STEPS:
        assert read_steps([{name: {"name": "votes"} if name == "score" else None}], "r")


@pytest.mark.parametrize("name", builtin_recipes())
def test_the_steps_of_a_recipe_in_the_package_are_allowed(name):
    recipe = open_recipe(name)
    # Programs make records that are right by construction.
    assert bool(read_steps(recipe.verify, name)) == recipe.uses_model
