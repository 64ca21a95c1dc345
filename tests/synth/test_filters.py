"""Filters: planted bad records are refused by reason, and good ones are kept as they are."""

import json
import unicodedata

import numpy as np
import pytest

from plamo2_jax.data import corpus
from plamo2_jax.data.clean import CleanConfig
from plamo2_jax.data.contamination import ContaminationIndex, EvaluationItem
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.data.quality import QualityModel, features
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.filters import (
    FilterConfig,
    QualityConfig,
    filter_clean,
    filter_contaminated,
    filter_duplicates,
    filter_hojichar,
    filter_licenses,
    filter_quality,
    filter_records,
)
from plamo2_jax.synth.licenses import LicenseConfig
from plamo2_jax.synth.stage import StageReport, answers_of, text_of


def record(id, text=None, messages=None, **fields):
    """A record as `Record.to_json` gives it, with what filters read."""
    body = {"text": text} if messages is None else {"messages": messages}
    made = {
        "id": id,
        "language": "ja",
        "kind": "text" if messages is None else "messages",
        "sources": [{"id": "d1", "sha256": "0" * 64, "license": "CC-BY-SA-4.0"}],
        "recipe": {"name": "r", "version": "1", "prompt_sha256": "0" * 64},
        "generator": {"name": "m", "fingerprint": "f", "license": "Apache-2.0"},
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "seconds": 0.5, "cost": 0.25},
        "license": "unknown",
        "generation": 1,
        "scores": {},
    }
    return made | body | fields


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


GOOD = "東京は日本の首都であり、世界でも最大級の都市のひとつである。江戸時代には将軍の町であった。"


def keep(stage, records, config):
    report = StageReport()
    kept = list(stage(records, config, report))
    assert report.records_in == len(records)
    assert report.records_out == len(kept) == len(records) - report.refused.total()
    return [one["id"] for one in kept], dict(report.refused), kept


def test_licences():
    other = [{"id": "d", "sha256": "0", "license": "CC-BY-NC-4.0"}]
    records = [
        record("a", GOOD),
        record("b", GOOD, sources=[]),
        record("c", GOOD, sources=[*record("", GOOD)["sources"], *other]),
        record("d", GOOD, generator={"name": "m", "fingerprint": "f", "license": "unknown"}),
        record("e", GOOD, sources=[{"id": "d"}]),
    ]
    ids, refused, kept = keep(filter_licenses, records, LicenseConfig())
    assert ids == ["a", "b"]
    assert [one["license"] for one in kept] == ["CC-BY-SA-4.0", "Apache-2.0"]
    assert refused == {"CC-BY-NC-4.0 with CC-BY-SA-4.0": 1, "unknown": 2}


def test_clean_criteria():
    records = [
        record("a", f"{GOOD}\r\n\r\n\r\n\r\n終わり。 "),
        record("b", "短い。"),
        record("c", "The capital of Japan is the city of Tokyo, and it is large."),
        record("d", "同じ行。同じ行。\n" * 9),
        record("e", messages=chat("日本の首都はどこですか。", GOOD)),
        record("f", messages=chat("", "")),
        record("g", "The capital of Japan is the city of Tokyo, and it is large.", language="en"),
    ]
    ids, refused, kept = keep(filter_clean, records, CleanConfig(min_chars=20))
    assert ids == ["a", "e", "g"]
    assert refused == {"short": 1, "language": 1, "repeated lines": 1, "empty": 1}
    assert kept[0]["text"] == f"{GOOD}\n\n終わり。"
    assert kept[1] == records[4]


def test_the_quality_model_reads_answers(tmp_path):
    weights = np.zeros(1 << 20, np.float32)
    weights[features("良" * 40)] = 8.0
    QualityModel(weights, -0.5, 1.0, 0.0, {}).save(tmp_path / "model.safetensors")
    records = [
        record("a", "良" * 40),
        record("b", "悪" * 40),
        record("c", messages=chat("良" * 40, "悪" * 40)),
        record("d", messages=chat("悪" * 40, "良" * 40), scores={"judge": 4.0}),
    ]
    ids, refused, kept = keep(filter_quality, records, QualityConfig(tmp_path / "model.safetensors"))
    assert ids == ["a", "d"]
    assert refused == {"quality": 2}
    assert kept[1]["scores"].keys() == {"judge", "quality"}
    assert kept[1]["scores"]["quality"] > 0.5


ITEM = (
    "次の文章を読み、江戸幕府が開かれた年と、その初代将軍の名前を答えなさい。ただし、年は西暦で、名前は漢字で書くこと。"
)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: " ".join(text),
        lambda text: text.replace("、", "，").replace("。", "．"),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.swapcase(),
    ],
)
def test_planted_contamination_is_found(change):
    english = "Which of the following planets in the Solar System has the largest number of moons, according to the IAU in 2023?"
    index = ContaminationIndex([EvaluationItem("q1", (ITEM,)), EvaluationItem("q2", (english,))])
    records = [
        record("a", GOOD),
        record("b", f"{GOOD}\n{change(ITEM)}\n{GOOD}"),
        record("c", messages=chat(change(english), "It is Saturn.")),
    ]
    ids, refused, _ = keep(filter_contaminated, records, index)
    assert ids == ["a"]
    assert sum(refused.values()) == 2


def test_duplicates_of_sources_and_of_each_other():
    pages = [d["text"][:600] for d in corpus.documents("ja", "train") if len(d["text"]) > 600][:4]
    records = [
        record("a", pages[0]),
        record("b", pages[1]),
        record("c", f"{pages[1][:300]}　{pages[1][300:]}"),
        record("d", pages[2].replace("。", "。\n")[:595]),
        record("e", messages=chat(pages[3], "はい。")),
        record("f", messages=chat(pages[3], "はい。")),
    ]
    report = StageReport()
    kept = list(filter_duplicates(records, DedupConfig(), report, texts=[pages[2], pages[2]]))
    assert [one["id"] for one in kept] == ["a", "b", "e"]
    assert kept == [records[0], records[1], records[4]]
    assert (report.records_in, report.records_out, dict(report.refused)) == (6, 3, {"duplicate": 3})


def test_filters_run_in_order_with_their_own_counts():
    records = [record("a", GOOD), record("b", "短い。"), record("c", GOOD, sources=[{"id": "d"}])]
    reports = {}
    kept = list(filter_records(iter(records), FilterConfig(), reports))
    assert [one["id"] for one in kept] == ["a"]
    assert {name: report.to_json() for name, report in reports.items()} == {
        "licenses": {"records": {"in": 3, "out": 2}, "refused": {"unknown": 1}},
        "clean": {"records": {"in": 2, "out": 1}, "refused": {"short": 1}},
    }
    assert reports["clean"].summary() == "kept 1 of 2 records; refused: short 1"
    json.dumps(kept)


def test_hojichar_is_an_extra():
    try:
        import hojichar  # noqa: F401
    except ImportError:
        with pytest.raises(
            PlamoError, match=r"needs the package hojichar: install this project with the extra hojichar"
        ):
            list(filter_hojichar([record("a", GOOD)], {"DiscardAdultContentJa": {}}, StageReport()))


def test_texts_of_records():
    assert text_of(record("a", messages=chat("問", "答"))) == "問\n答"
    assert answers_of(record("a", messages=chat("問", "答"))) == "答"
    assert answers_of(record("a", "文")) == text_of(record("a", "文")) == "文"
