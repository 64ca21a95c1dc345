"""Scoring of stored answers without a model: JSON lines in, JSON lines out."""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.pfgen.benchmark import Benchmark, QuestionFile
from plamo2_jax.eval.pfgen.leaderboard import LeaderboardRow, leaderboard_row
from plamo2_jax.eval.pfgen.scorer import Scores, score_questions
from plamo2_jax.json_input import parse_json
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import write_whole

_LONGEST_LINE = 16 << 20
_EXAMPLE = '{"question": "Q01", "answer": "..."}'


@dataclasses.dataclass(frozen=True)
class StoredScores:
    """Means over all answers, and the leaderboard's numbers."""

    n: int
    means: Scores
    row: LeaderboardRow

    def __str__(self) -> str:
        means = ", ".join(f"{name} {value:.4f}" for name, value in dataclasses.asdict(self.means).items())
        return f"pfgen: {self.n:,} answers\nmeans: {means}\nleaderboard: {self.row}"


def score_file(folder: Path, answers: Path, output: Path, *, processes: int | None = None) -> StoredScores:
    """Score a file of answers and write one JSON line for each, in the same order, with `question` and the scores.

    Args:
        folder: checkout of pfgen-bench.
        answers: JSON lines with `question`, the name or the text of a question, and `answer`. The file may be compressed (.xz), as the
            result files of the benchmark.
        output: JSON lines file to write.
        processes: as for `score_questions`.

    Raises:
        PlamoError: the folder or a file is missing or damaged, or a line is malformed. Nothing was written.
    """
    if output.is_dir() or (output.exists() and output.samefile(answers)):
        raise PlamoError(f"--output {output} is not allowed: it must be another file for the scores")
    benchmark = Benchmark(folder)
    names, places, texts = _read(benchmark, answers)
    files = sorted(places, key=lambda file: file.id)
    scores: dict[int, Scores] = {}
    averages = []
    with tqdm(total=len(texts), desc="pfgen", unit="answers") as bar:
        results = score_questions(files, [[texts[i] for i in places[file]] for file in files], processes=processes)
        for file, result in zip(files, results, strict=True):
            scores |= zip(places[file], result, strict=True)
            averages.append([one.average for one in result])
            bar.update(len(result))
    lines = [{"question": name, **dataclasses.asdict(scores[i])} for i, name in enumerate(names)]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    means = {
        name: sum(getattr(one, name) for one in scores.values()) / len(scores)
        for name in (field.name for field in dataclasses.fields(Scores))
    }
    return StoredScores(len(names), Scores(**means), leaderboard_row(averages, [len(text) for text in texts]))


def _read(benchmark: Benchmark, path: Path) -> tuple[list[str], dict[QuestionFile, list[int]], list[str]]:
    """Return the questions as they are in the file, the places of the answers to each question, and the answers."""
    names: list[str] = []
    places: dict[QuestionFile, list[int]] = defaultdict(list)
    texts: list[str] = []
    files: dict[str, QuestionFile | None] = {}
    opened: Callable[[Path, str], IO[bytes]] = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
                where = f"{path}, line {number}"
                if len(line) > _LONGEST_LINE:
                    raise PlamoError(f"{where} is too long: at most {_LONGEST_LINE >> 20} MiB are allowed")
                if not line.strip():
                    continue
                value = parse_json(line, where)
                if not isinstance(value, dict):
                    raise PlamoError(f"{where} is not a JSON object: each line must be like {_EXAMPLE}")
                for key in ("question", "answer"):
                    if not isinstance(value.get(key), str):
                        raise PlamoError(f"{where} has no text `{key}`: each line must be like {_EXAMPLE}")
                name = value["question"]
                if name not in files:
                    files[name] = benchmark.find(name)
                if (found := files[name]) is None:
                    raise PlamoError(
                        f"{where}: the question {name[:80]!r} is unknown: it must be the name or the text of a file in "
                        f"{benchmark.folder / 'data'}, such as Q01"
                    )
                places[found].append(len(names))
                names.append(name)
                texts.append(value["answer"])
    except (OSError, EOFError, lzma.LZMAError) as error:
        problem = getattr(error, "strerror", None) or error
        raise PlamoError(f"{path} cannot be read: {problem}") from error
    if not names:
        raise PlamoError(f"{path} has no answers: it must have lines like {_EXAMPLE}")
    return names, dict(places), texts
