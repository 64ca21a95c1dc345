"""Verification of drafts by steps that a recipe names.

    verify:                         # in a recipe
      - language
      - length_ratio: {least: 0.5, most: 2}
      - judge: {least: 3}

A draft passes if all steps pass, in order; the first failure refuses it, and later steps are not run. `verify` is a generator: it yields
the requests of steps that ask a model, like `Recipe.requests`, and the unit runner journals their responses.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import JudgeRequest
from plamo2_jax.models import ChatRequest, ChatResponse
from plamo2_jax.synth import asking_steps, steps
from plamo2_jax.synth.recipe import Verification
from plamo2_jax.synth.record import Draft, Refusal, Seed
from plamo2_jax.validation import shown

STEPS: Mapping[str, type[steps.Step]] = {
    "rules": steps.Rules,
    "constraints": steps.Constraints,
    "code": steps.Code,
    "number": steps.Number,
    "score": steps.Score,
    "length_ratio": steps.LengthRatio,
    "copy": steps.Copy,
    "meta_phrases": steps.MetaPhrases,
    "language": steps.Language,
    "repetition": steps.Repetition,
    "kept": steps.Kept,
    "judge": asking_steps.Judge,
    "agreement": asking_steps.Agreement,
    "round_trip": asking_steps.RoundTrip,
}
"""Verification steps by name."""
ASKING = ("judge", "agreement", "round_trip")
"""Steps that ask a model."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """A draft that passed all steps."""

    draft: Draft
    scores: Mapping[str, float]
    """Scores of the draft and of the steps."""
    verdicts: Mapping[str, bool]
    """True by name of each step."""


Verifying = Generator[ChatRequest | JudgeRequest, Sequence[ChatResponse], Verified | Refusal]


def read_steps(verifications: Sequence[Verification | str | Mapping[str, Any]], where: str) -> list[Verification]:
    """Check the steps of a recipe, and return them in one form.

    Args:
        verifications: steps as in YAML: a name, or an object with one name and its parameters.
        where: name of the recipe for messages.

    Raises:
        PlamoError: a step or a parameter is unknown or not allowed.
    """
    found = []
    for number, given in enumerate(verifications, start=1):
        place = f"{where}: verify, step {number}"
        if isinstance(given, str):
            given = Verification(given)
        elif isinstance(given, Mapping):
            if len(given) != 1:
                raise PlamoError(f"{place} has {shown(given)}: it must be a name, or one name with parameters")
            ((name, parameters),) = given.items()
            given = Verification(name, {} if parameters is None else parameters)
        open_step(given, place)
        found.append(given)
    return found


def open_step(verification: Verification, where: str = "verify") -> steps.Step:
    """Return the step of a verification.

    Raises:
        PlamoError: the step or a parameter is unknown, missing or not allowed.
    """
    name, parameters = verification.name, verification.parameters
    if not isinstance(name, str) or name not in STEPS:
        raise PlamoError(f"{where} has {shown(name)}: a step must be one of {', '.join(STEPS)}")
    kind = STEPS[name]
    if not isinstance(parameters, Mapping):
        raise PlamoError(f"{where}: {name} has {shown(parameters)}: parameters must be an object of names and values")
    types_by_name = _types(kind)
    values = {}
    for key, value in parameters.items():
        if key not in types_by_name:
            raise PlamoError(f"{where}: {name} has no parameter {shown(key)}: it has {', '.join(types_by_name)}")
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, types_by_name[key]):
            raise PlamoError(f"{where}: {name}.{key}={shown(value)} is not allowed: it must be {_words(kind, key)}")
        values[key] = value
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise PlamoError(f"{where}: {name}: the parameter {missing[0]} is missing")
    try:
        return kind(**values)
    except PlamoError as error:
        raise PlamoError(f"{where}: {error}") from None


def verify(
    id: str,
    draft: Draft,
    seed: Seed,
    verifications: Sequence[Verification],
    *,
    language: str,
    random_seed: int = 0,
    allow_unisolated_code: bool = False,
) -> Verifying:
    """Verify a draft.

    Args:
        id: unique among the drafts of a run. Ids of requests begin with it.
        draft: the draft.
        seed: the input that it was made from.
        verifications: steps in order.
        language: language that the draft should be in.
        random_seed: random seed of requests.
        allow_unisolated_code: run programs that a model wrote even if this system cannot isolate them.

    Yields:
        ChatRequest for the generator, and JudgeRequest for the judge. The driver sends the list of responses.

    Returns:
        The verified draft, or a refusal such as "length_ratio: too short".

    Raises:
        PlamoError: a step is not allowed, or the fields of the draft do not have the form that a step needs.
        SandboxError: a step runs code, and this system cannot isolate it.
    """
    given = steps.Given(id, draft, seed, language, random_seed, allow_unisolated_code)
    scores, verdicts = dict(draft.scores), {}
    for number, verification in enumerate(verifications):
        step = open_step(verification)
        if verification.name in ASKING:
            # Two steps of one name must not have requests with equal ids.
            asked = dataclasses.replace(given, id=f"{id}/verify{number}")
            outcome = yield from step.requests(asked)  # type: ignore[attr-defined]
        else:
            outcome = step.outcome(given)
        scores |= {name: round(value, 6) for name, value in outcome.scores.items()}
        if outcome.reason is not None:
            return Refusal(f"{verification.name}: {outcome.reason}")
        verdicts[verification.name] = True
    return Verified(draft, scores, verdicts)


def needs_judge(verifications: Sequence[Verification]) -> bool:
    """Return whether a step asks the judge."""
    return any(verification.name == "judge" for verification in verifications)


@functools.cache
def _types(kind: type[steps.Step]) -> Mapping[str, Any]:
    """Return the types of a step's parameters by name."""
    return typing.get_type_hints(kind)


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value has the type of a parameter."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in typing.get_args(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if origin is not None:
        return isinstance(value, origin) and not isinstance(value, str)
    return value is None if annotation is type(None) else isinstance(value, annotation)


def _words(kind: type[steps.Step], name: str) -> str:
    annotation = _types(kind)[name]
    if typing.get_origin(annotation) is tuple:
        return "a list of texts"
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    found = [words[one] for one in (annotation, *typing.get_args(annotation)) if one in words]
    return found[0] if found else "a list or an object"
