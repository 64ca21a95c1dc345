"""Data cards: the numbers are those of the records, the front matter is YAML, and texts cannot break the Markdown."""

import json

import pytest
import yaml

from plamo2_jax.synth.card import CardStatistics, card_content, write_card
from plamo2_jax.synth.stage import StageReport


def record(number, **fields):
    return {
        "id": f"r{number}",
        "language": "ja",
        "kind": "text",
        "text": f"{number}番目の文章。\n| 表 |",
        "sources": [],
        "recipe": {"name": "faq|ja", "version": "2", "prompt_sha256": "0"},
        "generator": {"name": "demo", "fingerprint": "f", "license": "Apache-2.0"},
        "usage": {"prompt_tokens": 10, "completion_tokens": 20, "seconds": 0.5, "cost": 0.001},
        "license": "CC-BY-SA-4.0",
        "generation": 1,
        **fields,
    }


@pytest.fixture
def content():
    statistics = CardStatistics()
    for number in range(10):
        statistics.add(record(number))
    messages = [{"role": "user", "content": "問"}, {"role": "assistant", "content": "答"}]
    statistics.add(record(10, kind="messages", text=None, messages=messages, language="en", license="MIT"))
    report = StageReport(15, 11)
    report.refused.update({"copy: longest copy": 3, "language: en": 1})
    return card_content("出典|つき", statistics, {"verify": report}, currency="USD")


def test_the_numbers_are_those_of_the_records(content, tmp_path):
    assert content["records"] == 11
    assert content["counts"]["recipe"] == {"faq|ja 2": 11}
    assert content["counts"]["license"] == {"CC-BY-SA-4.0": 10, "MIT": 1}
    assert content["usage"] == {
        "completion_tokens": 220,
        "cost": 0.011,
        "prompt_tokens": 110,
        "seconds": 5.5,
        "currency": "USD",
    }
    assert content["stages"]["verify"]["refused"] == {"copy: longest copy": 3, "language: en": 1}
    assert content["diversity"]["faq|ja"]["records"] == 11
    assert len(content["examples"]["faq|ja"]) == 2
    write_card(tmp_path, content)
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == content


def test_the_front_matter_is_read_by_the_hub(content, tmp_path):
    write_card(tmp_path, content)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "pretty_name": "出典|つき",
        "language": ["en", "ja"],
        "license": "other",
        "license_name": "CC-BY-SA-4.0, MIT",
        "size_categories": ["n<1K"],
        "tags": ["synthetic"],
        "configs": [
            {"config_name": "text", "data_files": "text_*.jsonl"},
            {"config_name": "messages", "data_files": "messages_*.jsonl"},
        ],
    }
    assert "| verify | copy: longest copy | 3 |" in body
    assert "| faq\\|ja 2 | 11 |" in body
    assert "\n> | 表 |" in body


def test_one_licence_has_the_hubs_name():
    statistics = CardStatistics()
    statistics.add(record(0))
    assert "license: cc-by-sa-4.0\n" in _front(card_content("x", statistics, {}))
    statistics.add(record(1, license="unknown"))
    assert "license: other\n" in _front(card_content("x", statistics, {}))


def _front(content):
    from plamo2_jax.synth.card import markdown

    return markdown(content).split("---\n")[1]


def test_the_card_does_not_depend_on_the_order():
    contents = []
    for order in (range(30), reversed(range(30))):
        statistics = CardStatistics()
        for number in order:
            statistics.add(record(number))
        contents.append(card_content("x", statistics, {}))
    assert contents[0] == contents[1]
