"""Translation pairs: the texts at the same place of a page and of its translation.

A seed is a Japanese page with its English translation in the field `translation`. `aligned_seeds` makes seeds of the bundled corpus.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator

import numpy as np

from plamo2_jax.data import corpus
from plamo2_jax.data.clean import guess_language
from plamo2_jax.data.instructions import aligned_texts, sections
from plamo2_jax.synth.record import Draft, Refusal, Seed, Source
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe

NAME = "translation_pairs"
FORMS = {"text": "", "messages": "_chat", "plamo": "_plamo"}
"""Endings of the recipes' names. plamo: messages with `lang` and no instruction, for the chat template `translate` of PLaMo-translate."""
PASSAGES = (8, 400)
"""Smallest and largest number of characters of the Japanese text."""
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_LANGUAGES = {"ja": "Japanese", "en": "English"}
_ASK = {
    "en": (
        "次の文を英語に翻訳してください。\n\n{}",
        "Translate the following Japanese text into English.\n\n{}",
        "{}\n\nこの文を英語で書くとどうなりますか。",
    ),
    "ja": (
        "次の英文を日本語に翻訳してください。\n\n{}",
        "Translate the following English text into Japanese.\n\n{}",
        "{}\n\n上の英文を自然な日本語にしてください。",
    ),
}


def aligned_seeds(split: str = "train") -> Iterator[Seed]:
    """Yield a seed for each page of the bundled corpus that has a translation, in the order of their keys.

    Args:
        split: "train", "heldout" or "all".

    Raises:
        PlamoError: the split is unknown.
    """
    pages: dict[str, dict[str, dict[str, str]]] = {}
    for document in corpus.documents(split=split):
        pages.setdefault(document["pair"], {})[document["language"]] = document
    for pair, page in sorted(pages.items()):
        if len(page) == 2:
            sources = tuple(_source(page[language]) for language in ("ja", "en"))
            yield Seed(pair, "ja", page["ja"]["text"], {"translation": page["en"]["text"]}, sources)


def _source(document: dict[str, str]) -> Source:
    return Source(document["id"], hashlib.sha256(document["text"].encode()).hexdigest(), document["license"])


def _make(target: str, form: str, seed: Seed, random: np.random.Generator) -> list[Draft] | Refusal:
    translation = seed.fields["translation"]
    if not isinstance(translation, str) or not translation.strip():
        return Refusal("seed: no field translation")
    least, most = PASSAGES
    pairs = [
        (ja, en)
        for ja, en in aligned_texts(sections(seed.text), sections(translation))
        if least <= len(ja) <= most and guess_language(ja) == "ja" and not _JAPANESE.search(en)
    ]
    if not pairs:
        return Refusal("seed: no aligned texts")
    return [_draft(target, form, ja, en, random) for ja, en in pairs]


def _draft(target: str, form: str, ja: str, en: str, random: np.random.Generator) -> Draft:
    source, translated = (ja, en) if target == "en" else (en, ja)
    fields = {"source_text": source, "answer": translated}
    wording = _ASK[target][int(random.integers(len(_ASK[target])))]
    if form == "text":
        names = ("日本語", "英語") if target == "en" else ("English", "Japanese")
        return Draft(text=f"{names[0]}: {source}\n{names[1]}: {translated}", fields=fields)
    user = {"role": "user", "content": wording.format(source) if form == "messages" else source}
    assistant = {"role": "assistant", "content": translated}
    if form == "plamo":
        user["lang"], assistant["lang"] = _LANGUAGES["ja" if target == "en" else "en"], _LANGUAGES[target]
    return Draft(messages=[user, assistant], fields=fields)


def recipe(name: str, target: str, form: str) -> RuleRecipe:
    """Return the recipe that translates into `target`."""
    return RuleRecipe(
        name=name,
        version="1",
        language=target,
        kind="text" if form == "text" else "messages",
        source="document",
        source_language="ja",
        fields=("translation",),
        description="the aligned texts of a page and its translation",
        make=functools.partial(_make, target, form),
    )
