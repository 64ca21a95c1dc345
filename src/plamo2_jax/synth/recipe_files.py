"""Open a recipe by its name or its file."""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModel
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.recipe_config import parse_recipe, read_recipe_file
from plamo2_jax.synth.rule_recipes import RULE_RECIPES
from plamo2_jax.synth.template_recipe import TemplateRecipe
from plamo2_jax.synth.user_turn import local_user_turn
from plamo2_jax.validation import shown

_FILES = resources.files("plamo2_jax.synth") / "recipes"
_ENDING = ".yaml"


@functools.cache
def builtin_recipes() -> tuple[str, ...]:
    """Return the names of the recipes of this package: its recipe files, and the recipes without a model."""
    names = sorted(path.name.removesuffix(_ENDING) for path in _FILES.iterdir() if path.name.endswith(_ENDING))
    return (*names, *RULE_RECIPES)


def open_recipe(name: str | os.PathLike[str], *, model: ChatModel | None = None) -> Recipe:
    """Open a recipe.

    Args:
        name: name of a recipe of this package, or path of a recipe file that ends in .yaml or .yml.
        model: the generator. Recipes that let a model write the message of a user need its chat template. None: they use the text in
            their file, which is for servers.

    Raises:
        PlamoError: there is no such recipe, or its file has an error. The message names the file and the key.
    """
    text = str(name)
    if text in RULE_RECIPES:
        return RULE_RECIPES[text]()
    if text in builtin_recipes():
        file = _FILES / f"{text}{_ENDING}"
    elif text.endswith((_ENDING, ".yml")):
        file = Path(text)
    else:
        raise PlamoError(
            f"the recipe {shown(text)} is unknown: it must be a file that ends in .yaml, or one of {', '.join(builtin_recipes())}"
        )
    where = f"recipe {text}"
    config = parse_recipe(read_recipe_file(file), where)
    # Only these recipes depend on the chat template, which may refuse a single message.
    asks_for_turn = any(step.user_turn is not None for step in config.steps)
    user_turn = local_user_turn(model) if asks_for_turn and model is not None else None
    return TemplateRecipe(config, where, user_turn)
