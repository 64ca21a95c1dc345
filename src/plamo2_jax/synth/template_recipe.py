"""Recipes that a YAML file describes: steps of prompts and parsers, and templates of the records."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest
from plamo2_jax.synth.draws import Constraints
from plamo2_jax.synth.parsers import make_parser
from plamo2_jax.synth.recipe import Verification
from plamo2_jax.synth.recipe_config import Choose, DraftConfig, Keep, RecipeConfig, StepConfig
from plamo2_jax.synth.record import Draft, Refusal, Seed
from plamo2_jax.synth.templates import Expression, Names, Template, TemplateFailure
from plamo2_jax.synth.user_turn import UserTurn

Request = ChatRequest | CompletionRequest
_SEEDS = 1 << 31
# What a step does with the responses does not change the requests of the last step.
_AFTER = ("parse", "choose", "keep", "refuse", "allow_cut")


class TemplateRecipe:
    """A recipe made of the content of a recipe file. It implements `synth.recipe.Recipe`.

    Args:
        config: the content of the file.
        where: name of the file in messages.
        user_turn: the beginning of a user's message for steps with `user_turn`; None: the text in the file, which is for servers.

    Raises:
        PlamoError: a template or expression has an error or uses a name that does not exist.
    """

    uses_model = True

    def __init__(self, config: RecipeConfig, where: str, user_turn: UserTurn | None = None):
        self.config = config
        self.name, self.version, self.description = config.name, config.version, config.description
        self.language, self.kind, self.source = config.language, config.kind, config.source
        self.source_language, self.fields = config.source_language, config.fields
        self.verify: Sequence[Verification] = config.verify
        self.sampling: Mapping[str, Any] = {step.name: _settings(step) for step in config.steps}
        self.prompt_sha256 = _prompt_sha256(config)
        groups = {"fields": config.fields, "parameters": tuple(config.parameters), "drawn": tuple(config.draw)}
        self._steps = []
        for i, step in enumerate(config.steps):
            earlier = Names({**groups, "steps": [one.name for one in config.steps[:i]]})
            after = Names({**groups, "steps": [one.name for one in config.steps[: i + 1]]})
            self._steps.append(_Step(step, earlier, after, f"{where}: step {step.name}", user_turn))
        names = [one.name for one in config.steps]
        self._drafts = [
            _DraftTemplate(draft, Names({**groups, "steps": names}, draft.for_each is not None), f"{where}: draft {i}")
            for i, draft in enumerate(config.drafts, 1)
        ]

    def requests(
        self, seed: Seed, sample: int, random: np.random.Generator
    ) -> Generator[Request, Sequence[ChatResponse], Sequence[Draft] | Refusal]:
        """Yield the requests for a seed one after another; return drafts or a refusal.

        Args:
            seed: the input.
            sample: number of the sample of this seed.
            random: generator with a state that depends on the seed, the recipe and the sample only.
        """
        refusal = self._refuses(seed)
        if refusal is not None:
            return refusal
        values: dict[str, Any] = {}
        variables = {
            "text": seed.text,
            "language": seed.language,
            "fields": dict(seed.fields),
            "parameters": self.config.parameters,
            "drawn": {name: draw(random) for name, draw in self.config.draw.items()},
            "steps": values,
        }
        try:
            for step in self._steps:
                request = step.request(variables, f"{self.name}/{seed.id}/{sample}/{step.config.name}", random)
                if request is None:
                    values[step.config.name] = None
                    continue
                responses = yield request
                value = step.read(responses)
                if isinstance(value, Refusal):
                    return value
                if step.config.keep is not None:
                    value = _kept(value, step.config.keep, len(seed.text), random)
                values[step.config.name] = value
                for when, reason in step.refuse:
                    if when(variables):
                        return Refusal(reason)
            drafts = [draft for one in self._drafts for draft in one(variables)]
        except TemplateFailure as failure:
            return Refusal(f"template: {failure}")
        return drafts or Refusal("draft: empty")

    def _refuses(self, seed: Seed) -> Refusal | None:
        if self.source == "document" and not seed.text.strip():
            return Refusal("seed: no text")
        if self.source_language is not None and seed.language != self.source_language:
            return Refusal("seed: other language")
        missing = [name for name in self.fields if seed.fields.get(name) in (None, "", [], {})]
        return Refusal(f"seed: no field {missing[0]}") if missing else None


class _Step:
    """A step with compiled templates."""

    def __init__(self, config: StepConfig, earlier: Names, after: Names, where: str, user_turn: UserTurn | None):
        self.config = config
        parameters = {name: value for name, value in config.parse.items() if name != "name"}
        self._parser = make_parser(config.parse["name"], parameters, f"{where}: parse")
        self._when = None if config.when is None else Expression(config.when, earlier, f"{where}: when")
        self.refuse = [(Expression(rule.when, after, f"{where}: refuse"), rule.reason) for rule in config.refuse]
        self._chat = [
            [(message["role"], Template(message["content"], earlier, where)) for message in self._messages(wording)]
            for wording in config.chat
        ]
        self._complete = [Template(wording, earlier, where) for wording in config.complete]
        self._turn = user_turn
        if config.user_turn is not None and user_turn is None:
            self._turn = UserTurn(config.user_turn)

    def _messages(self, wording: Any) -> Sequence[Mapping[str, str]]:
        if not isinstance(wording, str):
            return wording
        system = [] if self.config.system is None else [{"role": "system", "content": self.config.system}]
        return [*system, {"role": "user", "content": wording}]

    def request(self, variables: Mapping[str, Any], id: str, random: np.random.Generator) -> Request | None:
        """Return the request of a seed, or None if the step is skipped. The same random numbers are drawn in both cases."""
        config, seed = self.config, int(random.integers(_SEEDS))
        wording = int(random.integers(max(1, len(config.chat), len(config.complete))))
        if self._when is not None and not self._when(variables):
            return None
        settings: dict[str, Any] = {"id": id, "sampling": config.sampling, "seed": seed, "n": config.n}
        if self._chat:
            messages = [
                {"role": role, "content": template(variables).strip()} for role, template in self._chat[wording]
            ]
            return ChatRequest(messages=messages, variables=config.variables, stop=config.stop, **settings)
        if self._complete:
            return CompletionRequest(self._complete[wording](variables), stop=config.stop, **settings)
        assert self._turn is not None  # A step without wordings has `user_turn`.
        stop = config.stop
        if self._turn.stop_ids is not None:
            stop = dataclasses.replace(stop, ids=self._turn.stop_ids)
        return CompletionRequest(self._turn.prompt, bos=self._turn.bos, stop=stop, **settings)

    def read(self, responses: Sequence[ChatResponse]) -> Any | Refusal:
        """Return the value of the step, or a refusal."""
        values = [self._read(response) for response in responses]
        accepted = [value for value in values if not isinstance(value, Refusal)]
        if not accepted:
            return values[0] if values else Refusal("response: none")
        return _chosen(accepted, len(values), self.config.choose)

    def _read(self, response: ChatResponse) -> Any | Refusal:
        if response.finish_reason == "content_filter":
            return Refusal("response: content filter")
        if response.finish_reason == "length" and not self.config.allow_cut:
            return Refusal("response: cut at max_new_tokens")
        return self._parser(response.text)


class _DraftTemplate:
    """A draft with compiled templates."""

    def __init__(self, config: DraftConfig, names: Names, where: str):
        outer = Names(names.groups)
        self._when = None if config.when is None else Expression(config.when, outer, f"{where}: when")
        self._for_each = None if config.for_each is None else Expression(config.for_each, outer, f"{where}: for_each")
        self._text = None if config.text is None else Template(config.text, names, f"{where}: text")
        self._messages = [
            (one["role"], Template(one["content"], names, f"{where}: messages")) for one in config.messages
        ]
        self._fields = {name: Expression(one, names, f"{where}: {name}") for name, one in config.fields.items()}
        self._scores = {name: Expression(one, names, f"{where}: {name}") for name, one in config.scores.items()}

    def __call__(self, variables: Mapping[str, Any]) -> list[Draft]:
        """Return the drafts. A draft without text, or without an answer of the assistant, is omitted."""
        if self._when is not None and not self._when(variables):
            return []
        if self._for_each is None:
            drafts = [self._draft(variables)]
        else:
            items = self._for_each(variables)
            if not isinstance(items, list):
                raise TemplateFailure("for_each is not a list")
            drafts = [self._draft({**variables, "item": item}) for item in items]
        return [draft for draft in drafts if draft is not None]

    def _draft(self, variables: Mapping[str, Any]) -> Draft | None:
        scores = {}
        for name, expression in self._scores.items():
            value = expression(variables)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TemplateFailure(f"the score {name} is not a number")
            scores[name] = float(value)
        fields = {name: expression(variables) for name, expression in self._fields.items()}
        if self._text is not None:
            text = self._text(variables).strip()
            return Draft(text=text, scores=scores, fields=fields) if text else None
        filled = [{"role": role, "content": template(variables).strip()} for role, template in self._messages]
        messages = [message for message in filled if message["content"]]
        if not messages or messages[-1]["role"] != "assistant":
            return None
        return Draft(messages=messages, scores=scores, fields=fields)


def _chosen(values: Sequence[Any], asked: int, choose: Choose) -> Any | Refusal:
    """Return the value of a step from the accepted values of its samples."""
    if choose.by == "first":
        return values[0]
    if choose.by == "all":
        return list(values)
    keys = [_canonical(value.get(choose.key) if isinstance(value, dict) and choose.key else value) for value in values]
    key, count = collections.Counter(keys).most_common(1)[0]
    share = count / asked
    if share < choose.least:
        return Refusal("agreement: too low")
    value = values[keys.index(key)]
    return {**value, "agreement": share} if isinstance(value, dict) else {"value": value, "agreement": share}


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _kept(value: Any, keep: Keep, characters: int, random: np.random.Generator) -> list[Any]:
    """Return a random part of a list, in random order. Its expected length grows with the document."""
    if not isinstance(value, list):
        raise TemplateFailure("keep needs a list")
    most = min(max(characters // keep.characters, keep.least), keep.most)
    count = int(random.integers(keep.least, most + 1))
    return [value[int(i)] for i in random.permutation(len(value))[:count]]


def _settings(step: StepConfig) -> dict[str, Any]:
    settings = {"n": step.n, **dataclasses.asdict(step.sampling), **dataclasses.asdict(step.stop)}
    return {
        **settings,
        "ids": None if step.stop.ids is None else list(step.stop.ids),
        "strings": list(step.stop.strings),
    }


def _prompt_sha256(config: RecipeConfig) -> str:
    """Return the hash of everything that affects the requests of a recipe, including the wordings of its checkers."""
    steps = [dataclasses.asdict(step) for step in config.steps]
    for name in _AFTER:
        del steps[-1][name]
    draws = {}
    for name, draw in config.draw.items():
        wordings = draw.wordings() if isinstance(draw, Constraints) else []
        draws[name] = [type(draw).__name__, dataclasses.asdict(draw), wordings]
    affects = [config.name, config.source, config.source_language, config.fields, config.parameters, draws, steps]
    return hashlib.sha256(json.dumps(affects, ensure_ascii=False, sort_keys=True, default=str).encode()).hexdigest()
