"""Recipes that need no model: every record follows from a rule and is right by construction.

`RULE_RECIPES` has them by name. A name that ends in `_chat` returns messages of a user and an assistant, the others return texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from plamo2_jax.synth.rule_recipes import arithmetic, directory, pages, translation, word_problems
from plamo2_jax.synth.rule_recipes.rule_recipe import RuleRecipe


def _named() -> dict[str, Callable[[], RuleRecipe]]:
    found: dict[str, Callable[[], RuleRecipe]] = {}
    for language in ("ja", "en"):
        for module in (arithmetic, word_problems, directory, pages):
            for kind, ending in (("text", ""), ("messages", "_chat")):
                name = f"{module.NAME}_{language}{ending}"
                found[name] = functools.partial(module.recipe, name, language, kind)
    for target in ("en", "ja"):
        for form in translation.FORMS:
            name = f"{translation.NAME}_{'ja_en' if target == 'en' else 'en_ja'}{translation.FORMS[form]}"
            found[name] = functools.partial(translation.recipe, name, target, form)
    return found


RULE_RECIPES: Mapping[str, Callable[[], RuleRecipe]] = _named()
"""Functions that make a recipe, by its name."""
