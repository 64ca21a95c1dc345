"""`--log-format json` of the training verbs: every line of a run on standard error is one JSON object."""

import json

from plamo2_jax.cli.main import main
from plamo2_jax.log_format import emit, is_json, json_output
from support.runs import write_config


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_run_is_an_object(make_config, tmp_path, capsys):
    config = make_config("json_log", output=tmp_path / "runs")
    assert main(["pretrain", str(write_config(config, tmp_path)), "--log-format", "json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    found = events(captured.err)
    start = next(event for event in found if event["event"] == "start")
    assert start["parameters"] == config.model.parameter_count()
    assert [event["step"] for event in found if event["event"] == "step"] == [3, 4, 6, 8, 9, 12]
    assert all(event["metrics"]["loss"] > 0 and event["steps"] == 12 for event in found if event["event"] == "step")
    assert [event["step"] for event in found if event["event"] == "checkpoint"] == [4, 8, 12]
    (first, last) = (event for event in found if event["event"] == "evaluation")
    assert last["metrics"]["heldout/ja/bits_per_byte"] < first["metrics"]["heldout/ja/bits_per_byte"] + 1
    messages = [event["text"] for event in found if event["event"] == "message"]
    assert str(config.folder) in messages
    assert any("compiled in" in text for text in messages)
    assert found[-1]["event"] == "message"
    end = next(event for event in found if event["event"] == "end")
    assert (end["step"], end["signal"]) == (12, None)
    assert not is_json()


def test_an_error_is_an_object_too(make_config, tmp_path, capsys):
    config = make_config("json_error", tokenizer=tmp_path / "no.jsonl")
    assert main(["pretrain", str(write_config(config, tmp_path)), "--log-format", "json"]) == 2
    (event,) = events(capsys.readouterr().err)
    assert event["event"] == "error"
    assert "does not exist" in event["text"]


def test_printed_text_becomes_messages(capsys):
    with json_output():
        print("one\ntwo")
        print("10 %\r20 %\r")
        print("no end", end="")
        emit("step", loss=float("nan"), rows=[1.5, float("inf")])
    found = events(capsys.readouterr().err)
    assert [event.get("text") for event in found] == ["one", "two", "20 %", None, "no end"]
    assert (found[3]["loss"], found[3]["rows"]) == (None, [1.5, None])


def test_text_output_is_left_alone(capsys):
    with json_output(enabled=False):
        print("one")
        emit("step", loss=1.0)
    assert capsys.readouterr().out == "one\n"
