"""Filters of records: functions from an iterator of records (JSON objects) to an iterator of the kept ones, with counts by reason.

The order of a run is: licences, clean criteria, HojiChar, quality model, decontamination, deduplication. All but the last hold one record
in memory and depend on one record at a time, so that they can run in any number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.data.clean import LANGUAGES, CleanConfig, guess_language, normalize_text, rejection
from plamo2_jax.data.contamination import ContaminationIndex
from plamo2_jax.data.dedup import deduplicate
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.data.quality import QualityModel
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.licenses import LicenseConfig, LicenseError, compose
from plamo2_jax.synth.stage import StageReport, answers_of, text_of, with_texts
from plamo2_jax.validation import require, shown

Records = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Filter by a quality model."""

    model: Path
    """File that `plamo2 data quality` wrote."""
    least: float = 0.5
    """Smallest allowed probability that a text is good."""

    def __post_init__(self) -> None:
        require(self, "least", 0 <= self.least <= 1, "between 0 and 1")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Filters that depend on one record at a time."""

    licenses: LicenseConfig = dataclasses.field(default_factory=LicenseConfig)
    """Licences that are written."""
    clean: CleanConfig | None = dataclasses.field(default_factory=lambda: CleanConfig(min_chars=20))
    """Criteria of text; None: no filter."""
    hojichar: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Parameters by name of HojiChar document filters, such as {"DiscardAdultContentJa": {}}, in order."""
    quality: QualityConfig | None = None
    """Filter by a quality model; None: no filter."""


def filter_records(
    records: Records, config: FilterConfig, reports: dict[str, StageReport] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the records that pass all filters of a config.

    Args:
        records: records as JSON objects.
        config: the filters.
        reports: counts by name of the filter, updated while the iterator runs.
    """
    reports = {} if reports is None else reports
    stages = [("licenses", filter_licenses, config.licenses)]
    if config.clean is not None:
        stages.append(("clean", filter_clean, config.clean))
    if config.hojichar:
        stages.append(("hojichar", filter_hojichar, config.hojichar))
    if config.quality is not None:
        stages.append(("quality", filter_quality, config.quality))
    for name, stage, settings in stages:
        records = stage(records, settings, reports.setdefault(name, StageReport()))
    yield from records  # type: ignore[misc]


def filter_licenses(records: Records, config: LicenseConfig, report: StageReport) -> Iterator[dict[str, Any]]:
    """Yield the records whose licences compose, with the composed licence. Refuse the others by the reason of `LicenseError`.

    The composed licences are the licences of the record's sources and of its generator.
    """

    @functools.lru_cache(4096)  # Most records of a run have the same licences.
    def composed(names: frozenset[str]) -> str | LicenseError:
        try:
            return compose(names, config).license
        except LicenseError as error:
            return error

    for record in records:
        report.records_in += 1
        names = {source.get("license") or "unknown" for source in record.get("sources") or ()}
        names.add((record.get("generator") or {}).get("license") or "unknown")
        license = composed(frozenset(names))
        if isinstance(license, LicenseError):
            report.refused[license.reason] += 1
            continue
        report.records_out += 1
        yield {**record, "license": license}


def filter_clean(records: Records, config: CleanConfig, report: StageReport) -> Iterator[dict[str, Any]]:
    """Yield the records that meet the criteria of `data.clean`, with normalized texts. The messages of a record are judged together.

    The declared language is the language of the whole text, of the answers, or of the field `answer`, because a translation has both
    languages.
    """
    for record in records:
        report.records_in += 1
        record = with_texts(record, lambda text: normalize_text(text, config.unicode_form))
        reason = rejection(text_of(record).strip(), config)
        if reason is None and record.get("language") in LANGUAGES:
            texts = (text_of(record), answers_of(record), str((record.get("fields") or {}).get("answer", "")))
            if record["language"] not in map(guess_language, texts):
                reason = "language"
        if reason is not None:
            report.refused[reason] += 1
            continue
        report.records_out += 1
        yield record


def filter_quality(records: Records, config: QualityConfig, report: StageReport) -> Iterator[dict[str, Any]]:
    """Yield the records that a quality model accepts, with the probability as the score `quality`. For conversations, it reads only the
    answers.
    """
    model = QualityModel.load(config.model)
    for record in records:
        report.records_in += 1
        probability = round(model.probability(answers_of(record)), 6)
        if probability < config.least:
            report.refused["quality"] += 1
            continue
        report.records_out += 1
        yield {**record, "scores": {**(record.get("scores") or {}), "quality": probability}}


def filter_hojichar(
    records: Records, config: Mapping[str, Mapping[str, Any]], report: StageReport
) -> Iterator[dict[str, Any]]:
    """Yield the records that HojiChar's document filters keep, with the texts that they return. Each message is a document.

    Args:
        records: records as JSON objects.
        config: parameters by name of the filter.
        report: counts by name of the filter that refused a record.

    Raises:
        PlamoError: HojiChar is not installed, or a filter or a parameter is unknown.
    """
    filters = _hojichar_filters(config)
    import hojichar

    class Rejected(Exception):
        pass

    def change(text: str) -> str:
        document = hojichar.Document(text)
        for name, one in filters.items():
            document = one.apply(document)
            if document.is_rejected:
                raise Rejected(name)
        return document.text

    for record in records:
        report.records_in += 1
        try:
            record = with_texts(record, change)
        except Rejected as rejected:
            report.refused[str(rejected)] += 1
            continue
        report.records_out += 1
        yield record


def filter_contaminated(records: Records, index: ContaminationIndex, report: StageReport) -> Iterator[dict[str, Any]]:
    """Yield the records that contain no evaluation item, by the rules of `data.contamination`. Refuse the others by rule."""
    for record in records:
        report.records_in += 1
        matches = index.matches(text_of(record))
        if matches:
            report.refused[matches[0].rule] += 1
            continue
        report.records_out += 1
        yield dict(record)


def filter_duplicates(
    records: Records,
    config: DedupConfig,
    report: StageReport,
    *,
    texts: Iterable[str] = (),
    folder: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records that are not exact or near-duplicates of a given text or of an earlier record, after reading all of them.

    Args:
        records: records as JSON objects.
        config: settings of deduplication.
        report: counts; refused records are counted at the end.
        texts: texts that no record may repeat, such as the sources of the records.
        folder: folder for temporary files; None: the system's.
    """

    def documents() -> Iterator[dict[str, Any]]:
        for text in texts:
            yield {"text": text}
        for record in records:
            report.records_in += 1
            yield {"text": text_of(record), "record": record}

    for document in deduplicate(documents(), config, progress=False, folder=folder):
        if "record" in document:
            report.records_out += 1
            yield document["record"]
    if removed := report.records_in - report.records_out:
        report.refused["duplicate"] = removed


def _hojichar_filters(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    try:
        from hojichar import Compose, Filter, document_filters
    except ImportError:
        raise PlamoError(
            "the filter hojichar needs the package hojichar: install this project with the extra hojichar, as in "
            "pip install '.[hojichar]', or remove the filter"
        ) from None
    known = {name for name, kind in vars(document_filters).items() if _is_filter(kind, Filter)}
    found = {}
    for name, parameters in config.items():
        if name not in known:
            raise PlamoError(f"hojichar has no document filter {shown(name)}: it has {', '.join(sorted(known))}")
        try:
            found[name] = Compose([getattr(document_filters, name)(**(parameters or {}))])
        except (TypeError, ValueError, OSError) as error:
            raise PlamoError(f"hojichar.{name}: {error}: check its parameters") from None
    return found


def _is_filter(kind: Any, base: type) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, base)
        and kind is not base
        and not kind.__name__.startswith("Example")
    )
