"""The stages of data preparation as Apache Beam transforms, for clusters. `plamo2 data beam` builds pipelines from them.

Each transform calls the functions of the local commands, and gives the same documents in any order. An element is `(number, record)`: the
number of the document, which rises in the order of the input files, and its JSON object. Texts are read, cleaned, hashed, compared and
scored in parallel. Only the joining of pairs of similar documents (union-find) happens on one worker, with 40 bytes a pair.

Workers may process a bundle again after a failure. No stage depends on that, because all are deterministic and have no other effects.
"""

from __future__ import annotations

import array
import collections
import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList

from plamo2_jax.data.boilerplate import Boilerplate, Where, line_hashes
from plamo2_jax.data.clean import CleanConfig, CleanReport, clean_documents, normalize_text
from plamo2_jax.data.contamination import ContaminationIndex, EvaluationItem
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.duplicates import group_pairs, join_pairs
from plamo2_jax.data.join import JoinConfig, add_fields, addition, keys_of, only_addition
from plamo2_jax.data.minhash import DedupConfig, Signer, similarity
from plamo2_jax.data.quality import QualityModel

Reader = Callable[[Path, ReadReport], Iterator[Document]]
"""Returns the documents of a file. Workers call it, so it must be picklable."""
_FILE_BITS = 40  # Documents of a file are numbered with so many bits.
_SIGNATURES = 1 << 15  # Pairs that are compared at once.


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yield a path on this machine of a file that may be in a store such as gs://, which is downloaded."""
    if "://" not in path:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[1]
        # The readers decompress the file themselves.
        with (
            FileSystems.open(path, compression_type=beam.io.filesystem.CompressionTypes.UNCOMPRESSED) as source,
            copy.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        yield copy


class ReadFile(beam.DoFn):
    """Yields the numbered documents of `(file number, path)`.

    Args:
        read: Reader of a file.
        max_bad_rate: Largest share of records of a file that may be bad.
    """

    def __init__(self, read: Reader, max_bad_rate: float = 0.01):
        self.read, self.max_bad_rate = read, max_bad_rate

    def process(self, element):
        """Read one file."""
        number, path = element
        report = ReadReport(self.max_bad_rate, quiet=True)
        with local_copy(path) as local:
            for index, document in enumerate(self.read(local, report)):
                record = document.to_json()
                if str(local) != path and record["id"].startswith(str(local)):
                    # Documents without an id are named by their file.
                    record["id"] = path + record["id"].removeprefix(str(local))
                yield number << _FILE_BITS | index, record
        Metrics.counter("plamo2", "records").inc(report.records)
        for reason, count in report.reasons.items():
            Metrics.counter("plamo2", f"bad: {reason}").inc(count)


class Clean(beam.PTransform):
    """Removes boilerplate lines and rejects documents, as `plamo2 data clean --duplicates keep`.

    Args:
        config: Criteria.
        boilerplate_documents: Smallest number of different documents with a line that makes it boilerplate; 0: keep all lines.
        where: Where lines are removed.
    """

    def __init__(self, config: CleanConfig, boilerplate_documents: int = 20, where: Where = "edges"):
        super().__init__()
        self.config, self.boilerplate_documents, self.where = config, boilerplate_documents, where

    def expand(self, documents):
        """Clean the documents."""
        repeated = AsList(documents.pipeline | "no lines" >> beam.Create([], reshuffle=False))
        if self.boilerplate_documents:
            repeated = AsList(
                documents
                | "candidate lines" >> beam.Map(_candidate_lines, self.config.unicode_form, self.where)
                # Copies of a document count once.
                | "copies" >> beam.CombinePerKey(_any_of)
                | beam.Values()
                | "lines" >> beam.FlatMap(list)
                | beam.combiners.Count.PerElement()
                | "repeated lines" >> beam.Filter(_at_least, self.boilerplate_documents)
                | beam.Keys()
            )
        return documents | "clean" >> beam.ParDo(_CleanDocument(self.config, self.where), repeated)


def _candidate_lines(element, unicode_form: str, where: Where):
    text = normalize_text(element[1]["text"], unicode_form)
    copy = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return copy, tuple(key.to_bytes(8, "big") for key in sorted(line_hashes(text, where)))


def _any_of(values: Iterable[tuple]) -> tuple:
    return next((value for value in values if value), ())


def _at_least(element, count: int) -> bool:
    return element[1] >= count


class _CleanDocument(beam.DoFn):
    def __init__(self, config: CleanConfig, where: Where):
        self.config, self.where = config, where
        self.boilerplate = None

    def process(self, element, repeated):
        number, record = element
        if self.boilerplate is None:
            # The lines are the same in all bundles.
            self.boilerplate = Boilerplate(frozenset(int.from_bytes(key, "big") for key in repeated), self.where)
        report = CleanReport()
        for cleaned in clean_documents([record], self.config, report, self.boilerplate):
            yield number, cleaned
        for reason, count in report.rejected.items():
            Metrics.counter("plamo2", f"rejected: {reason}").inc(count)


class Deduplicate(beam.PTransform):
    """Keeps the first document of each group of duplicates, as `plamo2 data deduplicate`.

    About 5 kB a document are shuffled with the default settings, and its record once. A worker holds the signatures of all documents that
    share a band, 512 bytes each.
    """

    def __init__(self, config: DedupConfig):
        super().__init__()
        self.config = config

    def expand(self, documents):
        """Remove the duplicates."""
        removed = (
            documents
            | "hash" >> beam.ParDo(_Hash(self.config))
            | "bands" >> beam.GroupByKey()
            | "compare" >> beam.FlatMap(_pairs, self.config.threshold)
            | "all pairs" >> beam.GroupByKey()
            | "join pairs" >> beam.FlatMap(_removed)
        )
        records = documents | "encode" >> beam.MapTuple(_encode)
        return {"record": records, "removed": removed} | beam.CoGroupByKey() | "keep the first" >> beam.FlatMap(_kept)


def to_line(element) -> str:
    """Return the JSON line of a record."""
    return json.dumps(element[1], ensure_ascii=False, allow_nan=False)


def _encode(number: int, record: dict[str, Any]):
    return number, json.dumps(record, ensure_ascii=False).encode()


class _Hash(beam.DoFn):
    """Yields `(band and its hash, (number, signature))`, and for exact duplicates `(fingerprint, (number, b""))`."""

    def __init__(self, config: DedupConfig):
        self.config = config

    def setup(self):
        # Functions that numba compiled are not sent to workers.
        self.signer = Signer(self.config)

    def process(self, element):
        number, record = element
        digest, signature = self.signer(record["text"])
        yield digest, (number, b"")
        for band, key in enumerate(self.signer.band_hashes(signature)):
            yield bytes([band % 256, band // 256]) + key.tobytes(), (number, signature.tobytes())


def _pairs(element, threshold: float):
    """Yield `(0, (earlier, later, exact))` for similar documents of one group."""
    key, values = element
    found = sorted(values)
    exact = len(key) == 16
    numbers = np.array([number for number, _ in found], np.int64)
    if exact:
        places = np.stack([np.zeros(len(found) - 1, np.int64), np.arange(1, len(found))], axis=1)
    else:
        signatures = np.frombuffer(b"".join(signature for _, signature in found), np.uint32).reshape(len(found), -1)

        def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            parts = [slice(start, start + _SIGNATURES) for start in range(0, len(a), _SIGNATURES)]
            close = [similarity(signatures[a[part]], signatures[b[part]]) >= threshold for part in parts]
            return np.concatenate(close)

        places = group_pairs(np.zeros(len(found), np.uint64), np.arange(len(found)), alike)
    for first, second in numbers[places].tolist():
        yield 0, (first, second, exact)


def _removed(element):
    """Yield `(number, whether it is an exact duplicate)` for all documents that are not the first of their component."""
    pairs, exact = array.array("q"), array.array("q")
    for first, second, same in element[1]:
        pairs.extend((first, second))
        if same:
            exact.append(second)
    numbers, firsts = join_pairs(np.frombuffer(pairs, np.int64).reshape(-1, 2))
    same = np.isin(numbers, np.frombuffer(exact, np.int64)) if exact else np.zeros(len(numbers), bool)
    for place in np.flatnonzero(numbers != firsts).tolist():
        yield int(numbers[place]), bool(same[place])


def _kept(element):
    number, found = element
    for record in found["record"]:
        if not found["removed"]:
            yield number, json.loads(record)
            continue
        kind = "exact" if found["removed"][0] else "near"
        Metrics.counter("plamo2", f"duplicates: {kind}").inc()


class Decontaminate(beam.PTransform):
    """Removes documents that contain an evaluation item, as `plamo2 data prepare --against`.

    Args:
        items: Returns the evaluation items. One worker calls it, so it must be picklable, and its files must be readable there.
    """

    def __init__(self, items: Callable[[], Iterable[EvaluationItem]]):
        super().__init__()
        self.items = items

    def expand(self, documents):
        """Remove the contaminated documents."""
        items = (
            documents.pipeline
            | "one" >> beam.Create([None], reshuffle=False)
            | "evaluation items" >> beam.FlatMap(_plain_items, self.items)
        )
        return documents | "decontaminate" >> beam.ParDo(_Decontaminate(), AsList(items))


def _plain_items(_: None, items: Callable[[], Iterable[EvaluationItem]]):
    return [(item.id, item.texts) for item in items()]


class _Decontaminate(beam.DoFn):
    def __init__(self):
        self.index = None

    def process(self, element, items):
        if self.index is None:
            self.index = ContaminationIndex(EvaluationItem(name, tuple(texts)) for name, texts in sorted(items))
        matches = self.index.matches(element[1]["text"])
        if not matches:
            yield element
        else:
            Metrics.counter("plamo2", "contaminated").inc()
        for rule, count in collections.Counter(match.rule for match in matches).items():
            Metrics.counter("plamo2", f"matches: {rule}").inc(count)


class Score(beam.DoFn):
    """Adds the probability that a document is good, as `plamo2 data score`.

    Args:
        model: File of a quality model, which each worker reads.
        field: Field for the probability.
        at_least: Omit documents with a lower probability.
    """

    def __init__(self, model: str, field: str = "quality", at_least: float = 0.0):
        self.path, self.field, self.at_least = model, field, at_least

    def setup(self):
        """Load the model."""
        with local_copy(self.path) as path:
            self.model = QualityModel.load(path)

    def process(self, element):
        """Score one document."""
        number, record = element
        probability = self.model.probability(record["text"])
        if probability >= self.at_least:
            yield number, record | {self.field: round(probability, 6)}
        else:
            Metrics.counter("plamo2", "below the threshold").inc()


class Join(beam.PTransform):
    """Adds fields of other records with the same ids, as `data.join.join`.

    Args:
        others: The other records, `(number, record)`.
        config: What is added.
    """

    def __init__(self, others: beam.PCollection, config: JoinConfig):
        super().__init__()
        self.others, self.config = others, config

    def expand(self, documents):
        """Join the records."""
        asked = documents | "ids" >> beam.FlatMap(_asked, self.config)
        added = self.others | "fields" >> beam.Map(_added, self.config)
        found = {"asked": asked, "added": added} | "same id" >> beam.CoGroupByKey() | beam.FlatMap(_found)
        records = documents | "encode for join" >> beam.MapTuple(_encode)
        return (
            {"record": records, "found": found}
            | "same record" >> beam.CoGroupByKey()
            | "add fields" >> beam.FlatMap(_with_fields, self.config)
        )


def _asked(element, config: JoinConfig):
    return [(key, element[0]) for key in keys_of(element[1], config)]


def _added(element, config: JoinConfig):
    return str(element[1].get("id")), json.dumps(addition(element[1], config), ensure_ascii=False)


def _found(element):
    key, sides = element
    some = only_addition(key, map(json.loads, sides["added"]))
    Metrics.counter("plamo2", "ids asked for").inc(len(sides["asked"]))
    if some is None:
        Metrics.counter("plamo2", "ids missing").inc(len(sides["asked"]))
    else:
        line = json.dumps(some, ensure_ascii=False)
        yield from ((number, (key, line)) for number in sides["asked"])


def _with_fields(element, config: JoinConfig):
    number, sides = element
    found = {key: json.loads(some) for key, some in sides["found"]}
    for record in sides["record"]:
        yield number, add_fields(json.loads(record), found, config)
