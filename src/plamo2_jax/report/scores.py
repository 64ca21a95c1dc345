"""The table of models in the report of a run: the results of `plamo2 evaluate --tasks` in the folder scores/."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from plamo2_jax.eval.results import TaskResult, read_results
from plamo2_jax.report.run import EVALUATION, read_evaluation
from plamo2_jax.storage import is_link

SCORES = "scores"


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of models, as the page shows them."""

    columns: list[str]
    """Headings: held-out data, then tasks with their metric."""
    rows: list[tuple[str, list[str]]]
    """Name of each model and its cells."""
    chance: list[str]
    """The score of a random answer in each column, or an empty text."""


def read_scores(folder: Path, notes: list[str]) -> ScoreTable | None:
    """Read scores/MODEL/ in a run folder: the results of tasks, and evaluation.json.

    Args:
        folder: the run folder.
        notes: gets a sentence about each folder that could not be read.

    Returns:
        The table, with the models in the order in which they were evaluated; None if there is no result.
    """
    home = folder / SCORES
    found: list[tuple[str, str, dict[str, TaskResult], dict[str, dict[str, float]]]] = []
    # A link may lead out of the run.
    for path in sorted(home.iterdir()) if home.is_dir() and not is_link(home) else ():
        if is_link(path) or not path.is_dir() or path.name.startswith("."):
            continue
        try:
            results = read_results(path)
            heldout = read_evaluation(path / EVALUATION) if (path / EVALUATION).is_file() else {}
        except ValueError as error:
            notes.append(str(error))
            continue
        finished = min(str(one.result.get("finished")) for one in results.values())
        found.append((finished, path.name, results, heldout))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    languages = list(dict.fromkeys(language for *_, heldout in found for language in heldout))
    tasks = list(dict.fromkeys(task for _, _, results, _ in found for task in results))
    named = {task: next(results[task] for _, _, results, _ in found if task in results) for task in tasks}
    columns = [f"bits per byte, {language}" for language in languages]
    columns += [f"{task}: {named[task].result['metric']}" for task in tasks]
    rows = [
        (
            name,
            [_bits(heldout.get(language, {})) for language in languages]
            + [_score(results.get(task)) for task in tasks],
        )
        for _, name, results, heldout in found
    ]
    return ScoreTable(columns, rows, [""] * len(languages) + [_chance(named[task]) for task in tasks])


def _bits(figures: dict[str, float]) -> str:
    return f"{figures['bits_per_byte']:.3f}" if "bits_per_byte" in figures else "–"


def _score(found: TaskResult | None) -> str:
    """Return a score with its standard error, or a dash."""
    if found is None or not isinstance(found.result.get("score"), int | float):
        return "–"
    error = found.result.get("stderr")
    return f"{found.result['score']:.3f}" + (f" ± {error:.3f}" if isinstance(error, int | float) else "")


def _chance(found: TaskResult) -> str:
    chance = found.result["provenance"].get("chance")
    return f"{chance:.3f}" if isinstance(chance, int | float) and not isinstance(chance, bool) else ""
