"""The benchmark tasks. `TASKS` has what `plamo2 evaluate --list` shows; a task's module is imported when the task is opened."""

from __future__ import annotations

import dataclasses
import difflib
import importlib

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.pfgen import benchmark as pfgen
from plamo2_jax.eval.task import Task, TaskOptions


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """An entry of the task list."""

    module: str
    """Name of a module of this package. Its function `open(name, options)` returns the task."""
    summary: str
    """One line: kind of questions, number of items, score."""
    licence: str
    """Licence of the data."""
    source: str | None = None
    """Where to get the data; None if it is part of this package or generated."""
    needs_judge: bool = False


TASKS: dict[str, TaskInfo] = {
    # pfgen
    "pfgen": TaskInfo(
        "pfgen",
        "pfgen-bench: 50 questions in Japanese, 10 trials: mean of fluency, truthfulness and helpfulness.",
        pfgen.LICENCE,
        pfgen.SOURCE,
    ),
    # mmlu
    "jmmlu": TaskInfo(
        "mmlu",
        "Japanese questions with four choices, 56 subjects, 7,536 questions, 5 examples: accuracy, mean of the subjects.",
        "CC BY-SA 4.0; japanese_civics, japanese_geography and japanese_idiom: CC BY-NC-ND 4.0; japanese_history and world_history: "
        "no commercial use except research and evaluation of language models",
        "https://github.com/nlp-waseda/JMMLU (the folder)",
    ),
    "mmlu": TaskInfo(
        "mmlu",
        "English questions with four choices, 57 subjects, 14,042 questions, 5 examples: accuracy.",
        "MIT",
        "https://github.com/hendrycks/test (the folder of data.tar, with dev/ and test/)",
    ),
    # code
    "humaneval": TaskInfo("code", "Python functions from docstrings, 164 problems: pass@k.", "MIT"),
    "jhumaneval": TaskInfo(
        "code",
        "HumanEval with Japanese docstrings, 164 problems: pass@k.",
        "MIT",
        "https://huggingface.co/datasets/kogi-jwu/jhumaneval or https://github.com/ohashi3399/human-eval-ja (JSON lines or Parquet)",
    ),
    "humaneval_plus": TaskInfo(
        "code",
        "HumanEval with many more tests, 164 problems: pass@k.",
        "Apache-2.0",
        "https://github.com/evalplus/humanevalplus_release (HumanEvalPlus.jsonl.gz)",
    ),
    # instructions
    "ifeval": TaskInfo(
        "instructions",
        "IFEval in English, 541 prompts with verifiable instructions: share of instructions followed, strict "
        "and loose.",
        "Apache-2.0",
    ),
    "mifeval_ja": TaskInfo(
        "instructions",
        "M-IFEval in Japanese, 172 prompts with verifiable instructions: share of instructions followed, "
        "strict and loose.",
        "Apache-2.0",
    ),
    "jfbench": TaskInfo(
        "instructions",
        "JFBench in Japanese, 98 verifiable constraints, each with 3 of 300 prompts (--trials): share of "
        "constraints followed.",
        "prompts: ODC-BY 1.0; wordings: MIT",
    ),
    # judged
    "mt_bench_ja": TaskInfo(
        "judged",
        "Japanese MT-Bench, 80 conversations of two turns in 8 categories: ratings of a judge from 1 to 10.",
        "Apache-2.0",
        needs_judge=True,
    ),
    "elyza": TaskInfo(
        "judged",
        "ELYZA-tasks-100, Japanese questions with rating criteria: ratings of a judge from 1 to 5.",
        "CC BY-SA 4.0",
        "https://huggingface.co/datasets/elyza/ELYZA-tasks-100 (test.csv)",
        needs_judge=True,
    ),
    # long context
    "ruler": TaskInfo(
        "long_context",
        "RULER in English (long contexts): needles, variable tracking, word counts, 20 questions per kind and "
        "length: share of references found.",
        "wordings: Apache-2.0; contexts: generated, or the bundled corpus",
    ),
    "ruler_ja": TaskInfo(
        "long_context",
        "The same kinds as in RULER, in Japanese, 20 questions per kind and length: share of references found.",
        "wordings: Apache-2.0; contexts: generated, or the bundled corpus",
    ),
    "cloze": TaskInfo(
        "cloze",
        "Cloze questions from held-out pages of the bundled corpus, Japanese and English, 4 choices: accuracy.",
        "text of the bundled corpus: MPL-2.0, CC-BY-SA-3.0",
    ),
    "rules": TaskInfo(
        "rules",
        "Conversations with rules for the answers (language, length, format): mean over the rules.",
        "the licence of your prompts",
        source="plamo2 data instructions (heldout.jsonl) or your own JSON lines with messages and rules",
    ),
    "phonebook": TaskInfo(
        "retrieval",
        "Retrieval of numbers from phonebooks, Japanese and English, 20 questions per language and length, 8 "
        "choices: accuracy.",
        "generated",
    ),
    "needle": TaskInfo(
        "retrieval",
        "Retrieval of a number from held-out text (needle), Japanese and English, 20 questions per language "
        "and length, 8 choices: accuracy.",
        "generated; text of the bundled corpus (MPL-2.0, CC-BY-SA-3.0)",
    ),
}
"""The tasks by name."""


_OPTIONS = {
    "cloze": "kinds",
    "code": "mode trials max_new_tokens",
    "instructions": "max_new_tokens",
    "judged": "trials max_new_tokens",
    "long_context": "mode trials max_new_tokens lengths depths kinds",
    "mmlu": "shots",
    "pfgen": "mode shots trials max_new_tokens",
    "retrieval": "trials lengths depths kinds",
    "rules": "max_new_tokens",
}


def options_of(name: str) -> frozenset[str]:
    """Return the fields of TaskOptions that change a task, besides path, seed and baseline. Tasks of YAML files check them themselves."""
    if name == "jfbench":
        return frozenset({"trials", "kinds", "max_new_tokens"})
    return frozenset(
        _OPTIONS[TASKS[name].module].split() if name in TASKS else ["mode", "shots", "trials", "max_new_tokens"]
    )


def open_task(name: str, options: TaskOptions) -> Task:
    """Open a task.

    Raises:
        PlamoError: the task is unknown, or its data is missing or malformed.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise PlamoError(f"the task {name!r} is unknown: {hint}plamo2 evaluate --list shows the tasks")
    info = TASKS[name]
    if info.source is not None and options.path is None:
        raise PlamoError(
            f"the task {name} needs data that is not part of this package (licence: {info.licence}): get it from {info.source}, "
            f"and add --path {name}=PATH"
        )
    return importlib.import_module(f"{__name__}.{info.module}").open(name, options)
