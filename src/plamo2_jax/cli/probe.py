"""`plamo2 probe MODEL`: measure retrieval at chosen lengths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plamo2_jax.eval.retrieval import Answered, Question
    from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Measure retrieval: how often a model finds one fact in a long text, by text length and depth of the fact.

    phonebook: the prompt has lines with names and numbers, and then one of the names. The answer is its number (arXiv:2402.01032). needle:
    the prompt is held-out text with an inserted sentence that contains a number, and then the beginning of this sentence. The answer is the
    number.

    exact is the share of greedy answers that are exactly right. ranked is the share of questions where the right number has a higher
    probability than all other candidates; random guessing gives 1 / candidates. Use ranked to compare small models, for which exact is
    often 0.

    Writes OUTPUT/results.json, OUTPUT/answers.jsonl and OUTPUT/heat_map.png. plamo2 phonebook writes training text for small models.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters."""
    output: Path
    """Folder to create: it must not exist, or it must be empty."""
    task: Literal["phonebook", "needle"] = "phonebook"
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Lengths to measure, in tokens of prompt and answer together."""
    language: str = "ja,en"
    """ja, en, or both separated by a comma."""
    depths: int = 5
    """Number of positions of the fact, from the beginning to the end of the text."""
    samples: int = 4
    """Number of questions per language, length and depth."""
    candidates: int = 8
    """Number of candidates for ranked, including the right one."""
    digits: int | None = None
    """Number of digits of each number. Default: telephone numbers in phonebooks, 5 in needles. Use few digits for small models."""
    separator: str = ": "
    """Text between name and number of a phonebook."""
    batch_size: int = 4
    """Number of prompts per batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations."""
    seed: int = 0
    """Random seed."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(ProbeOptions, argv, "plamo2 probe")
    languages = tuple(part.strip() for part in options.language.split(","))
    require_at_least(1, depths=options.depths, samples=options.samples, batch_size=options.batch_size)
    require_at_least(2, candidates=options.candidates)
    from plamo2_jax.storage import require_empty

    require_empty(options.output)
    from plamo2_jax import models
    from plamo2_jax.eval.retrieval import as_text, ask, table
    from plamo2_jax.progress import tqdm

    # The candidates of all questions of a batch are scored together.
    rows = options.batch_size * options.candidates
    with models.open(options.model, dtype=options.dtype, batch_size=rows) as model:
        questions = list(_questions(options, model.tokenizer, languages))
        with tqdm(total=len(questions), unit="question", desc=options.task) as progress:
            answered = ask(questions, model, batch_size=options.batch_size, on_answer=progress.update)
    rows = table(answered)
    _write(options, answered, rows)
    print(as_text(rows))
    print(options.output)
    return 0


def _questions(options: ProbeOptions, tokenizer: Tokenizer, languages: tuple[str, ...]) -> Iterator[Question]:
    from plamo2_jax.eval import needle, phonebook
    from plamo2_jax.eval.depths import depths
    from plamo2_jax.eval.phonebook_names import LANGUAGES

    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise PlamoError(f"--language {','.join(unknown)} is not allowed: it must be {' or '.join(LANGUAGES)}, or both")
    shared = {
        "lengths": options.lengths,
        "depths": depths(options.depths),
        "samples": options.samples,
        "candidates": options.candidates,
        "seed": options.seed,
    }

    def count(text: str) -> int:
        return len(tokenizer.encode(text, bos=True))

    if options.task == "phonebook":
        return phonebook.questions(
            count, languages=languages, digits=options.digits, separator=options.separator, **shared
        )
    texts = needle.heldout_pages(languages)
    return needle.questions(count, texts, digits=5 if options.digits is None else options.digits, **shared)


def _write(options: ProbeOptions, answered: list[Answered], rows: list[dict]) -> None:
    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.eval.retrieval import RetrievalTask
    from plamo2_jax.storage import new_folder

    with new_folder(options.output) as partial:
        settings = {**dataclasses.asdict(options), "output": str(options.output)}
        write_json(partial / "results.json", {"settings": settings, "rows": rows})
        with (partial / "answers.jsonl").open("w", encoding="utf-8") as file:
            for one in answered:
                question = dataclasses.asdict(one.question) | {"prompt": one.question.prompt[-120:]}
                record = {**question, "exact": one.exact, "ranked": one.ranked, "text": one.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        task = RetrievalTask("heat_map", [one.question for one in answered], {})
        scores = {id(one.question): {"exact": float(one.exact), "ranked": float(one.ranked)} for one in answered}
        task.plots(task.items, [scores[id(task.questions[item.id])] for item in task.items], partial)
