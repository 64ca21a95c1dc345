"""Synthetic text from checked generators beside scarce real text, at an equal number of training tokens.

python experiments/synthetic_data/ablation.py                         # resumes; writes results.json, plot.png and README.md
python experiments/synthetic_data/ablation.py --seeds 0 --steps 60    # a minute, to see that it runs
python experiments/synthetic_data/ablation.py --scale gpu             # 65 million parameters
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import write  # noqa: E402
from scales import Scale, parse  # noqa: E402
from trials import LANGUAGES, heldout_bits, run, train_to_end  # noqa: E402

from plamo2_jax import models  # noqa: E402
from plamo2_jax.checkpoint import write_json  # noqa: E402
from plamo2_jax.data import corpus  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.data.shards import open_shards  # noqa: E402
from plamo2_jax.engine.sampling import SamplingConfig  # noqa: E402
from plamo2_jax.engine.stop import StopConfig  # noqa: E402
from plamo2_jax.storage import write_whole  # noqa: E402
from plamo2_jax.synth.record import Draft, Seed  # noqa: E402
from plamo2_jax.synth.rule_recipes import RULE_RECIPES, directory, translation  # noqa: E402
from plamo2_jax.tokenizer.tokenizer import Tokenizer  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.pretraining import Pretrain  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

REAL = 0.1
"""Share of the training pages that count as available."""
ARMS = {"0": 0.0, "0.25": 0.25, "0.5": 0.5, "all pages": 0.0}
"""Synthetic share of the training tokens. The last arm has all real pages, for reference."""
ALL_PAGES = "all pages"
BYTES = {"word_problems": 900_000, "arithmetic": 150_000, "directory": 900_000}
"""Size of the generated text by recipe, half of it in each language. Lists and translation pairs have the size that the pages give."""
PEOPLE = 24
"""Number of invented people of each language."""
HELD_OUT = 4
"""One of this many word problems, and one of this many questions about a person, is held out."""
LABELS = {"ja": ("問題: ", "\n解答: ", "答え: "), "en": ("Question: ", "\nSolution: ", "Answer: ")}
BATCHES = 40
"""Number of held-out batches of each language."""
CHOICES = 4


def held_out(*key: object) -> bool:
    """Return whether the problem or question with this key is held out. It does not depend on the language or the seed."""
    return hashlib.sha256(json.dumps(key).encode()).digest()[0] % HELD_OUT == 0


def drafts(name: str, seed: Seed, random: np.random.Generator) -> list[Draft]:
    """Return the drafts of a recipe that needs no model, without those of a refused seed."""
    base, language = name.rsplit("_", 1)
    made = directory.recipe(name, language, "text", PEOPLE) if base == directory.NAME else RULE_RECIPES[name]()
    try:
        next(made.requests(seed, 0, random))
    except StopIteration as finished:
        return list(finished.value) if isinstance(finished.value, list) else []
    raise AssertionError(f"{name} asked a model")


def generated(base: str, language: str, random: np.random.Generator) -> Iterator[tuple[str, Draft, bool]]:
    """Yield texts without end: the text, its draft, and whether it is held out.

    A record of the directory becomes two texts: the statements, which are never held out, and the question, which must then be answered
    from memory.
    """
    number = 0
    while True:
        for draft in drafts(f"{base}_{language}", Seed(f"{base}/{number}", language), random):
            fields = draft.fields
            if base == "word_problems":
                yield str(draft.text), draft, held_out(fields["problem"], sorted(fields["values"].items()))
            elif base == "directory":
                statements, question = str(draft.text).split("\n\n")
                yield statements, draft, False
                yield question, draft, held_out(fields["asked"], fields["attribute"])
            else:
                yield str(draft.text), draft, False
        number += 1


def synthetic_texts(pairs: set[str], seed: int) -> dict[str, list[str]]:
    """Return the synthetic training texts by recipe. Lists and translation pairs come from the available pages only."""
    found: dict[str, list[str]] = {}
    for base, size in BYTES.items():
        texts = found[base] = []
        for i, language in enumerate(LANGUAGES):
            length, stream = 0, generated(base, language, np.random.default_rng([seed, i, len(base)]))
            while length < size / len(LANGUAGES):
                text, _, kept_back = next(stream)
                if not kept_back:
                    texts.append(text)
                    length += len(text.encode())
    random = np.random.default_rng([seed, 99])
    found["page_facts"] = [
        str(draft.text)
        for page in corpus.documents(split="train")
        if page["pair"] in pairs
        for draft in drafts(f"page_facts_{page['language']}", Seed(page["id"], page["language"], page["text"]), random)
    ]
    found["translation_pairs"] = [
        str(draft.text)
        for page in translation.aligned_seeds("train")
        if page.id in pairs
        for direction in ("ja_en", "en_ja")
        for draft in drafts(f"translation_pairs_{direction}", page, random)
    ]
    return found


def available(seed: int) -> set[str]:
    """Return the keys of the pages that are available: a page and its translation are available together."""
    keys = sorted({page["pair"] for page in corpus.documents(split="train")})
    chosen = np.random.default_rng([seed, 7]).permutation(len(keys))[: round(REAL * len(keys))]
    return {keys[int(i)] for i in chosen}


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts as JSON lines."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    write_whole(path, lines.encode())


def prepare_texts(home: Path, seed: int) -> Path:
    """Write the available pages and the synthetic text of a seed, unless they exist, and return their folder."""
    folder = home / f"texts-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sizes.json").exists():
        pairs = available(seed)
        for language in LANGUAGES:
            pages = [page["text"] for page in corpus.documents(language, "train") if page["pair"] in pairs]
            write_texts(folder / f"{language}.jsonl", pages)
        synthetic = synthetic_texts(pairs, seed)
        write_texts(folder / "synthetic.jsonl", [text for texts in synthetic.values() for text in texts])
        sizes = {name: sum(len(text.encode()) for text in texts) for name, texts in synthetic.items()}
        write_json(folder / "sizes.json", sizes)
    return folder


def prepare(home: Path, seed: int, vocab_size: int) -> None:
    """Write the tokenizer, the shards of real text, and those of the synthetic text of a seed, unless they exist."""
    folder = prepare_texts(home, seed)
    if not (home / "tokenizer.jsonl").exists():
        # All arms and seeds have the same tokenizer. It has seen synthetic text, so that this text is not spelt in bytes.
        inputs = ("bundled:all:train", prepare_texts(home, 0) / "synthetic.jsonl")
        run("tokenizer", "train", "--input", *inputs, "--vocab-size", vocab_size, "--output", home)
    sources = {f"{name}-{seed}": folder / f"{name}.jsonl" for name in (*LANGUAGES, "synthetic")}
    for language in LANGUAGES:
        sources |= {f"{language}/{split}": f"bundled:{language}:{split}" for split in ("train", "heldout")}
    for name, source in sources.items():
        if not (home / "data" / name).exists():
            run("data", "prepare", "--input", source, "--tokenizer", home, "--output", home / "data" / name)


def tokens(home: Path, name: str) -> int:
    """Return the number of tokens of a folder of shards."""
    return open_shards(home / "data" / name, Tokenizer.load(home)).tokens


def check_disjoint(home: Path, seed: int, count: int) -> None:
    """Check that no synthetic training text has a held-out question.

    Raises:
        SystemExit: a text has one.
    """
    text = (home / f"texts-{seed}" / "synthetic.jsonl").read_text(encoding="utf-8")
    prompts = {
        json.loads(line)["text"].split(label)[0] for line in text.splitlines() for _, label, _ in LABELS.values()
    }
    for language in LANGUAGES:
        for question in word_problems(language, count) + facts(language, trained=False):
            if question.prompt.removesuffix(LABELS[language][1]) in prompts:
                raise SystemExit(f"the training text of seed {seed} has the held-out question: {question.prompt}")


def train(home: Path, scale: Scale, arm: str, seed: int, steps: int) -> Path:
    """Train an arm to the end, and return its folder. The initial parameters of a seed are the same in all arms."""
    share = ARMS[arm]
    kind = "/train" if arm == ALL_PAGES else f"-{seed}"
    mixture = [
        MixtureItem(home / "data" / f"{language}{kind}", (1 - share) * part) for language, part in LANGUAGES.items()
    ]
    if share:
        mixture.append(MixtureItem(home / "data" / f"synthetic-{seed}", share))
    return train_to_end(
        RunConfig(
            name=f"{arm.replace(' ', '-')}-{seed}",
            output=home / "runs",
            model=scale.models["model"],
            tokenizer=home / "tokenizer.jsonl",
            data=DataConfig(tuple(mixture), scale.length, scale.rows, seed=seed),
            steps=steps,
            task=Pretrain(),
            schedule=ScheduleConfig(
                learning_rate=scale.learning_rate, warmup=0.05, decay_fraction=0.5, decay_shape="linear"
            ),
            dtype=scale.dtype,
            seed=seed,
            checkpoint_every=max(1, steps // 4),
            max_to_keep=1,
        )
    )


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out question."""

    prompt: str
    """The text up to the solution."""
    solution: str
    answer: str
    given: str
    """Beginning of the solution that is given for the ranking: a word problem up to the last equals sign, otherwise nothing."""
    endings: tuple[str, ...]
    """Continuations to rank. The first one is right."""


def word_problems(language: str, count: int) -> list[Question]:
    """Return held-out word problems. The wrong endings have the results of other problems of the same kind with as many digits."""
    random = np.random.default_rng([1, len(language), *language.encode()])
    stream = generated("word_problems", language, random)
    drawn = [next(stream) for _ in range(40 * count)]
    results: dict[tuple[str, int], list[str]] = {}
    for _, draft, _ in drawn:
        results.setdefault((draft.fields["problem"], len(draft.fields["answer"])), []).append(draft.fields["answer"])
    found: list[Question] = []
    for text, draft, kept_back in drawn:
        answer = draft.fields["answer"]
        others = list(dict.fromkeys(results[draft.fields["problem"], len(answer)]))
        if not kept_back or len(others) < CHOICES or len(found) == count:
            continue
        wrong = [others[int(i)] for i in random.permutation(len(others)) if others[int(i)] != answer][: CHOICES - 1]
        prompt, solution = text.split(LABELS[language][1])
        # The last step and the stated answer both have the result.
        cut = solution.rindex("= ") + 2
        endings = [re.sub(rf"(?<!\d){answer}(?!\d)", number, solution[cut:]) for number in (answer, *wrong)]
        found.append(Question(prompt + LABELS[language][1], solution, answer, solution[:cut], tuple(endings)))
    return found


def facts(language: str, trained: bool) -> list[Question]:
    """Return questions about people: the held-out ones, or as many others. Wrong answers are those of other people."""
    random = np.random.default_rng([2, len(language), *language.encode()])
    asked: dict[tuple[int, str], Question] = {}
    wanted = sum(held_out(i, attribute) for i in range(PEOPLE) for attribute in directory.ATTRIBUTES)
    everyone = directory.people(language)[:PEOPLE]
    for text, draft, kept_back in generated("directory", language, random):
        if LABELS[language][1] not in text or kept_back == trained:
            continue
        key = (draft.fields["asked"], draft.fields["attribute"])
        prompt, answer = text.split(LABELS[language][1])
        others = sorted({getattr(person, key[1]) for person in everyone} - {answer})
        wrong = [others[int(i)] for i in random.permutation(len(others))[: CHOICES - 1]]
        asked.setdefault(key, Question(prompt + LABELS[language][1], answer, answer, "", (answer, *wrong)))
        if len(asked) == wanted:
            return list(asked.values())
    raise AssertionError


def exact(question: Question, text: str, language: str) -> bool:
    """Return whether a generated solution ends with the right answer."""
    if not question.given:
        return text.strip() == question.answer
    stated = text.rpartition(LABELS[language][2])
    number = re.match(r"\d+", stated[2])
    return bool(stated[1]) and number is not None and number.group() == question.answer


def measure(home: Path, scale: Scale, folder: Path, count: int) -> dict:
    """Return held-out bits per byte of the pages and of solutions, and accuracies, by language."""
    found: dict = {"bits_per_byte": heldout_bits(home, folder, scale.length, scale.rows, BATCHES)}
    with models.open(folder, batch_size=64) as model:
        for language in LANGUAGES:
            sets: dict[str, list[Question]] = {
                "word_problems": word_problems(language, count),
                "facts": facts(language, trained=False),
                "facts_trained": facts(language, trained=True),
            }
            for name, questions in sets.items():
                found.setdefault(name, {})[language] = score(model, questions, language)
    return found


def score(model: models.ChatModel, questions: list[Question], language: str) -> dict[str, float]:
    """Return accuracies of greedy decoding and of ranking, and bits per byte of the right solutions."""
    stop = StopConfig(max_new_tokens=160 if questions[0].given else 24)
    written = model.complete(
        [models.CompletionRequest(question.prompt, sampling=SamplingConfig(0.0), stop=stop) for question in questions]
    )
    ranked = model.score(
        [models.ScoreRequest(question.prompt + question.given, question.endings) for question in questions]
    )
    whole = model.score([models.ScoreRequest(question.prompt, [question.solution]) for question in questions])
    failed = [one for one in (*written, *ranked, *whole) if isinstance(one, models.RequestError)]
    if failed:
        raise SystemExit(failed[0].reason)
    nats = -sum(scores[0].logprob for scores in whole)
    return {
        "questions": len(questions),
        "exact": statistics.fmean(
            exact(question, answers[0].text, language) for question, answers in zip(questions, written, strict=True)
        ),
        "ranked": statistics.fmean(int(np.argmax([one.logprob for one in scores])) == 0 for scores in ranked),
        "bits_per_byte": nats / math.log(2) / sum(len(question.solution.encode()) for question in questions),
    }


def cached(path: Path, make: Callable[[], dict]) -> dict:
    """Return the JSON of a file; if it does not exist, write it first."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Train and measure every arm and seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Random seeds.")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="Arms to train.")
    parser.add_argument("--steps", type=int, help="Training steps.")
    parser.add_argument("--questions", type=int, default=100, help="Number of word problems of each language.")
    options, scale = parse(parser, "synthetic_data", HERE)
    home = options.work / f"steps-{options.steps}"
    home.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.work / "compiled"))
    results: dict = {"steps": options.steps, "tokens": options.steps * scale.tokens, "seeds": {}}
    for seed in options.seeds:
        prepare(home, seed, scale.vocab_size)
        check_disjoint(home, seed, options.questions)
        of_seed = results["seeds"][str(seed)] = {
            "synthetic_bytes": json.loads((home / f"texts-{seed}" / "sizes.json").read_text(encoding="utf-8")),
            "real_tokens": {name: tokens(home, f"{name}-{seed}") for name in LANGUAGES},
            "synthetic_tokens": tokens(home, f"synthetic-{seed}"),
            "arms": {},
        }
        for arm in options.arms:
            folder = train(home, scale, arm, seed, options.steps)
            name = f"{folder.name}-{options.questions}.json"
            of_seed["arms"][arm] = cached(
                home / name, functools.partial(measure, home, scale, folder, options.questions)
            )
            print(seed, arm, json.dumps(of_seed["arms"][arm]), flush=True)
    write(options.output, results)


if __name__ == "__main__":
    main()
