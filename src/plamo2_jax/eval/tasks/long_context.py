"""RULER (arXiv:2404.06654): needles, chains of variables and counts of words in contexts of chosen lengths.

The kinds, their parameters, the English wordings and the score are the same as in NVIDIA/RULER. The two kinds with text of other data sets
(qa_1, qa_2) are not included. Contexts are generated, or are pages of the bundled corpus; docs/evaluation.md lists all deviations.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from plamo2_jax.data.corpus import manifest
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.depths import depth_label, depths
from plamo2_jax.eval.heat_map import heat_maps, mean_panel
from plamo2_jax.eval.metrics import mean_metric, mean_metrics
from plamo2_jax.eval.ruler import chains, counts, needles
from plamo2_jax.eval.ruler.case import Case, fit
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, Task, TaskOptions
from plamo2_jax.eval.token_budget import token_counter
from plamo2_jax.models import ChatRequest, CompletionRequest

KINDS = (*needles.KINDS, "vt", "cwe", "fwe")
"""The kinds of questions, with RULER's names."""
_LENGTHS = (4096, 8192, 16384, 32768)
_CHAT_TOKENS = 32
"""Tokens that are left for the chat template, which the task does not know."""


def open(name: str, options: TaskOptions) -> Task:
    """Open ruler (English) or ruler_ja (Japanese).

    Raises:
        PlamoError: an option is out of range, or a length is too short for a kind.
    """
    return Ruler(name, "ja" if name.endswith("_ja") else "en", options)


@dataclasses.dataclass(frozen=True)
class _Place:
    kind: str
    length: int
    depth: float
    seed: list[int]


class Ruler:
    """The task in one language. Item ids are KIND/LENGTH/DEPTH/NUMBER, and the groups are KIND/LENGTH.

    `trials` is the number of questions of each kind, length and depth. Kinds whose facts have random positions have as many questions as
    the others.
    """

    metric = "score"

    def __init__(self, name: str, language: str, options: TaskOptions):
        self.name, self._language = name, language
        kinds, lengths = options.kinds or KINDS, options.lengths or _LENGTHS
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise PlamoError(f"--kinds {unknown[0]} is not allowed: it must be one of {', '.join(KINDS)}")
        self._chat = options.mode == "chat"
        if options.mode not in (None, "completion", "chat"):
            raise PlamoError(f"--mode {options.mode} is not allowed for {name}: it must be completion or chat")
        trials = 4 if options.trials is None else options.trials
        count = 5 if options.depths is None else options.depths
        if trials < 1 or count < 1 or min(lengths) < 1:
            raise PlamoError(
                f"trials={trials}, depths={count} and lengths={lengths} are not allowed: all must be at least 1"
            )
        self._count = token_counter(options.count_tokens)
        self._new_tokens = options.max_new_tokens
        self._places: dict[str, _Place] = {}
        self.items: list[Item] = []
        groups = enumerate(itertools.product(kinds, lengths))
        for (group, (kind, length)), trial, turn in itertools.product(groups, range(trials), range(count)):
            # Each group begins with another depth, because a limited evaluation takes the first items of each group.
            number = (turn + group) % count
            depth = depths(count)[number]
            item_id = f"{kind}/{length}/{number}/{trial}"
            # The same seed for all lengths: the questions of two lengths differ in the context alone.
            seed = [options.seed, zlib.crc32(f"{language}/{kind}".encode()), number, trial]
            self._places[item_id] = _Place(kind, length, depth, seed)
            case = self._case(item_id)
            self.items.append(Item(item_id, case.question, list(case.references), f"{kind}/{length}"))
        for length, kind in itertools.product(lengths, kinds):
            self._prompt(f"{kind}/{length}/0/0")  # Raises if the length is too short.
        self.provenance = {
            "definition": "NVIDIA/RULER, arXiv:2404.06654",
            "language": language,
            "kinds": list(kinds),
            "lengths": list(lengths),
            "depths": count,
            "trials": trials,
            "mode": "chat" if self._chat else "completion",
            "seed": options.seed,
            "tokens": "of the model" if options.count_tokens else "three characters each",
            "corpus": {name: file["sha256"] for name, file in manifest()["files"].items()},
            "licence": "wordings: Apache-2.0 (NVIDIA/RULER); contexts: generated, or the bundled corpus",
        }

    def _case(self, item_id: str) -> Case:
        place = self._places[item_id]
        kind, seed, length = place.kind, place.seed, place.length
        if kind == "vt":
            case = chains.chain_case(kind, self._language, seed, length, self._count)
        elif kind == "cwe":
            case = counts.common_case(kind, self._language, seed, length)
        elif kind == "fwe":
            case = counts.frequent_case(kind, self._language, seed, length)
        else:
            case = needles.needle_case(kind, self._language, seed, place.depth)
        # A tokenizer may need more tokens for the answer than RULER allows, which would make it impossible.
        needed = self._count(" ".join(f"{i}. {word}" for i, word in enumerate(case.references))) + 8
        return dataclasses.replace(case, new_tokens=self._new_tokens or max(case.new_tokens, needed))

    def _prompt(self, item_id: str) -> tuple[Case, str]:
        case = self._case(item_id)
        return case, fit(case, self._places[item_id].length - (_CHAT_TOKENS if self._chat else 0), self._count)

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the request of an item: greedy decoding. Return {"text": the answer}."""
        case, prompt = self._prompt(item.id)
        sampling, stop = SamplingConfig(temperature=0.0), StopConfig(max_new_tokens=case.new_tokens)
        if self._chat:
            message = {"role": "user", "content": prompt + case.prefix}
            [response] = yield ChatRequest(item.id, [message], sampling=sampling, stop=stop)
        else:
            [response] = yield CompletionRequest(prompt + case.prefix, id=item.id, sampling=sampling, stop=stop)
        return {"text": response.text}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return for each item the share of its reference strings that occur in the answer, in any case of letters."""
        scores = []
        for item, answer in zip(items, answers, strict=True):
            text = answer["text"].lower()
            found = [reference.lower() in text for reference in item.reference]
            scores.append({"score": sum(found) / len(found)})
        return scores

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the mean score, and the means of each length (score/LENGTH) and of each kind and length (score/KIND/LENGTH)."""
        metrics = mean_metrics(items, scores)
        lengths: dict[int, list[float]] = {}
        for item, row in zip(items, scores, strict=True):
            lengths.setdefault(self._places[item.id].length, []).append(row["score"])
        overall = {f"score/{length}": mean_metric(values) for length, values in sorted(lengths.items())}
        return {"score": metrics.pop("score"), **overall, **metrics} if metrics else {}

    def plots(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
        """Draw NAME.png, kinds by length, and NAME_depths.png, depths by length for each kind with one answer."""
        kinds: dict[tuple[str, str], list[float]] = {}
        by_depth: dict[str, dict[tuple[str, str], list[float]]] = {}
        for item, row in zip(items, scores, strict=True):
            place = self._places[item.id]
            column = f"{place.length:,}"
            kinds.setdefault((column, place.kind), []).append(row["score"])
            if place.kind in needles.KINDS and needles.KINDS[place.kind].one_answer:
                cell = by_depth.setdefault(place.kind, {})
                cell.setdefault((column, depth_label(place.depth)), []).append(row["score"])
        if not kinds:
            return []
        paths = [folder / f"{self.name}.png"]
        heat_maps(paths[0], [mean_panel("all kinds", kinds, "kind")], f"{self.name}: share of the reference strings")
        if by_depth:
            paths.append(folder / f"{self.name}_depths.png")
            panels = [mean_panel(kind, cells, "depth") for kind, cells in by_depth.items()]
            heat_maps(paths[1], panels, f"{self.name}: position of the needle in question")
        return paths
