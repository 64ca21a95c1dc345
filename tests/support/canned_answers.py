"""Good answers to the steps of a recipe, by the step's parser, and a driver of one recipe."""

from pathlib import Path

import numpy as np
import yaml

from plamo2_jax.models import ChatResponse

ANSWERS = yaml.safe_load((Path(__file__).parents[1] / "synth" / "cases" / "answers.yaml").read_text(encoding="utf-8"))
TEXT, OTHER = ANSWERS["text"], ANSWERS["other"]
"""A document in both languages, and the same content in other words."""
_BY_PARSER = {
    "qa_pairs": "pairs",
    "table_question": "table",
    "list": "items",
    "final_answer": "solution",
    "choice": "choice",
    "code_and_tests": "code",
}


def good(step, language, number=0):
    """A text that the parser of a step accepts. Even and odd numbers give different passages."""
    if step.parse["name"] != "passage":
        return ANSWERS[_BY_PARSER[step.parse["name"]]][language]
    kind = "tutorial" if step.name == "tutorial" else ("other", "text")[number % 2]
    prefix = step.parse.get("prefix", [""])[0]
    return f"{prefix} {ANSWERS[kind][language]}"


def finish(generator):
    """The value of a generator that yields nothing more."""
    try:
        request = next(generator)
    except StopIteration as end:
        return end.value
    raise AssertionError(f"unexpected request: {request}")


def drive(recipe, seed, answer, *, sample=0, random=0):
    """Run a recipe on a seed. `answer(request, step)` returns the texts. Returns the requests and the result."""
    asked, steps = [], {step.name: step for step in recipe.config.steps} if recipe.uses_model else {}
    generator = recipe.requests(seed, sample, np.random.default_rng([7, random]))
    try:
        request = next(generator)
        while True:
            asked.append(request)
            responses = [ChatResponse(text, "stop") for text in answer(request, steps[request.id.rpartition("/")[2]])]
            request = generator.send(responses)
    except StopIteration as end:
        return asked, end.value
