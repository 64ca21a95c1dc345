"""Word problems with whole numbers: a story, the steps of its solution, and the answer.

The fields of a draft have `problem` (the kind), `values` (the numbers in the story by name), and `answer`.
"""

from __future__ import annotations

import functools

import numpy as np

from plamo2_jax.synth.record import Draft, Kind, Seed
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe, question_draft
from plamo2_jax.synth.rule_recipes.word_problem_kinds import KINDS, Problem

NAME = "word_problems"
_PEOPLE = {
    "ja": "花子 太郎 健太 美咲 翔太 結衣 大輔 陽子 直樹 さくら 拓也 真由美 蓮 葵 悠真 千尋 和也 恵子 亮 麻衣",
    "en": "Emma Liam Olivia Noah Ava Ethan Mia Lucas Sophie Henry Grace Oscar Chloe Daniel Ruby Samuel Alice Peter Nora Jack",
}
_ITEMS = {
    "ja": "りんご みかん 鉛筆 ノート おにぎり クッキー 消しゴム トマト シール パン 卵 切手 キャラメル 風船 電池 たまねぎ",
    "en": "apples oranges pencils notebooks cookies tomatoes stickers candles eggs stamps balloons batteries onions marbles buttons",
}
_END = {"ja": "答え: {answer}{unit}", "en": "Answer: {answer}{unit}"}


def _make(language: str, kind: Kind, seed: Seed, random: np.random.Generator) -> list[Draft]:
    problem: Problem = KINDS[int(random.integers(len(KINDS)))]
    given, derived = problem.draw(random)
    people, items = _PEOPLE[language].split(), _ITEMS[language].split()
    words = dict(zip(("a", "b"), (people[int(i)] for i in random.choice(len(people), 2, replace=False)), strict=True))
    words |= dict(zip(("x", "y"), (items[int(i)] for i in random.choice(len(items), 2, replace=False)), strict=True))
    text = problem.texts[language]
    question = text.questions[int(random.integers(len(text.questions)))]
    numbers = {**given, **derived}
    steps = [line.format(**words, **numbers) for line in text.steps]
    end = _END[language].format(answer=numbers[problem.answer], unit=text.unit)
    fields = {"problem": problem.name, "values": given, "answer": str(numbers[problem.answer])}
    solution = "\n".join([*steps, end])
    return [question_draft(kind, language, question.format(**words, **numbers), solution, fields)]


def recipe(name: str, language: str, kind: Kind) -> RuleRecipe:
    """Return the recipe of a language."""
    return RuleRecipe(
        name=name,
        version="1",
        language=language,
        kind=kind,
        source="none",
        description=f"word problems of {len(KINDS)} kinds with their steps",
        make=functools.partial(_make, language, kind),
    )
