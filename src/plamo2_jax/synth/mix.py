"""Mix synthetic records with texts that people wrote, and write JSON lines for `plamo2 data prepare` and `plamo2 sft`.

OUTPUT/text/00000.jsonl       records with a text, for `plamo2 data prepare --input OUTPUT/text`
OUTPUT/messages/00000.jsonl   records with messages, for `plamo2 sft`
OUTPUT/mix.json               counts, shares and settings

Texts that people wrote are all kept. The synthetic records are sampled: recipes get their shares, and the share of synthetic tokens stays
below its ceiling. A hash of id and seed decides which records are sampled, so the result depends on the inputs and the settings only.
The inputs are read twice; memory is about 20 bytes for each record.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.readers import read_records
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import new_folder
from plamo2_jax.synth.stage import StageReport, text_of
from plamo2_jax.validation import require

REPORT = "mix.json"
KINDS = ("text", "messages")


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """A mixture of synthetic records and texts that people wrote."""

    records: tuple[str, ...]
    """Files, folders or patterns of synthetic records."""
    documents: tuple[str, ...] = ()
    """Texts that people wrote: inputs of `plamo2 data prepare`, among them the sources of the records."""
    conversations: tuple[str, ...] = ()
    """Files, folders or patterns of conversations that people wrote, with the field messages."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Relative shares of synthetic tokens by name of the recipe. Recipes without a share are omitted. Empty: all records."""
    max_synthetic_share: float = 0.5
    """Largest share of synthetic tokens among the texts."""
    max_synthetic_share_messages: float = 1.0
    """Largest share of synthetic tokens among the conversations."""
    max_generation: int = 1
    """Largest generation: 1 + the largest generation of the records that a record was made from."""
    keep_originals: bool = True
    """Refuse synthetic texts whose sources are not among `documents`, so that every rephrasing has its original beside it."""
    seed: int = 0
    """Random seed of the sampling."""
    shard_records: int = 100_000
    """Largest number of records in a file."""

    def __post_init__(self) -> None:
        require(self, "records", bool(self.records), "at least one file, folder or pattern")
        positive = all(0 < share < math.inf for share in self.shares.values())
        require(self, "shares", positive, "positive and finite numbers by recipe")
        for name in ("max_synthetic_share", "max_synthetic_share_messages"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "max_generation", self.max_generation >= 1, "at least 1")
        require(self, "shard_records", self.shard_records >= 1, "at least 1")


def mix(config: MixConfig, output: Path, count_tokens: Callable[[str], int] | None = None) -> dict[str, Any]:
    """Write a mixture, and return the contents of mix.json.

    Args:
        config: inputs and shares.
        output: folder to create.
        count_tokens: returns the number of tokens of a text; None: characters are counted.

    Raises:
        PlamoError: an input is missing or damaged, a recipe of `shares` has no record, a ceiling below 1 has no texts that people wrote,
            or the folder exists.
    """
    count = count_tokens or len
    reading = ReadReport()
    people: collections.Counter[str] = collections.Counter()
    originals = array.array("Q")
    for kind, record in _of_people(config, reading):
        people[kind] += count(text_of(record))
        if kind == "text":
            originals.append(_hash(str(record["id"])))
    report = StageReport()
    table = _Table(config.seed)
    known = np.unique(np.frombuffer(originals, np.uint64))
    for record in _synthetic(config, ReadReport()):
        report.records_in += 1
        reason = _refusal(record, config, known)
        if reason is not None:
            report.refused[reason] += 1
        table.add(record, count(text_of(record)) if reason is None else 0, reason is None)
    selected, synthetic = table.select(config, people)
    report.records_out = int(np.count_nonzero(selected))
    if left := report.records_in - report.records_out - report.refused.total():
        report.refused["share"] = left
    with new_folder(output) as partial:
        writer = _Writer(partial, config.shard_records)
        with writer:
            for kind, record in _of_people(config, ReadReport()):
                writer.write(kind, {**record, "synthetic": False})
            for keep, record in zip(selected, _synthetic(config, ReadReport()), strict=True):
                if keep:
                    writer.write(_kind(record), {**record, "synthetic": True})
        content = {
            "unit": "characters" if count_tokens is None else "tokens",
            "people": {kind: people[kind] for kind in KINDS},
            "synthetic": synthetic,
            "synthetic_share": {kind: _share(sum(synthetic[kind].values()), people[kind]) for kind in KINDS},
            "files": writer.files,
            "selection": report.to_json(),
            "reading": reading.to_json(),
            "config": dataclasses.asdict(config),
        }
        (partial / REPORT).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return content


class _Table:
    """Rank, tokens, recipe and kind of each record: 18 bytes a record."""

    def __init__(self, seed: int):
        self._seed = seed
        self._names: dict[str, int] = {}
        self._rows = _Growing(
            np.dtype([("rank", "u8"), ("tokens", "u4"), ("recipe", "u4"), ("kind", "u1"), ("ok", "?")])
        )

    def add(self, record: Mapping[str, Any], tokens: int, ok: bool) -> None:
        name = _recipe(record)
        recipe = self._names.setdefault(name, len(self._names))
        self._rows.append((_hash(f"{self._seed}/{record.get('id')}"), tokens, recipe, KINDS.index(_kind(record)), ok))

    def select(self, config: MixConfig, people: Mapping[str, int]) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
        """Return whether each record is written [n] bool, and the tokens of the written ones by kind and recipe."""
        rows = self._rows.array()
        selected = np.zeros(len(rows), bool)
        written: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        absent = sorted(set(config.shares) - set(self._names))
        if absent:
            raise PlamoError(
                f"shares.{absent[0]}: no record has this recipe: the recipes are {', '.join(sorted(self._names)) or 'none'}"
            )
        for number, kind in enumerate(KINDS):
            recipes = {
                name: np.flatnonzero((rows["kind"] == number) & rows["ok"] & (rows["recipe"] == recipe))
                for name, recipe in sorted(self._names.items())
                if not config.shares or name in config.shares
            }
            recipes = {name: places for name, places in recipes.items() if places.size}
            have = {name: int(rows["tokens"][places].sum(dtype=np.int64)) for name, places in recipes.items()}
            budgets = _budgets(have, config, kind, people[kind])
            for name, places in recipes.items():
                # Records with equal ranks keep their order.
                order = places[np.argsort(rows["rank"][places], kind="stable")]
                fits = np.cumsum(rows["tokens"][order], dtype=np.int64) <= budgets[name]
                selected[order[fits]] = True
                written[kind][name] = int(rows["tokens"][order[fits]].sum(dtype=np.int64))
        return selected, written


def _budgets(have: Mapping[str, int], config: MixConfig, kind: str, people: int) -> dict[str, int]:
    """Return the largest number of tokens of each recipe."""
    if not have:
        return {}
    total = sum(have.values())
    wanted = {name: float(tokens) for name, tokens in have.items()}
    if config.shares:
        weights = {name: config.shares[name] for name in have}
        # The recipe that has the least text for its share decides the size.
        total = min(have[name] * sum(weights.values()) / weights[name] for name in have)
        wanted = {name: total * weights[name] / sum(weights.values()) for name in have}
    field = "max_synthetic_share" if kind == "text" else "max_synthetic_share_messages"
    ceiling = getattr(config, field)
    if ceiling < 1:
        if not people and ceiling > 0:
            given = "documents" if kind == "text" else "conversations"
            raise PlamoError(
                f"{field}={ceiling:g} is not possible, because there is no {kind} written by people. Add some "
                f"as {given}, or set {field} to 1"
            )
        scale = min(1.0, people * ceiling / (1 - ceiling) / total) if total else 1.0
        wanted = {name: tokens * scale for name, tokens in wanted.items()}
    # Rounded down after adding what float64 may have lost of a whole number.
    return {name: math.floor(tokens * (1 + 1e-12)) for name, tokens in wanted.items()}


def _refusal(record: Mapping[str, Any], config: MixConfig, known: np.ndarray) -> str | None:
    """Return why a record may not be written, or None."""
    if record.get("generation", 1) > config.max_generation:
        return "generation"
    if config.keep_originals and _kind(record) == "text":
        for source in record.get("sources") or ():
            wanted = np.uint64(_hash(str(source.get("id"))))
            place = np.searchsorted(known, wanted)
            if place == len(known) or known[place] != wanted:
                return "original not in documents"
    if config.shares and _recipe(record) not in config.shares:
        return "recipe without a share"
    return None


def _of_people(config: MixConfig, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    if config.documents:
        for document in read_documents(config.documents, report=report):
            yield "text", document.to_json()
    for spec in config.conversations:
        for place, fields in _records(spec, report):
            if fields.get("messages"):
                yield "messages", {"id": place, **fields}


def _synthetic(config: MixConfig, report: ReadReport) -> Iterator[dict[str, Any]]:
    for spec in config.records:
        for place, fields in _records(spec, report):
            if fields.get("id") is None or _kind(fields) is None:
                raise PlamoError(f"{place}: a synthetic record needs an id, and a text or messages")
            yield fields


def _records(spec: str, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, fields in read_records(spec, report):
        report.records += 1
        if (fields.get("text") is None) == (fields.get("messages") is None):
            report.count_bad(place, UnreadableRecord("no text", "a record needs either a text or messages"))
            continue
        yield place, fields
    report.judge()


def _kind(record: Mapping[str, Any]) -> str:
    return "text" if record.get("text") is not None else "messages"


def _recipe(record: Mapping[str, Any]) -> str:
    return str((record.get("recipe") or {}).get("name", ""))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _share(synthetic: int, people: int) -> float:
    total = synthetic + people
    return round(synthetic / total, 6) if total else 0.0


class _Growing:
    """A structured array that grows by rows."""

    def __init__(self, dtype: np.dtype):
        self._dtype = dtype
        self._full: list[np.ndarray] = []
        self._rows: list[tuple[Any, ...]] = []

    def append(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == 1 << 16:
            self._pack()

    def array(self) -> np.ndarray:
        self._pack()
        return np.concatenate(self._full)

    def _pack(self) -> None:
        self._full.append(np.array(self._rows, self._dtype))
        self._rows = []


class _Writer(contextlib.ExitStack):
    """Writes records to numbered files, in a folder for each kind."""

    def __init__(self, folder: Path, shard_records: int):
        super().__init__()
        self._folder, self._shard_records = folder, shard_records
        self._open: dict[str, IO[bytes]] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self.files: dict[str, int] = {}
        """Number of records by name of the file."""

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        number, place = divmod(self._counts[kind], self._shard_records)
        self._counts[kind] += 1
        name = f"{kind}/{number:05d}.jsonl"
        if place == 0:
            if kind in self._open:
                self._open[kind].close()
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            self._open[kind] = self.enter_context(path.open("wb"))
        self._open[kind].write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.files[name] = self.files.get(name, 0) + 1


def check_generation(parents: Iterable[int], max_generation: int = 1) -> int:
    """Return the generation of a record: 1 + the largest generation of its sources, which is 0 for texts that people wrote.

    Raises:
        PlamoError: the generation is above the ceiling.
    """
    generation = 1 + max(parents, default=0)
    if generation > max_generation:
        raise PlamoError(
            f"a record of generation {generation} is not allowed: it must be at most "
            f"max_generation={max_generation}. Make records from texts written by people, or raise "
            "max_generation"
        )
    return generation
