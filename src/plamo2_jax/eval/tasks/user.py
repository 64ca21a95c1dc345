"""Tasks of the user: JSON lines, and a YAML file that describes one task or a list of tasks.

    name: capitals
    kind: multiple_choice
    data: capitals.jsonl
    prompt: "問題: {{ question }}\n答え:"
    choices: ["{{ a }}", "{{ b }}"]
    target: "{{ answer }}"
    shots: 2

Prompts are Jinja templates, which are rendered in jinja2's sandbox. Their variables are the fields of a record.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import math
import unicodedata
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.sandbox
import yaml

from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.files import find_files
from plamo2_jax.data.readers import read_records
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, TaskOptions
from plamo2_jax.models import ChatRequest, CompletionRequest, ScoreRequest
from plamo2_jax.validation import require

_METRICS = {
    "multiple_choice": ("accuracy", "accuracy_normalized"),
    "generate": ("exact_match", "contains", "character_f1"),
    "rolling": ("bits_per_byte", "perplexity"),
}
_ONLY = {
    "choices": ("multiple_choice",),
    "target": ("multiple_choice", "generate"),
    "shots": ("multiple_choice", "generate"),
    "examples": ("multiple_choice", "generate"),
    "separator": ("multiple_choice", "generate"),
    "mode": ("generate",),
    "system": ("generate",),
    "max_new_tokens": ("generate",),
    "stop": ("generate",),
    "temperature": ("generate",),
    "top_p": ("generate",),
    "trials": ("generate",),
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LARGEST_FILE = 1 << 20
_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
)


@dataclasses.dataclass(frozen=True)
class UserTaskConfig:
    """The description of a task.

    Raises:
        PlamoError: a field is out of range, or does not apply to this kind of task.
    """

    name: str
    """Name of the task: letters, digits, "_", "-" and "."."""
    kind: Literal["multiple_choice", "generate", "rolling"]
    """multiple_choice: the choice with the largest log-probability counts. generate: a text is compared with the target. rolling: the
    log-probability of whole texts is measured."""
    data: str | Sequence[str]
    """Files of records: JSON lines (also compressed) or Parquet; a file, a folder or a pattern, relative to the YAML file."""
    prompt: str
    """Template of the question; for `rolling`, of the text."""
    choices: str | Sequence[str] = ()
    """Templates of the choices, or the name of a field that holds a list of texts. A choice follows the prompt directly."""
    target: str | None = None
    """Template of the right answer. multiple_choice: the text of a choice, else its letter from A, else its number from 0. generate:
    a text, or the name of a field that holds a list of accepted texts."""
    metric: str | None = None
    """multiple_choice: accuracy or accuracy_normalized (log-probability divided by the number of characters). generate: exact_match,
    contains or character_f1. rolling: bits_per_byte or perplexity. All are reported; this one is compared. Default: the first."""
    shots: int = 0
    """Number of examples before the question."""
    examples: str | None = None
    """File of the examples. Default: the first records of `data`, which are then not asked."""
    separator: str = "\n\n"
    """Text between examples."""
    mode: Literal["completion", "chat"] = "completion"
    """completion: the prompt is continued. chat: it is a message of the user, and examples are earlier messages."""
    system: str | None = None
    """Message of the system, with `mode: chat`."""
    max_new_tokens: int = 128
    """Maximum number of tokens of an answer."""
    stop: Sequence[str] = ()
    """Texts that end an answer."""
    temperature: float = 0.0
    """Temperature; 0: greedy decoding."""
    top_p: float = 1.0
    """Share of the probability to draw from."""
    trials: int = 1
    """Number of answers to each question."""
    id: str | None = None
    """Name of a field with a unique id. Default: the number of the record, from 1."""
    group: str | None = None
    """Name of a field. The result has the mean of each of its values."""
    licence: str | None = None
    """Licence of the data, for the report."""

    def __post_init__(self) -> None:
        where = f"task {self.name}"

        def check(name: str, condition: Any, allowed: str) -> None:
            require(self, name, condition, allowed, where=where)

        plain = isinstance(self.name, str) and self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        check("name", plain and self.name[0] not in ".-", 'letters, digits, "_", "-" and "."')
        check("kind", self.kind in _METRICS, f"one of {', '.join(_METRICS)}")
        for field in dataclasses.fields(self):
            if field.name in _ONLY and self.kind not in _ONLY[field.name]:
                kinds = " or ".join(_ONLY[field.name])
                check(
                    field.name,
                    getattr(self, field.name) == field.default,
                    f"omitted, because it applies only to {kinds}",
                )
        for name in ("prompt", "separator"):
            check(name, isinstance(getattr(self, name), str), "a text")
        for name in ("target", "examples", "system", "id", "group", "licence"):
            check(name, isinstance(getattr(self, name), str | None), "a text")
        for name in ("data", "choices"):
            value = getattr(self, name)
            check(name, isinstance(value, str) or _texts(value), "a text or a list of texts")
        for name, least in (("shots", 0), ("max_new_tokens", 1), ("trials", 1)):
            value = getattr(self, name)
            check(name, type(value) is int and value >= least, f"an integer of at least {least}")
        for name in ("temperature", "top_p"):
            check(name, type(getattr(self, name)) in (int, float), "a number")
        check("stop", _texts(self.stop), "a list of texts")
        check("data", self.data, "at least one file")
        check(
            "choices", self.choices or self.kind != "multiple_choice", "at least two templates, or the name of a field"
        )
        check("target", self.target or self.kind == "rolling", "a template, such as '{{ answer }}'")
        check("mode", self.mode in ("completion", "chat"), "completion or chat")
        check("system", self.system is None or self.mode == "chat", "omitted unless mode is chat")
        metrics = _METRICS[self.kind]
        check("metric", self.metric is None or self.metric in metrics, f"one of {', '.join(metrics)}")
        check("trials", self.trials == 1 or self.temperature > 0, "1 with temperature 0: all answers would be equal")


def open_file(path: Path, options: TaskOptions) -> list[UserTask]:
    """Open the tasks of a YAML file.

    Raises:
        PlamoError: the file is not YAML, a field is unknown or out of range, the data is malformed, or a template fails.
    """
    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(_LARGEST_FILE))
    except OSError as error:
        raise PlamoError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlamoError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None
    tasks = content if isinstance(content, list) else [content]
    return [UserTask(_read_config(path, fields, options), path.parent, options) for fields in tasks]


class UserTask:
    """A task of the user.

    Args:
        config: the description.
        folder: folder that file names are relative to.
        options: options of the command line. Of these, seed is used here; the others are part of `config`.

    Raises:
        PlamoError: the data cannot be read, has too few records, or a template fails.
    """

    def __init__(self, config: UserTaskConfig, folder: Path, options: TaskOptions):
        self._config, self._seed = config, options.seed
        self.name, self.metric = config.name, config.metric or _METRICS[config.kind][0]
        names = ("prompt", "target", "system")
        self._templates = {name: self._compile(name, getattr(config, name)) for name in names if getattr(config, name)}
        if not isinstance(config.choices, str):
            self._choices = [self._compile("choices", text) for text in config.choices]
        hasher = hashlib.sha256()
        records = self._records([config.data] if isinstance(config.data, str) else config.data, folder, hasher)
        if config.examples is not None:
            examples = self._records([config.examples], folder, hasher)[: config.shots]
        else:
            examples, records = records[: config.shots], records[config.shots :]
        if len(examples) < config.shots or not records:
            raise PlamoError(
                f"task {self.name}: the data has too few records for shots={config.shots} and at least one question"
            )
        self._examples = [self._fill(where, fields) for where, fields in examples]
        self._filled: dict[str, _Filled] = {}
        self.items = []
        for number, (where, fields) in enumerate(records, 1):
            filled = self._fill(where, fields)
            id = str(number if config.id is None else self._field(where, fields, config.id))
            group = None if config.group is None else str(self._field(where, fields, config.group))
            for trial in range(1, config.trials + 1):
                name = f"{id}/{trial}" if config.trials > 1 else id
                if name in self._filled:
                    raise PlamoError(
                        f"task {self.name}: {where} has the id {name!r} of an earlier record: ids must be unique"
                    )
                self._filled[name] = filled
                self.items.append(Item(name, filled.prompt, filled.reference, group))
        self.provenance = {
            "data_sha256": hasher.hexdigest(),
            "licence": config.licence,
            "examples": [where for where, _ in examples],
            "config": dataclasses.asdict(config),
        }
        if config.kind == "multiple_choice":
            counts = [1 / len(self._filled[item.id].choices) for item in self.items]
            self.provenance["chance"] = math.fsum(counts) / len(counts)

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the request of an item, and return its answer."""
        config, filled = self._config, self._filled[item.id]
        if config.kind == "rolling":
            (score,) = yield ScoreRequest("", [filled.prompt])
            return {"logprob": score.logprob, "tokens": len(score.token_logprobs)}
        if config.kind == "multiple_choice":
            scores = yield ScoreRequest(self._context(filled), filled.choices)
            logprobs = [one.logprob for one in scores]
            choice = _largest(logprobs)
            return {"choice": choice, "text": filled.choices[choice], "logprobs": logprobs}
        sampling = SamplingConfig(temperature=config.temperature, top_p=config.top_p)
        stop = StopConfig(max_new_tokens=config.max_new_tokens, strings=tuple(config.stop))
        trial = int(item.id.rpartition("/")[2]) - 1 if config.trials > 1 else 0
        seed = (self._seed + trial) % (1 << 31)
        if config.mode == "completion":
            (response,) = yield CompletionRequest(
                self._context(filled), id=item.id, sampling=sampling, stop=stop, seed=seed
            )
        else:
            (response,) = yield ChatRequest(item.id, self._messages(filled), {}, sampling, stop, seed)
        return {"text": response.text, "finish_reason": response.finish_reason}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return the scores of each answer. All metrics of the kind are computed."""
        return [self._score(item, answer) for item, answer in zip(items, answers, strict=True)]

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the means. Bits per byte and perplexity are computed over all texts together."""
        if self._config.kind != "rolling":
            return self._means(items, scores)
        answers = [self._filled[item.id].prompt for item in items]
        nats = [row["nats"] for row in scores]
        per_byte = _ratio(nats, [len(text.encode()) for text in answers], len(items))
        per_token = _ratio(nats, [row["tokens"] for row in scores], len(items))
        bits = [None if value is None else value / math.log(2) for value in (per_byte.value, per_byte.stderr)]
        perplexity = math.exp(min(per_token.value, 700.0))
        error = None if per_token.stderr is None else perplexity * per_token.stderr
        return {
            "bits_per_byte": Metric(bits[0], bits[1], len(items)),
            "perplexity": Metric(perplexity, error, len(items)),
        }

    def _means(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the means over records: trials of one record are not independent, and count as one value, their mean."""
        trials: dict[int, list[int]] = {}
        for i, item in enumerate(items):
            trials.setdefault(id(self._filled[item.id]), []).append(i)
        means = [
            {name: math.fsum(scores[i][name] for i in some) / len(some) for name in scores[some[0]]}
            for some in trials.values()
        ]
        return mean_metrics([items[some[0]] for some in trials.values()], means)

    def _score(self, item: Item, answer: Answer) -> dict[str, float]:
        filled = self._filled[item.id]
        if self._config.kind == "rolling":
            nats = -answer["logprob"]
            return {
                # Not the metric, which is the ratio of sums over all texts.
                "bits_per_byte_of_text": nats / math.log(2) / max(1, len(filled.prompt.encode())),
                "nats": nats,
                "tokens": float(answer["tokens"]),
            }
        if self._config.kind == "multiple_choice":
            lengths = [max(1, len(choice)) for choice in filled.choices]
            normalized = _largest([value / n for value, n in zip(answer["logprobs"], lengths, strict=True)])
            return {
                "accuracy": float(answer["choice"] == filled.target),
                "accuracy_normalized": float(normalized == filled.target),
            }
        text, accepted = _normal(answer["text"]), [_normal(one) for one in filled.accepted]
        return {
            "exact_match": float(text in accepted),
            "contains": float(any(one in text for one in accepted)),
            "character_f1": max(character_f1(text, one) for one in accepted),
        }

    def _context(self, filled: _Filled) -> str:
        examples = [one.prompt + one.solution for one in self._examples]
        return self._config.separator.join([*examples, filled.prompt])

    def _messages(self, filled: _Filled) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": filled.system}] if self._config.system else []
        for one in self._examples:
            messages.append({"role": "user", "content": one.prompt})
            messages.append({"role": "assistant", "content": one.solution})
        return [*messages, {"role": "user", "content": filled.prompt}]

    def _records(self, specs: Sequence[str], folder: Path, hasher: Any) -> list[tuple[str, Mapping[str, Any]]]:
        records = []
        for spec in specs:
            for file in find_files(folder / spec):
                with file.open("rb") as opened:
                    hasher.update(hashlib.file_digest(opened, "sha256").digest())
                report = ReadReport(max_bad_rate=0.0, judge_after=1)
                # The place names a record in the result, so it must not depend on the machine.
                records += [
                    (where.replace(str(file), file.name, 1), fields) for where, fields in read_records(file, report)
                ]
        return records

    def _fill(self, where: str, fields: Mapping[str, Any]) -> _Filled:
        """Render the templates for a record."""
        config = self._config
        prompt = self._render("prompt", where, fields)
        system = self._render("system", where, fields) if config.system else ""
        if config.kind == "rolling":
            return _Filled(prompt)
        if config.kind == "generate":
            accepted = [self._render("target", where, fields)]
            if config.target in fields:
                value = fields[config.target]
                accepted = [str(one) for one in value] if isinstance(value, list) else [str(value)]
            if not accepted or not all(map(_normal, accepted)):
                raise PlamoError(
                    f"task {self.name}: an accepted text of {where} is empty: target must give one or more texts that are not"
                )
            return _Filled(prompt, system, accepted=accepted, reference=accepted, solution=accepted[0])
        if isinstance(config.choices, str):
            choices = self._field(where, fields, config.choices)
            if not _texts(choices):
                raise PlamoError(
                    f"task {self.name}: {config.choices} of {where} is not a list of texts, as `choices` needs"
                )
            choices = list(choices)
        else:
            choices = [self._text("choices", template, where, fields) for template in self._choices]
        if len(choices) < 2 or not all(choices):
            raise PlamoError(
                f"task {self.name}: {where} has {len(choices)} choices: at least two texts are needed, none empty"
            )
        target = self._target(where, self._render("target", where, fields), choices)
        reference = {"choice": target, "text": choices[target]}
        return _Filled(prompt, choices=choices, target=target, reference=reference, solution=choices[target])

    def _target(self, where: str, text: str, choices: Sequence[str]) -> int:
        """Return the index of the right choice."""
        plain = text.strip()
        for i, choice in enumerate(choices):
            if choice.strip() == plain:
                return i
        if len(plain) == 1 and plain in _LETTERS[: len(choices)]:
            return _LETTERS.index(plain)
        if plain.isascii() and plain.isdecimal() and int(plain) < len(choices):
            return int(plain)
        raise PlamoError(
            f"task {self.name}: the target {text[:80]!r} of {where} is not a choice: it must be the text of a "
            f"choice, a letter from A to {_LETTERS[min(len(choices), len(_LETTERS)) - 1]}, or a number from 0 to {len(choices) - 1}"
        )

    def _field(self, where: str, fields: Mapping[str, Any], name: str) -> Any:
        if name not in fields:
            raise PlamoError(
                f"task {self.name}: {where} has no field {name!r}; it has {', '.join(map(repr, fields))[:200]}"
            )
        return fields[name]

    def _compile(self, name: str, text: str) -> jinja2.Template:
        try:
            return _ENVIRONMENT.from_string(text)
        except Exception as error:  # Jinja evaluates constant expressions here, so any exception may occur.
            raise PlamoError(
                f"task {self.name}: the template `{name}` cannot be compiled: {str(error)[:200]}"
            ) from None

    def _render(self, name: str, where: str, fields: Mapping[str, Any]) -> str:
        return self._text(name, self._templates[name], where, fields)

    def _text(self, name: str, template: jinja2.Template, where: str, fields: Mapping[str, Any]) -> str:
        try:
            return template.render(fields)
        except (
            Exception
        ) as error:  # A template is a program. Any exception is a fault of the template or of the record.
            hint = (
                f". The record has the fields {', '.join(map(str, fields))}"[:200]
                if isinstance(error, jinja2.UndefinedError)
                else ""
            )
            raise PlamoError(
                f"task {self.name}: the template `{name}` fails for {where}: {str(error)[:200]}{hint}"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Filled:
    """The texts of a record."""

    prompt: str
    system: str = ""
    choices: Sequence[str] = ()
    target: int = 0
    accepted: Sequence[str] = ()
    reference: Any = None
    solution: str = ""
    """The right answer, as it follows the prompt in an example."""


def character_f1(text: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of characters, as multisets."""
    shared = (collections.Counter(text) & collections.Counter(reference)).total()
    return 2 * shared / (len(text) + len(reference)) if shared else float(text == reference)


def _read_config(path: Path, fields: Any, options: TaskOptions) -> UserTaskConfig:
    """Check the fields of a task, and replace those that the command line gives."""
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise PlamoError(
            f"{path} does not describe a task: it must have fields such as name, kind, data and prompt, or a list of them"
        )
    known = {field.name: field for field in dataclasses.fields(UserTaskConfig)}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it must be one of {', '.join(known)}"
            raise PlamoError(f"{path}: unknown field {name[:60]!r}; {hint}")
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in fields:
            raise PlamoError(f"{path}: the field {name} is missing: a task needs name, kind, data and prompt")
    given = {name: getattr(options, name) for name in ("mode", "shots", "trials", "max_new_tokens")}
    given = {name: value for name, value in given.items() if value is not None and fields.get("kind") in _ONLY[name]}
    return UserTaskConfig(**fields | given)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _normal(text: str) -> str:
    """Return a text for comparison: full-width and half-width forms are equal, and spaces around it do not count."""
    return unicodedata.normalize("NFKC", text).strip()


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _ratio(numerators: Sequence[float], denominators: Sequence[float], n: int) -> Metric:
    """Return the ratio of two sums, and its standard error by the delta method."""
    total = max(math.fsum(denominators), 1.0)
    value = math.fsum(numerators) / total
    residuals = [a - value * b for a, b in zip(numerators, denominators, strict=True)]
    error = math.sqrt(n / (n - 1) * math.fsum(one * one for one in residuals)) / total if n > 1 else None
    return Metric(value, error, n)
