"""Knowledge lists: the statements of a page, one for each section, as a list or as the answer to a question.

A page has a title and sections with headings, as in the bundled corpus: a blank line before each heading.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from plamo2_jax.data.instructions import Section, sections
from plamo2_jax.synth.record import Draft, Kind, Refusal, Seed
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe

NAME = "page_facts"
_LEAST = 2
_MOST = 12
_SENTENCE = {"ja": re.compile(r"[^。\n]{8,200}。"), "en": re.compile(r"[^\n]{16,400}?[.!?](?= |$)")}
_ASK = {
    "ja": ("「{}」の要点を箇条書きにしてください。", "{} について、知っておくべきことを列挙してください。"),
    "en": ("List the main points of “{}”.", "What should I know about {}? Answer as a list."),
}
_HEAD = {"ja": "{} の要点", "en": "Main points of {}"}


def _make(language: str, kind: Kind, seed: Seed, random: np.random.Generator) -> list[Draft] | Refusal:
    found = sections(seed.text)
    title = found[0].heading
    facts = list(dict.fromkeys(filter(None, (_fact(part, title, language) for part in found))))[:_MOST]
    if len(facts) < _LEAST or not title:
        return Refusal("seed: too few sections")
    listed = "\n".join(f"- {fact}" for fact in facts)
    fields = {"title": title, "facts": len(facts)}
    if kind == "messages":
        question = _ASK[language][int(random.integers(len(_ASK[language])))].format(title)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": listed}]
        return [Draft(messages=messages, fields=fields)]
    return [Draft(text=f"{_HEAD[language].format(title)}\n{listed}", fields=fields)]


def _fact(part: Section, title: str, language: str) -> str | None:
    """Return the first sentence of a section after its heading."""
    sentence = next(filter(None, (_SENTENCE[language].match(one) for one in part.paragraphs[:2])), None)
    if sentence is None:
        return None
    return sentence[0] if part.heading == title else f"{part.heading}: {sentence[0]}"


def recipe(name: str, language: str, kind: Kind) -> RuleRecipe:
    """Return the recipe of a language."""
    return RuleRecipe(
        name=name,
        version="1",
        language=language,
        kind=kind,
        source="document",
        source_language=language,
        description="the first sentence of each section of a page, as a list",
        make=functools.partial(_make, language, kind),
    )
