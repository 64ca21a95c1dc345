"""JMMLU (Yin et al., SICon 2024) and MMLU (Hendrycks et al., arXiv:2009.03300): questions with four choices, scored by log-probability.

The context has examples of the subject, the question, the choices A to D, and "答え:" or "Answer:". The choice is the letter with the
largest log-probability; among equal ones, the first.

MMLU's examples are the first rows of the subject's file in dev/. JMMLU has no such file: the examples of an item are the first rows of its
subject without the item itself, so all items are scored, and only the items among these rows have other examples than the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import read_csv, sha256
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, TaskOptions
from plamo2_jax.eval.tasks import TASKS
from plamo2_jax.eval.tasks.mmlu_subjects import JAPAN, JAPANESE_NAMES, NO_DERIVATIVES
from plamo2_jax.models import ScoreRequest

LETTERS = "ABCD"
_SHOTS = 5
_COLUMNS = "each row must have question, choices A, B, C and D, and answer"


@dataclasses.dataclass(frozen=True)
class Row:
    """A question with four choices."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: str
    """A, B, C or D."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """The texts of a prompt."""

    head: str
    """First lines, with {subject}."""
    question: str
    """Text before a question."""
    answer: str
    """Text before an answer."""
    continuation: str
    """Text before the letter of an answer. Its tokens are scored too."""

    def block(self, row: Row) -> str:
        """Return a question, its choices, and the text before the answer."""
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row.choices, strict=True))
        return f"{self.question}{row.question}\n{choices}\n{self.answer}"

    def context(self, subject: str, examples: Sequence[Row], row: Row) -> str:
        """Return the context of the continuations."""
        shown = "".join(f"{self.block(one)}{self.continuation}{one.answer}\n\n" for one in examples)
        return f"{self.head.format(subject=subject)}{shown}{self.block(row)}"


JAPANESE = Wording("以下は、{subject}に関する四択問題とその答えです。\n\n", "問題: ", "答え:", "")
ENGLISH = Wording(
    "The following are multiple choice questions (with answers) about  {subject}.\n\n", "", "Answer:", " "
)
"""The wording of MMLU's own evaluation (https://github.com/hendrycks/test, evaluate.py), with its two spaces before the subject."""


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """Questions with four choices."""

    name: str
    metric: str
    wording: Wording
    subjects: Mapping[str, Sequence[Row]]
    """Rows to score by subject."""
    examples: Mapping[str, Sequence[Row]]
    """Rows to take examples from, by subject. An item is not its own example."""
    titles: Mapping[str, str]
    """Names of subjects in the prompt. For others, the underscores of the subject become spaces."""
    shots: int
    provenance: Mapping[str, Any]

    @functools.cached_property
    def items(self) -> list[Item]:
        """All questions, grouped by subject."""
        return [
            Item(row.id, _question(row), row.answer, subject) for subject, rows in self.subjects.items() for row in rows
        ]

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Score the letters. The answer has the chosen letter and the log-probability of each."""
        subject, row = item.group, self._rows[item.id]
        assert subject is not None
        examples = [one for one in self.examples[subject][: self.shots + 1] if one.id != row.id][: self.shots]
        context = self.wording.context(self.titles.get(subject, subject.replace("_", " ")), examples, row)
        scores = yield ScoreRequest(context, [f"{self.wording.continuation}{letter}" for letter in LETTERS])
        logprobs = [score.logprob for score in scores]  # type: ignore[union-attr]
        return {"choice": LETTERS[logprobs.index(max(logprobs))], "logprobs": logprobs}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return 1 for a right choice and 0 for a wrong one."""
        return [
            {"accuracy": float(answer["choice"] == item.reference)} for item, answer in zip(items, answers, strict=True)
        ]

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the means over all items (accuracy), over subjects (macro), and of each subject."""
        means = mean_metrics(items, scores)
        subjects = {name.removeprefix("accuracy/"): mean for name, mean in means.items() if "/" in name}
        selections = {"macro": set(subjects)}
        if self.name == "jmmlu":
            selections["macro_japan"] = set(JAPAN)
            selections["macro_translated"] = set(subjects) - set(JAPAN)
            selections["macro_without_nc_nd"] = set(subjects) - set(NO_DERIVATIVES)
        macros = {}
        for name, chosen in selections.items():
            if found := [mean for subject, mean in subjects.items() if subject in chosen]:
                macros[name] = _macro(found)
        return {"accuracy": means["accuracy"], **macros, **{f"accuracy/{name}": one for name, one in subjects.items()}}

    @functools.cached_property
    def _rows(self) -> Mapping[str, Row]:
        return {row.id: row for rows in self.subjects.values() for row in rows}


def open(name: str, options: TaskOptions) -> ChoiceTask:
    """Open the task jmmlu or mmlu.

    Raises:
        PlamoError: the folder does not have the benchmark's layout, or a file is malformed.
    """
    shots = _SHOTS if options.shots is None else options.shots
    if shots < 0:
        raise PlamoError(f"shots is {shots} (task {name}): it must be at least 0")
    assert options.path is not None
    read = _read_jmmlu if name == "jmmlu" else _read_mmlu
    subjects, examples, files = read(options.path)
    for subject, rows in examples.items():
        # One row more: an item cannot be its own example.
        enough = len(rows) - (name == "jmmlu")
        if enough < shots:
            raise PlamoError(
                f"shots is {shots} (task {name}): the subject {subject} has only {max(enough, 0)} rows for examples. Set a smaller number"
            )
    return ChoiceTask(
        name=name,
        metric="macro" if name == "jmmlu" else "accuracy",
        wording=JAPANESE if name == "jmmlu" else ENGLISH,
        subjects=subjects,
        examples=examples,
        titles=JAPANESE_NAMES if name == "jmmlu" else {},
        shots=shots,
        provenance={
            "licence": TASKS[name].licence,
            "data": options.path.name,
            "data_sha256": sha256(files),
            "files": len(files),
            "subjects": len(subjects),
            "shots": shots,
            "example_rule": "the first rows of the subject, without the item"
            if name == "jmmlu"
            else "the first rows of dev",
            "examples": {subject: [row.id for row in rows[:shots]] for subject, rows in examples.items()},
            "chance": 0.25,
        },
    )


def _read_jmmlu(folder: Path) -> tuple[dict[str, list[Row]], dict[str, list[Row]], list[Path]]:
    """Read the CSV files of JMMLU/ and JMMLU_NC_ND/ in the repository's folder, or of one such folder."""
    _check_folder(folder, "jmmlu")
    folders = [folder / name for name in ("JMMLU", "JMMLU_NC_ND") if (folder / name).is_dir()] or [folder]
    files = sorted((file for one in folders for file in one.glob("*.csv")), key=lambda file: file.stem)
    if not files:
        raise PlamoError(
            f"{folder} has no CSV file: it must be the folder of https://github.com/nlp-waseda/JMMLU, with JMMLU/*.csv and "
            "JMMLU_NC_ND/*.csv"
        )
    subjects = {file.stem: [_stripped(row) for row in _read_rows(file, file.stem)] for file in files}
    return subjects, subjects, files


def _read_mmlu(folder: Path) -> tuple[dict[str, list[Row]], dict[str, list[Row]], list[Path]]:
    """Read test/SUBJECT_test.csv and dev/SUBJECT_dev.csv."""
    _check_folder(folder, "mmlu")
    tests = sorted((folder / "test").glob("*_test.csv"))
    if not tests:
        raise PlamoError(
            f"{folder} has no test/*_test.csv: it must be the unpacked folder of MMLU's data.tar, with dev/SUBJECT_dev.csv and "
            "test/SUBJECT_test.csv"
        )
    subjects, examples, files = {}, {}, []
    for file in tests:
        subject = file.stem.removesuffix("_test")
        dev = folder / "dev" / f"{subject}_dev.csv"
        if not dev.is_file():
            raise PlamoError(f"{dev} is missing: each subject in test/ must have its examples in dev/")
        subjects[subject] = _read_rows(file, subject)
        examples[subject] = _read_rows(dev, f"dev/{subject}")
        files += [dev, file]
    return subjects, examples, files


def _check_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise PlamoError(
            f"{folder} is not a folder (task {name}): it must be the folder with the benchmark's CSV files"
        )


def _read_rows(file: Path, prefix: str) -> list[Row]:
    """Read a file. Quoted fields may span lines; a row with other than six fields is an error, because a guess could change a choice."""
    rows = []
    for number, (where, fields) in enumerate(read_csv(file, 6, _COLUMNS), 1):
        question, *choices, answer = fields
        if answer.strip() not in tuple(LETTERS):
            raise PlamoError(f"{where}: the answer is {answer[:40]!r}: it must be A, B, C or D")
        if not question.strip():
            raise PlamoError(f"{where}: the question is empty: {_COLUMNS}")
        rows.append(Row(f"{prefix}/{number}", question, tuple(choices), answer.strip()))
    if not rows:
        raise PlamoError(f"{file} has no rows: {_COLUMNS}")
    return rows


def _stripped(row: Row) -> Row:
    """Return a row without space around its texts. MMLU's own evaluation keeps such space."""
    return dataclasses.replace(row, question=row.question.strip(), choices=tuple(one.strip() for one in row.choices))


def _question(row: Row) -> str:
    return "\n".join([row.question, *(f"{letter}. {one}" for letter, one in zip(LETTERS, row.choices, strict=True))])


def _macro(subjects: Sequence[Metric]) -> Metric:
    """Return the mean over subjects. Its standard error follows from those of the subjects, whose items are independent."""
    count = len(subjects)
    errors = [one.stderr for one in subjects]
    stderr = None if None in errors else math.sqrt(math.fsum(one**2 for one in errors if one is not None)) / count
    return Metric(math.fsum(one.value for one in subjects) / count, stderr, sum(one.n for one in subjects))
