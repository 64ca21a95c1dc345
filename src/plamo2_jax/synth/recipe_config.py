"""Recipe files: YAML files that describe a recipe. docs/recipes.md explains them with an example."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.draws import read_draw
from plamo2_jax.synth.parsers import make_parser
from plamo2_jax.synth.recipe import SeedKind, Verification
from plamo2_jax.synth.record import Kind
from plamo2_jax.synth.verify import read_steps
from plamo2_jax.validation import require, shown

_LARGEST_FILE = 1 << 20
_ROLES = ("system", "user", "assistant")
_CHOICES = ("first", "all", "agreement")


@dataclasses.dataclass(frozen=True)
class Choose:
    """How the value of a step with several samples is made from the samples that the parser accepts."""

    by: str
    """first: the first one. all: the list of them. agreement: the first one with the most frequent value of `key`."""
    key: str | None = None
    """agreement: name of the compared value in the parser's dict; not used for parsers with a single text or number."""
    least: float = 0.5
    """agreement: smallest share of the samples with that value, including the refused ones in the count."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Shuffles a list, and keeps a random number of its items that grows with the length of the document."""

    least: int = 1
    """Smallest number of items."""
    most: int = 8
    """Largest number of items."""
    characters: int = 300
    """Number of characters of the document for each item of the largest number."""


@dataclasses.dataclass(frozen=True)
class RefuseRule:
    """A condition under which a step refuses the seed."""

    when: str
    """Jinja expression."""
    reason: str
    """Name of the reason for the counts."""


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """A request of a recipe. Exactly one of `chat`, `complete` and `user_turn` is given."""

    name: str
    """Name of the step's value in templates: `steps.NAME`."""
    chat: tuple[Any, ...] = ()
    """Wordings of a conversation, of which one is drawn. Each is the text of a user message, or a list of messages. Texts are templates."""
    complete: tuple[str, ...] = ()
    """Wordings of a text that the model continues. Templates."""
    user_turn: str | None = None
    """Let a chat model write the next message of the user. This is the text before that message in the model's chat template, for servers;
    a model in this process uses its own template."""
    system: str | None = None
    """Template of the system message before a `chat` wording that is one text."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the generator's chat template, as in `ChatRequest`. A server has its own template and does not receive them."""
    when: str | None = None
    """Jinja expression. If it is false, the step is skipped and its value is none."""
    n: int = 1
    """Number of samples."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    parse: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "passage"})
    """The parser: its `name`, and its parameters beside it."""
    choose: Choose = dataclasses.field(default_factory=lambda: Choose("first"))
    keep: Keep | None = None
    refuse: tuple[RefuseRule, ...] = ()
    allow_cut: bool = False
    """Whether to accept a response that reached `max_new_tokens`."""


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """A record that the recipe returns. Exactly one of `text` and `messages` is given."""

    text: str | None = None
    """Template."""
    messages: tuple[Mapping[str, str], ...] = ()
    """Messages with `role`, and the template `content`. A message with empty content is omitted."""
    when: str | None = None
    """Jinja expression. If it is false, there is no such record."""
    for_each: str | None = None
    """Jinja expression of a list. There is one record for each item, which templates read as `item`."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Jinja expressions of values that are written with the record."""
    scores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Jinja expressions of numbers."""


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """The content of a recipe file."""

    name: str
    version: str
    description: str
    """One line for the table of recipes."""
    language: str
    kind: Kind
    source: SeedKind
    source_language: str | None
    fields: tuple[str, ...]
    parameters: Mapping[str, Any]
    """Constants for the templates: `parameters.NAME`."""
    draw: Mapping[str, Any]
    """Values to draw before the first step: `drawn.NAME` (synth.draws)."""
    steps: tuple[StepConfig, ...]
    drafts: tuple[DraftConfig, ...]
    verify: tuple[Verification, ...]


def read_recipe_file(path: Path | Any) -> Mapping[str, Any]:
    """Read a YAML file with one mapping.

    Raises:
        PlamoError: the file cannot be read, is larger than 1 MiB, or is not a YAML mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise PlamoError(f"{path} is too large for a recipe: at most {_LARGEST_FILE:,} bytes are allowed")
        content = yaml.safe_load(data)
    except OSError as error:
        raise PlamoError(f"the recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, PlamoError):
            raise
        raise PlamoError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise PlamoError(f"{path} is not a recipe: it must be a YAML mapping with name, version and further keys")
    return content


def parse_recipe(content: Mapping[str, Any], where: str) -> RecipeConfig:
    """Check the content of a recipe file.

    Raises:
        PlamoError: a key is missing or unknown, or a value is not allowed. The message names the file, the step and the key.
    """
    _known(content, [field.name for field in dataclasses.fields(RecipeConfig)], where)
    _needs(content, ("name", "version", "language", "kind", "source", "steps", "drafts"), where)
    given = {"description": "", "source_language": None, "fields": [], "parameters": {}, "draw": {}, "verify": []}
    given |= content
    language, steps = given["language"], given["steps"]
    plain = isinstance(given["name"], str) and given["name"].replace("_", "").replace("-", "").isalnum()
    _allow(plain, where, given, "name", 'letters, digits, "_" and "-"')
    for name in ("version", "description", "language"):
        _allow(isinstance(given[name], str) and (given[name] or name == "description"), where, given, name, "a text")
    _allow(given["kind"] in ("text", "messages"), where, given, "kind", "text or messages")
    _allow(given["source"] in ("document", "fields", "none"), where, given, "source", "document, fields or none")
    _allow(isinstance(given["source_language"], str | None), where, given, "source_language", "a language, such as ja")
    _allow(_texts(given["fields"]), where, given, "fields", "a list of names")
    _allow(given["source"] != "fields" or given["fields"], where, given, "fields", "the names of the seed's fields")
    _allow(_names(given["parameters"]), where, given, "parameters", "a mapping by name")
    _allow(_names(given["draw"]), where, given, "draw", "a mapping by name")
    _allow(_is_json(given["parameters"]), where, given, "parameters", "values that JSON has")
    for name in ("steps", "drafts"):
        fits = isinstance(given[name], list) and all(isinstance(one, dict) for one in given[name])
        _allow(fits and given[name], where, given, name, "a list of mappings")
    _allow(isinstance(given["verify"], list), where, given, "verify", "a list of steps")
    read: list[StepConfig] = []
    for number, fields in enumerate(steps, 1):
        step = _step(fields, f"{where}: step {fields.get('name', number)}")
        if step.name in [one.name for one in read]:
            raise PlamoError(f"{where}: two steps have the name {step.name}: names must be unique. Rename one")
        read.append(step)
    return RecipeConfig(
        **{name: given[name] for name in ("name", "version", "description", "language", "kind", "source")},
        source_language=given["source_language"],
        fields=tuple(given["fields"]),
        parameters=given["parameters"],
        draw={name: read_draw(value, language, f"{where}: draw.{name}") for name, value in given["draw"].items()},
        steps=tuple(read),
        drafts=tuple(_draft(one, given["kind"], f"{where}: draft {i}") for i, one in enumerate(given["drafts"], 1)),
        verify=tuple(read_steps(given["verify"], where)),
    )


def _step(given: Mapping[str, Any], where: str) -> StepConfig:
    settings = [field.name for field in dataclasses.fields(StopConfig)]
    names = [field.name for field in dataclasses.fields(StepConfig) if field.name != "stop"]
    _known(given, [*names, "stop", "max_new_tokens", "min_new_tokens"], where)
    _needs(given, ("name",), where)
    fields = dict(given)
    plain = isinstance(fields["name"], str) and fields["name"].isidentifier()
    _allow(plain, where, fields, "name", "a name of letters, digits and _")
    kinds = [name for name in ("chat", "complete", "user_turn") if name in fields]
    if len(kinds) != 1:
        raise PlamoError(f"{where} has {' and '.join(kinds) or 'no request'}: give one of chat, complete and user_turn")
    for name in {"chat", "complete"} & fields.keys():
        wordings = fields[name] if isinstance(fields[name], list) else [fields[name]]
        fields[name] = tuple(wordings)
        fits = wordings and all(isinstance(one, str) or (name == "chat" and _is_messages(one)) for one in wordings)
        allowed = "a list of wordings: texts" + (
            ", or lists of messages with role and content" if name == "chat" else ""
        )
        _allow(fits, where, fields, name, allowed)
    for name in ("user_turn", "system", "when"):
        _allow(isinstance(fields.get(name), str | None), where, fields, name, "a text")
    if fields.get("system") is not None:
        plain = all(isinstance(one, str) for one in fields.get("chat", (None,)))
        _allow(plain, where, fields, "system", "omitted unless all wordings of chat are texts")
    variables = fields.get("variables", {})
    _allow(
        _names(variables) and _is_json(variables), where, fields, "variables", "a mapping of names to values of JSON"
    )
    n = fields.get("n", 1)
    whole = isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 64
    _allow(whole, where, fields, "n", "a whole number from 1 to 64")
    _allow(isinstance(fields.get("allow_cut", False), bool), where, fields, "allow_cut", "true or false")
    fields["sampling"] = _config(SamplingConfig, fields.get("sampling", {}), f"{where}: sampling")
    stop = {name: fields.pop(name) for name in settings if name in fields}
    strings = fields.pop("stop", [])
    _allow(_texts(strings), where, {"stop": strings}, "stop", "a list of texts")
    fields["stop"] = _config(StopConfig, {**stop, "strings": tuple(strings)}, where)
    parse = fields.get("parse", {"name": "passage"})
    _allow(_names(parse), where, fields, "parse", "a mapping with the name of a parser and its parameters")
    make_parser(parse.get("name"), {name: value for name, value in parse.items() if name != "name"}, f"{where}: parse")
    fields["parse"] = parse
    fields["choose"] = _config(Choose, fields.get("choose", {"by": "first"}), f"{where}: choose")
    _check_choose(fields["choose"], n, f"{where}: choose")
    if "keep" in fields:
        fields["keep"] = _config(Keep, fields["keep"], f"{where}: keep")
        _check_keep(fields["keep"], f"{where}: keep")
    rules = fields.get("refuse", [])
    _allow(isinstance(rules, list), where, fields, "refuse", "a list of mappings with when and reason")
    fields["refuse"] = tuple(_config(RefuseRule, rule, f"{where}: refuse") for rule in rules)
    for rule in fields["refuse"]:
        for name in ("when", "reason"):
            require(
                rule, name, isinstance(getattr(rule, name), str), "a text, in quotation marks", where=f"{where}: refuse"
            )
    return StepConfig(**fields)


def _check_choose(choose: Choose, n: int, where: str) -> None:
    require(choose, "by", choose.by in _CHOICES, f"one of {', '.join(_CHOICES)}", where=where)
    require(choose, "by", n > 1 or choose.by == "first", "first for a step with one sample (n: 1)", where=where)
    require(choose, "key", isinstance(choose.key, str | None), "a name", where=where)
    number = isinstance(choose.least, int | float) and not isinstance(choose.least, bool)
    require(choose, "least", number and 0 < choose.least <= 1, "above 0 and at most 1", where=where)


def _check_keep(keep: Keep, where: str) -> None:
    for name, least in (("least", 1), ("most", keep.least), ("characters", 1)):
        value = getattr(keep, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(keep, name, whole and value >= least, f"a whole number of at least {least}", where=where)


def _draft(given: Mapping[str, Any], kind: str, where: str) -> DraftConfig:
    _known(given, [field.name for field in dataclasses.fields(DraftConfig)], where)
    if ("text" in given) == ("messages" in given) or kind not in given:
        raise PlamoError(f"{where} does not fit kind: {kind}: give {kind}, and not the other one of text and messages")
    for name in ("text", "when", "for_each"):
        _allow(isinstance(given.get(name), str | None), where, given, name, "a text")
    messages = given.get("messages")
    _allow(
        messages is None or _is_messages(messages), where, given, "messages", "a list of messages with role and content"
    )
    for name in ("fields", "scores"):
        value = given.get(name, {})
        fits = _names(value) and all(isinstance(one, str) for one in value.values())
        _allow(fits, where, given, name, "a mapping of names to Jinja expressions")
    return DraftConfig(**{**given, "messages": tuple(messages or ())})


def _config(kind: type[Any], given: Any, where: str) -> Any:
    """Return a dataclass made of a mapping."""
    if not isinstance(given, dict):
        raise PlamoError(f"{where}={shown(given)} is not allowed: it must be a mapping")
    fields = dataclasses.fields(kind)
    _known(given, [field.name for field in fields], where)
    plain = [field for field in fields if field.default is dataclasses.MISSING]
    _needs(given, [field.name for field in plain if field.default_factory is dataclasses.MISSING], where)
    try:
        return kind(**given)
    except PlamoError as error:
        raise PlamoError(f"{where}: {error}") from None
    except TypeError:
        raise PlamoError(f"{where}={shown(given)} is not allowed: a value has the wrong type") from None


def _known(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for key in given:
        if key not in names:
            raise PlamoError(f"{where}: the key {shown(key)} is unknown: it must be one of {', '.join(names)}")


def _needs(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in given:
            raise PlamoError(f"{where}: the key {name} is missing. Add it")


def _allow(condition: Any, where: str, given: Mapping[str, Any], name: str, allowed: str) -> None:
    if not condition:
        raise PlamoError(f"{where}: {name}={shown(given.get(name))} is not allowed: it must be {allowed}")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(_names(one) and one.keys() == {"role", "content"} for one in value)
        and all(one["role"] in _ROLES and isinstance(one["content"], str) for one in value)
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
