"""Synthetic data: chrF against sacrebleu, and the filters of HojiChar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.chrf import chrf
from plamo2_jax.synth.filters import filter_hojichar
from plamo2_jax.synth.stage import StageReport

pytestmark = pytest.mark.peer


@given(st.text("ab 猫。\n", max_size=30), st.text("ab 猫。\n", max_size=30))
def test_chrf_is_that_of_sacrebleu(text, reference):
    metrics = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu is not installed")
    expected = metrics.CHRF().sentence_score(text, [reference]).score
    assert chrf(text, reference) == pytest.approx(expected, rel=1e-12)


def test_hojichar_filters_and_changes_texts():
    pytest.importorskip("hojichar", reason="hojichar is not installed")
    records = [
        {"id": "a", "text": "東京は日本の首都であり、世界でも最大級の都市である。"},
        {"id": "b", "text": "The capital of Japan is Tokyo."},
        {
            "id": "c",
            "messages": [
                {"role": "user", "content": "電話番号は？"},
                {"role": "assistant", "content": "06-1234-5678です。ひらがなも書きます。"},
            ],
        },
    ]
    report = StageReport()
    kept = list(filter_hojichar(records, {"AcceptJapanese": {}, "MaskPersonalInformation": {}}, report))
    assert [one["id"] for one in kept] == ["a", "c"]
    assert report.to_json() == {"records": {"in": 3, "out": 2}, "refused": {"AcceptJapanese": 1}}
    assert kept[0] == records[0]
    assert kept[1]["messages"][1]["content"].startswith("06-1234-XXXX")
    assert "5678" in records[2]["messages"][1]["content"]


def test_wrong_filters_of_hojichar_are_refused():
    pytest.importorskip("hojichar", reason="hojichar is not installed")
    with pytest.raises(PlamoError, match="hojichar has no document filter 'Nosuch': it has AcceptJapanese"):
        list(filter_hojichar([], {"Nosuch": {}}, StageReport()))
    with pytest.raises(PlamoError, match=r"hojichar\.NgWordsFilterJa: .*check its parameters"):
        list(filter_hojichar([], {"NgWordsFilterJa": {"dict_path": "nosuch"}}, StageReport()))
