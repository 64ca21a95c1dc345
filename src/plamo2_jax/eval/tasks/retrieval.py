"""The retrieval probes as benchmark tasks: phonebook and needle, in Japanese and English."""

from __future__ import annotations

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import needle, phonebook
from plamo2_jax.eval.depths import depths
from plamo2_jax.eval.phonebook_names import LANGUAGES
from plamo2_jax.eval.retrieval import RetrievalTask
from plamo2_jax.eval.task import Task, TaskOptions
from plamo2_jax.eval.token_budget import token_counter

_LENGTHS = (512, 1024, 2048, 4096)
_CANDIDATES = 8


def open(name: str, options: TaskOptions) -> Task:
    """Open phonebook or needle. `trials` is the number of questions of each language, length and depth.

    Raises:
        PlamoError: an option is out of range, or a length is too short.
    """
    languages = options.kinds or LANGUAGES
    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise PlamoError(f"--kinds {unknown[0]} is not allowed for {name}: it must be {' or '.join(LANGUAGES)}")
    settings = {
        "lengths": options.lengths or _LENGTHS,
        "samples": 4 if options.trials is None else options.trials,
        "candidates": _CANDIDATES,
        "seed": options.seed,
    }
    count = 5 if options.depths is None else options.depths
    if settings["samples"] < 1 or count < 1:
        raise PlamoError(f"trials={settings['samples']} and depths={count} are not allowed: both must be at least 1")
    shared = {**settings, "depths": depths(count)}
    counter = token_counter(options.count_tokens)
    if name == "phonebook":
        questions = phonebook.questions(counter, languages=languages, **shared)
    else:
        questions = needle.questions(counter, needle.heldout_pages(languages), **shared)
    questions = list(questions)
    provenance = {
        "chance": sum(1 / len(question.candidates) for question in questions) / len(questions),
        **settings,
        "lengths": list(settings["lengths"]),
        "depths": count,
        "languages": list(languages),
        "tokens": "of the model" if options.count_tokens else "three characters each",
        "licence": "generated" if name == "phonebook" else "generated; held-out pages of the bundled corpus",
    }
    return RetrievalTask(name, questions, provenance)
