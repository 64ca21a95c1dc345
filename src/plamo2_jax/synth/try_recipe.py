"""Try a recipe on a few seeds, in memory and without verification."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from plamo2_jax.eval.asking import Asker
from plamo2_jax.eval.run import drive
from plamo2_jax.models import ChatModel, RequestError
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.record import Draft, Refusal, Seed


def try_recipe(
    recipe: Recipe, seeds: Sequence[Seed], model: ChatModel | None = None, *, random_seed: int = 0
) -> list[Sequence[Draft] | Refusal]:
    """Return the drafts or the refusal of each seed. The requests of all seeds are sent together.

    Args:
        recipe: the recipe.
        seeds: inputs with different ids.
        model: the generator; None: for recipes that need no model.
        random_seed: seed of the random draws.
    """
    results: list[Any] = [Refusal("response: none") for _ in seeds]
    generators = [recipe.requests(seed, 0, _random(recipe, seed, random_seed)) for seed in seeds]
    # A recipe without a model yields no requests, so nothing is asked.
    ask = Asker(model) if model is not None else _ask_nobody
    for i, result in drive(generators, ask):  # type: ignore[arg-type]
        results[i] = Refusal(f"request: {result.reason}") if isinstance(result, RequestError) else result
    return results


def _random(recipe: Recipe, seed: Seed, random_seed: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{recipe.name}\n{seed.id}".encode(), digest_size=8).digest()
    return np.random.default_rng([random_seed, int.from_bytes(digest)])


def _ask_nobody(requests: Sequence[Any]) -> list[RequestError]:
    return [RequestError("the recipe needs a model: give `model`") for _ in requests]
