"""The models in the report of a run: one table of their sizes and scores, and their answers to the same prompts side by side."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.quantized import FOLDER as QUANTIZED
from plamo2_jax.convert.read import read_public_config
from plamo2_jax.eval.results import TaskResult, read_results
from plamo2_jax.json_input import read_json_object
from plamo2_jax.report.run import EVALUATION, LANGUAGES, Run, read_evaluation
from plamo2_jax.report.stages import Stages, in_bytes
from plamo2_jax.storage import is_link

SCORES = "scores"
_MOST_PROMPTS, _MOST_TEXT = 6, 1200
_VERBS = {"prune": "pruning", "merge": "merging", "extend": "extension", "grow": "growing", "quantize": "quantization"}
"""Verb of the stage that made a model without training it → kind of model."""


@dataclasses.dataclass(frozen=True)
class ModelTable:
    """Models, as the page shows them."""

    columns: list[str]
    """Headings after the model's name."""
    rows: list[tuple[str, list[str]]]
    """Name of each model and its cells."""
    chance: list[str]
    """The score of a random answer in each column, or an empty text."""
    logged: bool
    """Whether a cell has a †: a value from the log of the run."""


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Texts of several models for the same prompts."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    """Prompt, and the text of each model."""


@dataclasses.dataclass
class Model:
    """A model of a run folder, with its results."""

    name: str
    folder: Path | None = None
    """None: a model that was evaluated and has no folder here."""
    config: ModelConfig | None = None
    run: Run | None = None
    """Its run; None: a folder in Hugging Face format."""
    stage: str | None = None
    """The stage of the pipeline that made it."""
    results: Mapping[str, TaskResult] = dataclasses.field(default_factory=dict)
    heldout: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Held-out set → metric → value."""


def read_models(
    folder: Path, base: Run, below: Sequence[Run], stages: Stages | None, notes: list[str]
) -> tuple[list[Model], set[str]]:
    """Return the models of a run folder with their results, and the names of the files that these results come from.

    Args:
        folder: the run folder.
        base: its own run.
        below: the runs and models inside the folder.
        stages: the pipeline that made them. None: only evaluated models are returned, in the order of their evaluation.
        notes: gets a sentence about each folder that could not be read.
    """
    scored = _scored(folder, notes)
    names = {folder.name, base.name}
    if stages is None:
        return scored, set()
    models = {"": Model(base.name, folder, base.model, base)}
    models |= {run.name: Model(run.name, run.folder, run.model, run) for run in below}
    for key in stages.makers:
        if key not in models and not is_link(folder / key):
            try:
                models[key] = Model(key, folder / key, read_public_config(folder / key))
            except ValueError:
                continue  # Other folders have a config.json too, such as preference data.
    for key, model in models.items():
        model.stage = stages.makers.get(key)
    order = list(stages.makers)
    ordered = sorted(models, key=lambda key: order.index(key) if key in order else len(order))
    used = set()
    for path in sorted(folder.iterdir()):
        if path.name.endswith(EVALUATION) and not is_link(path) and path.is_file():
            try:
                key = _key(read_json_object(path).get("model"), models, names)
                if key is not None:
                    models[key].heldout = read_evaluation(path)
                    used.add(path.name)
            except ValueError:
                continue  # The page has a note about the file already.
    others = []
    for found in scored:
        # All tasks of a folder have the same model.
        key = _key(next(iter(found.results.values())).result["model"].get("model"), models, names)
        if key is None or models[key].results:
            others.append(found)
            continue
        model = models[key]
        model.results, model.heldout = found.results, {**model.heldout, **found.heldout}
        if found.name != model.name:
            model.name = f"{found.name} ({model.name})"
    return [models[key] for key in ordered] + others, used


def model_table(models: Sequence[Model], stages: Stages | None) -> ModelTable | None:
    """Return the table of models; None if there is none. With `stages`, it has their sizes and speeds too."""
    if not models:
        return None
    languages = list(dict.fromkeys(language for model in models for language in model.heldout))
    tasks = list(dict.fromkeys(task for model in models for task in model.results))
    named = {task: next(model.results[task] for model in models if task in model.results) for task in tasks}
    columns = [f"bits per byte, {language}" for language in languages]
    columns += [f"{task}: {named[task].result['metric']}" for task in tasks]
    rows = []
    for model in models:
        cells = [_bits(model, language, stages is not None) for language in languages]
        cells += [_score(model.results.get(task)) for task in tasks]
        if stages is not None:
            cells = [model.stage or "–", _kind(model, stages), *_size(model), *cells, _speed(model)]
        rows.append((model.name, cells))
    chance = [""] * len(languages) + [_chance(named[task]) for task in tasks]
    if stages is not None:
        columns = ["stage", "kind", "parameters", "size", *columns, "training, tokens/s"]
        chance = ["", "", "", "", *chance, ""]
    return ModelTable(columns, rows, chance, any("†" in cell for _, cells in rows for cell in cells))


def side_by_side(models: Sequence[Model], below: Sequence[Run]) -> list[SideBySide]:
    """Return the texts of models for prompts that several of them answered: items of tasks, and samples of runs."""
    found = []
    for task in dict.fromkeys(task for model in models for task in model.results):
        chosen = [model for model in models if task in model.results]
        answers = [
            {row["question"]: text for row in model.results[task].answers.values() if (text := _text(row))}
            for model in chosen
        ]
        generated = chosen[0].results[task].result["tokens"].get("generated")
        if len(chosen) > 1 and isinstance(generated, int) and generated > 0:
            found.append(_compare(f"task {task}", [model.name for model in chosen], answers))
    sampled = [run for run in below if run.samples]
    texts = [{sample["prompt"]: sample["text"] for sample in reversed(run.samples)} for run in sampled]
    found.append(_compare("samples of runs", [run.name for run in sampled], texts))
    return [one for one in found if one is not None]


def _compare(title: str, columns: list[str], texts: Sequence[Mapping[str, str]]) -> SideBySide | None:
    """Return prompts that all columns have, spread evenly over their order; None if there are none."""
    shared = [prompt for prompt in texts[0] if all(prompt in one for one in texts)] if len(texts) > 1 else []
    if not shared:
        return None
    number = min(len(shared), _MOST_PROMPTS)
    chosen = [shared[i * len(shared) // number] for i in range(number)]
    return SideBySide(title, columns, [(_cut(prompt), [_cut(one[prompt]) for one in texts]) for prompt in chosen])


def _scored(folder: Path, notes: list[str]) -> list[Model]:
    """Read scores/MODEL/ in a run folder, in the order of the evaluations."""
    home = folder / SCORES
    found: list[tuple[str, Model]] = []
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
        found.append((finished, Model(path.name, results=results, heldout=heldout)))
    found.sort(key=lambda one: one[0])
    return [model for _, model in found]


def _key(evaluated: Any, models: Mapping[str, Model], base_names: set[str]) -> str | None:
    """Return the key of an evaluated model: the name of a folder, "" for the run itself, or None for another model or checkpoint."""
    name = Path(evaluated).name if isinstance(evaluated, str) else ""
    if name and name in models:
        return name
    return "" if name in base_names else None


def _bits(model: Model, language: str, with_log: bool) -> str:
    """Return the bits per byte of a model on a held-out set: as evaluated, or else from the log of its run."""
    value = model.heldout.get(language, {}).get("bits_per_byte")
    if value is not None:
        return f"{value:.3f}"
    run = model.run
    # The targets of fine-tuning runs are answers, whose bits per byte cannot be compared with those of text.
    if with_log and run is not None and run.kind.startswith(("pretraining", "distillation")):
        for row in run.heldout:
            if row.name == LANGUAGES.get(language, language) and "bits_per_byte" in row.figures:
                return f"{row.figures['bits_per_byte']:.3f}†"
    return "–"


def _score(found: TaskResult | None) -> str:
    """Return a score with its standard error, or a dash."""
    if found is None or not isinstance(found.result.get("score"), int | float):
        return "–"
    error = found.result.get("stderr")
    return f"{found.result['score']:.3f}" + (f" ± {error:.3f}" if isinstance(error, int | float) else "")


def _chance(found: TaskResult) -> str:
    chance = found.result["provenance"].get("chance")
    return f"{chance:.3f}" if isinstance(chance, int | float) and not isinstance(chance, bool) else ""


def _kind(model: Model, stages: Stages) -> str:
    verb = next((row.command.split()[0] for row in stages.rows if row.name == model.stage), "")
    return _VERBS.get(verb, "–" if model.run is None else model.run.kind)


def _size(model: Model) -> tuple[str, str]:
    """Return the number of parameters of a model, and the size of its weights without the state of the optimizer."""
    if model.folder is None or model.config is None:
        return "–", "–"
    return f"{model.config.parameter_count():,}", in_bytes(_weight_bytes(model.folder))


def _weight_bytes(folder: Path) -> int | None:
    """Return the size of the newest weights in a folder in bytes, or None if there are none or they are damaged."""
    try:
        if checkpoint.steps(folder):
            leaves = jax.tree.leaves(checkpoint.read_metadata(checkpoint.item_folder(folder)))
            return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    except ValueError:
        return None
    files = [*folder.glob("*.safetensors"), *(folder / QUANTIZED).glob("*.safetensors")]
    sizes = [path.stat().st_size for path in files if not is_link(path) and path.is_file()]
    return sum(sizes) if sizes else None


def _speed(model: Model) -> str:
    """Return the median of the tokens per second in the log of a run, or a dash."""
    lines = () if model.run is None else model.run.lines
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return f"{statistics.median(speeds):,.0f}" if speeds else "–"


def _text(row: Mapping[str, Any]) -> str | None:
    """Return the text of an answer."""
    answer = row.get("answer")
    text = answer.get("text") if isinstance(answer, dict) else answer
    return text if isinstance(text, str) and text else None


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"
