"""Recipes that need no model: answers are right by an independent evaluation, and equal seeds give equal records."""

import ast
import collections
import decimal
import fractions
import math
import re

import numpy as np
import pytest

from plamo2_jax.synth.recipe_files import open_recipe
from plamo2_jax.synth.record import Refusal, Seed
from plamo2_jax.synth.rule_recipes import RULE_RECIPES, directory
from plamo2_jax.synth.rule_recipes.translation import aligned_seeds
from plamo2_jax.synth.rule_recipes.word_problem_kinds import KINDS
from support.canned_answers import drive, finish

SAMPLES = 400
PAGE = (
    "猫\n猫は、哺乳類に属する小さな動物です。よく眠ります。\n\n食事\n猫は、肉や魚を好んで食べます。\n\n歴史\n"
    "人と猫は、一万年ほど一緒に暮らしてきました。"
)
PAGE_EN = (
    "Cats\nCats are small mammals that sleep a lot. They purr.\n\nFood\nMost cats prefer meat or fish.\n\nHistory\n"
    "People and cats have lived together for ten thousand years."
)


def drafts(name, count=SAMPLES, seed=None):
    recipe = open_recipe(name)
    for i in range(count):
        yield drive(recipe, seed or Seed(f"{i}", recipe.language), None, random=i)[1]


def value(text):
    """The value of a calculation with + - × ÷, parentheses and fractions, as a Fraction."""

    def of(node):
        if isinstance(node, ast.Constant):
            return fractions.Fraction(str(node.value))
        left, right = of(node.left), of(node.right)
        return {
            ast.Add: lambda: left + right,
            ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right,
            ast.Div: lambda: left / right,
        }[type(node.op)]()

    return of(ast.parse(text.replace("×", "*").replace("÷", "/"), mode="eval").body)


EQUATION = re.compile(r"([0-9(][0-9.+\-×÷/() ]*[0-9)]) = ([0-9./]+[0-9]|[0-9])")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_arithmetic_is_right(language):
    kinds = collections.Counter()
    for [draft] in drafts(f"arithmetic_{language}"):
        question, _, solution = draft.text.partition("\n")
        equations = EQUATION.findall(solution)
        assert len(equations) >= 1
        for left, right in equations:
            assert value(left) == value(right), draft.text
        expression, answer = draft.fields["expression"], draft.fields["answer"]
        wanted = eval(expression, {"Fraction": fractions.Fraction, "Decimal": decimal.Decimal, "divmod": divmod})
        numbers = [fractions.Fraction(one) for one in re.findall(r"[\d./]+", answer)]
        if isinstance(wanted, tuple):
            assert numbers == list(wanted) if wanted[1] else numbers == [wanted[0]]
        else:
            assert numbers == [fractions.Fraction(wanted)]
        assert solution.endswith(answer)
        # The question has the numbers of the expression, in order.
        assert re.findall(r"\d+", question) == re.findall(r"\d+", expression.replace("Fraction", ""))
        kinds[re.sub(r"\d+", "n", expression)[:12]] += 1
    assert len(kinds) >= 7


# Answers by formulas of their own: the solution's steps are not used.
FORMULAS = {
    "shopping": lambda n, p, m, q: n * p + m * q,
    "change": lambda n, p, paid: paid - n * p,
    "sharing": lambda n, k: n % k,
    "distance": lambda v, h, w, j: v * h + w * j,
    "duration": lambda d, v: fractions.Fraction(d, v),
    "discount": lambda p, off: p * fractions.Fraction(100 - off, 100),
    "ages": lambda age, older, years: 2 * (age + years) + older,
    "average": lambda s, t, u, w: fractions.Fraction(s + t + u + w, 4),
    "rectangle": lambda l, w, d: l * w - 2 * d * (l + w) + 4 * d * d,
    "ratio": lambda total, r, s: fractions.Fraction(total * r, r + s),
    "saving": lambda start, monthly, goal: fractions.Fraction(goal - start, monthly),
    "reading": lambda pages, daily, days: pages - daily * days,
    "meeting": lambda d, u, v: fractions.Fraction(d, u + v),
    "part": lambda n, k, more: n - fractions.Fraction(n, k) - more,
    "boxes": lambda n, size: math.ceil(fractions.Fraction(n, size)),
}


@pytest.mark.parametrize("language", ["ja", "en"])
def test_word_problems_are_right(language):
    seen = collections.defaultdict(set)
    for [draft] in drafts(f"word_problems_{language}_chat", 2 * SAMPLES):
        question, solution = (message["content"] for message in draft.messages)
        problem, given, answer = (draft.fields[name] for name in ("problem", "values", "answer"))
        assert FORMULAS[problem](**given) == int(answer) > 0
        # The story has these numbers, and otherwise only "1個", "2人" and "4回".
        told = set(re.findall(r"\d+", question))
        assert {str(number) for number in given.values()} <= told
        assert told - {str(number) for number in given.values()} <= {"1", "2", "4"}
        for left, right in EQUATION.findall(solution):
            assert value(left) == value(right), solution
        last = solution.splitlines()[-1]
        assert re.findall(r"\d+", last) == [answer]
        assert re.match("答え: |Answer: ", last)
        assert "{" not in question + solution
        seen[problem].add(question)
    assert {one.name for one in KINDS} == set(FORMULAS) == set(seen)
    # The space is large: hardly any question repeats.
    assert sum(map(len, seen.values())) > 0.99 * 2 * SAMPLES


@pytest.mark.parametrize("language", ["ja", "en"])
def test_facts_of_a_person_never_change(language):
    everyone = directory.people(language)
    assert len({one.name for one in everyone}) == len({one.number for one in everyone}) == directory.PEOPLE
    for [draft] in drafts(f"directory_{language}", 100):
        fields = draft.fields
        asked = everyone[fields["asked"]]
        assert fields["answer"] == getattr(asked, fields["attribute"])
        *facts, question, answer = draft.text.splitlines()
        assert asked.name in question
        assert answer.endswith(fields["answer"])
        named = [line for line in facts if asked.name in line]
        assert sum(getattr(asked, one) in " ".join(named) for one in directory.ATTRIBUTES) == 4
        assert len(facts) - 1 == 4 * len(fields["people"])


def test_translation_pairs_of_the_corpus():
    seeds = [seed for i, seed in enumerate(aligned_seeds("heldout")) if i < 20]
    assert len({seed.id for seed in seeds}) == 20
    assert all(len(seed.sources) == 2 and seed.sources[0].license != "unknown" for seed in seeds)
    found = [
        finish(open_recipe("translation_pairs_ja_en_chat").requests(seed, 0, np.random.default_rng(0)))
        for seed in seeds
    ]
    pairs = [draft for some in found if not isinstance(some, Refusal) for draft in some]
    assert len(pairs) > 20
    for draft in pairs:
        user, assistant = (message["content"] for message in draft.messages)
        assert draft.fields["source_text"] in user
        assert assistant == draft.fields["answer"]
        assert assistant.isascii() or not re.search("[ぁ-ん]", assistant)
    # Both texts are in the pages at the same place.
    [seed] = [seed for seed, some in zip(seeds, found, strict=True) if not isinstance(some, Refusal)][:1]
    for draft in found[seeds.index(seed)]:
        assert draft.fields["source_text"] in seed.text
        assert draft.fields["answer"] in seed.fields["translation"]
    [plamo] = [finish(open_recipe("translation_pairs_en_ja_plamo").requests(seed, 0, np.random.default_rng(0)))]
    assert [message["lang"] for message in plamo[0].messages] == ["English", "Japanese"]
    assert plamo[0].messages[0]["content"] in seed.fields["translation"]


def test_lists_of_a_page():
    for language, page in (("ja", PAGE), ("en", PAGE_EN)):
        [[text]] = drafts(f"page_facts_{language}", 1, Seed("p", language, page))
        lines = text.text.splitlines()
        assert len(lines) == 4
        assert all(line.removeprefix("- ").rpartition(": ")[2] in page for line in lines[1:])
        [short] = drafts(f"page_facts_{language}", 1, Seed("p", language, page.split("\n\n")[0]))
        assert short == Refusal("seed: too few sections")


@pytest.mark.parametrize("name", RULE_RECIPES)
def test_a_recipe_is_deterministic_and_asks_nothing(name):
    recipe = open_recipe(name)
    assert not recipe.uses_model
    assert recipe.name == name
    page = {"ja": PAGE, "en": PAGE_EN}[recipe.source_language or recipe.language]
    seed = Seed("p", recipe.source_language or recipe.language, page, {"translation": PAGE_EN})
    first, second, other = (drive(recipe, seed, None, random=i) for i in (1, 1, 2))
    assert first == second
    assert first[0] == []
    assert not isinstance(first[1], Refusal)
    assert recipe.source == "document" or first != other
    for draft in first[1]:
        assert (draft.text is None) == (recipe.kind == "messages")
    if recipe.source == "document":
        assert isinstance(drive(recipe, Seed("p", "xx", page), None)[1], Refusal)
        assert drive(recipe, Seed("p", seed.language, " "), None)[1] == Refusal("seed: no text")


def test_directory_of_few_people():
    recipe = directory.recipe("directory_ja", "ja", "text", 6)
    seen = {i for n in range(50) for i in drive(recipe, Seed(f"{n}", "ja"), None, random=n)[1][0].fields["people"]}
    assert seen == set(range(6))
