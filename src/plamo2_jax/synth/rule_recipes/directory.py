"""Facts about invented people, and questions about them: a closed world to measure how well a model learns facts.

Person number i of a language always has the same name, telephone number, town, work and year of birth. A record draws people and wordings,
so that the same facts occur in different words. The fields of a draft have the people's numbers, the question's `attribute`, and `answer`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from plamo2_jax.eval.phonebook_names import full_names, numbers
from plamo2_jax.synth.record import Draft, Kind, Seed
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe, question_draft

NAME = "directory"
PEOPLE = 1500
"""Number of people of a language."""
_WORLD = 0x646972
_TOWNS = {
    "ja": "札幌 仙台 秋田 新潟 金沢 長野 甲府 静岡 名古屋 京都 奈良 神戸 岡山 広島 松江 高松 高知 福岡 長崎 那覇",
    "en": "Boston Denver Dublin Leeds Perth Toronto Glasgow Oxford Seattle Austin Bristol Halifax Auckland Cardiff Chicago",
}
_WORK = {
    "ja": "教師 大工 看護師 料理人 画家 記者 薬剤師 農家 郵便局員 写真家 翻訳家 整備士 図書館員 漁師 時計職人",
    "en": "teacher carpenter nurse cook painter reporter pharmacist farmer postman photographer translator mechanic librarian",
}
_TELL = {
    "ja": {
        "number": ("{name}さんの電話番号は{value}です。", "{name}さんへの連絡先は{value}です。", "電話番号{value}は{name}さんのものです。"),
        "town": ("{name}さんは{value}に住んでいます。", "{name}さんの家は{value}にあります。", "{value}には{name}さんが住んでいます。"),
        "work": ("{name}さんの職業は{value}です。", "{name}さんは{value}として働いています。", "{name}さんの仕事は{value}です。"),
        "born": ("{name}さんは{value}年に生まれました。", "{name}さんの生まれた年は{value}年です。",
                 "{value}年に{name}さんは生まれました。"),
    },
    "en": {
        "number": ("The telephone number of {name} is {value}.", "You can reach {name} at {value}.", "{value} is {name}'s number."),
        "town": ("{name} lives in {value}.", "The home of {name} is in {value}.", "{value} is where {name} lives."),
        "work": ("{name} works as a {value}.", "{name} is a {value}.", "The job of {name} is {value}."),
        "born": ("{name} was born in {value}.", "The year of birth of {name} is {value}.", "In {value}, {name} was born."),
    },
}  # fmt: skip
_ASK = {
    "ja": {
        "number": ("{name}さんの電話番号は何番ですか。", "{name}さんに電話をかけるときの番号を教えてください。"),
        "town": ("{name}さんはどこに住んでいますか。", "{name}さんの住む町を教えてください。"),
        "work": ("{name}さんの職業は何ですか。", "{name}さんはどんな仕事をしていますか。"),
        "born": ("{name}さんは何年に生まれましたか。", "{name}さんの生まれた年を教えてください。"),
    },
    "en": {
        "number": ("What is the telephone number of {name}?", "Which number do I dial to call {name}?"),
        "town": ("Where does {name} live?", "In which town is the home of {name}?"),
        "work": ("What is the job of {name}?", "What does {name} do for a living?"),
        "born": ("In which year was {name} born?", "What is the year of birth of {name}?"),
    },
}
ATTRIBUTES = ("number", "town", "work", "born")


@dataclasses.dataclass(frozen=True)
class Person:
    """An invented person."""

    name: str
    number: str
    town: str
    work: str
    born: str


@functools.cache
def people(language: str) -> tuple[Person, ...]:
    """Return all people of a language, always the same."""
    random = np.random.default_rng([_WORLD, len(language), *language.encode()])
    names, book = full_names(random, language, PEOPLE), numbers(random, language, PEOPLE)
    towns, work = _TOWNS[language].split(), _WORK[language].split()
    return tuple(
        Person(
            name,
            number,
            towns[int(random.integers(len(towns)))],
            work[int(random.integers(len(work)))],
            str(int(random.integers(1930, 2011))),
        )
        for name, number in zip(names, book, strict=True)
    )


def _make(language: str, kind: Kind, number: int, seed: Seed, random: np.random.Generator) -> list[Draft]:
    chosen = [int(i) for i in random.choice(number, int(random.integers(2, 6)), replace=False)]
    everyone, sentences = people(language), []
    for i in chosen:
        for attribute in random.permutation(ATTRIBUTES):
            wordings = _TELL[language][str(attribute)]
            value = getattr(everyone[i], str(attribute))
            wording = wordings[int(random.integers(len(wordings)))]
            sentences.append(wording.format(name=everyone[i].name, value=value))
    asked = chosen[int(random.integers(len(chosen)))]
    attribute = str(random.choice(ATTRIBUTES))
    wordings = _ASK[language][attribute]
    question = wordings[int(random.integers(len(wordings)))].format(name=everyone[asked].name)
    answer = getattr(everyone[asked], attribute)
    fields = {"people": chosen, "asked": asked, "attribute": attribute, "answer": answer}
    if kind == "messages":
        context = ("" if language == "ja" else " ").join(sentences)
        # A third of the questions must be answered from memory.
        if random.random() < 1 / 3:
            return [question_draft(kind, language, question, answer, fields)]
        return [question_draft(kind, language, f"{context}\n\n{question}", answer, fields)]
    draft = question_draft(kind, language, question, answer, fields)
    return [Draft(text="\n".join([*sentences, "", str(draft.text)]), fields=fields)]


def recipe(name: str, language: str, kind: Kind, number: int = PEOPLE) -> RuleRecipe:
    """Return the recipe of a language.

    Args:
        name: name of the recipe.
        language: "ja" or "en".
        kind: whether the records are texts or messages.
        number: how many of the people occur, from 5 to `PEOPLE`. A small model learns the facts of few people only.
    """
    return RuleRecipe(
        name=name,
        version="1",
        language=language,
        kind=kind,
        source="none",
        description=f"facts about {number:,} invented people in changing words, and a question",
        make=functools.partial(_make, language, kind, number),
    )
