"""Evaluation items to compare training documents with, from the values of `--against`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from plamo2_jax.data.contamination import EvaluationItem, texts_of
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.files import find_files, format_of
from plamo2_jax.data.readers import good_records, open_records, read_records
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError


def evaluation_items(specs: Sequence[str], fields: Sequence[str] = ()) -> Iterator[EvaluationItem]:
    """Yield the items of files, folders, patterns, task:NAME, task:NAME=PATH and bundled:LANGUAGE:SPLIT.

    Args:
        specs: Values of `--against`.
        fields: Fields of a record that are compared; empty: all fields.

    Raises:
        PlamoError: A file is missing or damaged, a task is unknown, or no record has one of the fields.
    """
    for spec in specs:
        if spec.startswith("task:"):
            yield from _items_of_task(spec)
        elif spec.startswith("bundled:"):
            yield from (EvaluationItem(document.id, (document.text,)) for document in read_documents([spec]))
        else:
            yield from _items_of_files(spec, fields)


def _items_of_task(spec: str) -> Iterator[EvaluationItem]:
    from plamo2_jax.eval.task import TaskOptions
    from plamo2_jax.eval.tasks import TASKS, open_task

    name, _, path = spec.removeprefix("task:").partition("=")
    info = TASKS.get(name)
    if info is not None and info.source is not None and not path:
        raise PlamoError(
            f"--against {spec} is not allowed: the data of {name} is not part of this package (licence: {info.licence}). Get it from "
            f"{info.source}, and write task:{name}=PATH"
        )
    task = open_task(name, TaskOptions(path=Path(path) if path else None))
    for item in task.items:
        yield EvaluationItem(f"{name}: {item.id}", (item.question,))


def _items_of_files(spec: str, fields: Sequence[str]) -> Iterator[EvaluationItem]:
    report, found = ReadReport(), not fields
    for file in find_files(spec, report):
        if format_of(file) == "text":
            for _, record in good_records(open_records(file, text_field="text"), report, ("text",)):
                report.records += 1
                for number, line in enumerate(record["text"].splitlines(), 1):
                    if line.strip():
                        yield EvaluationItem(f"{file}, line {number}", (line,))
            continue
        for place, record in read_records(file, report):
            report.records += 1
            texts = texts_of(record, fields)
            found = found or bool(texts)
            yield EvaluationItem(place, texts)
    report.judge()
    if not found:
        raise PlamoError(f"{spec} has no text in the fields {', '.join(fields)}: check --against-fields")
