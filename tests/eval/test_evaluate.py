"""`plamo2 evaluate --tasks`: a model in this process, a server, a kill, the page, and comparisons."""

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.data.documents import Document
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.eval.run import ANSWERS, JOURNAL, RESULT, TIMES
from plamo2_jax.eval.tasks import TASKS, options_of
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support import chromium
from support.endpoint_server import Server

SHAPE = preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, mamba_num_heads=2, vocab_size=864)
CHAT = """
name: chats
kind: generate
mode: chat
data: rows.jsonl
prompt: "{{ q }}"
target: "{{ q }}への"
metric: contains
max_new_tokens: 8
"""
LOCAL = """
- name: choices
  kind: multiple_choice
  data: rows.jsonl
  prompt: "{{ q }}の続き:"
  choices: ["{{ a }}", "{{ b }}"]
  target: A
  shots: 2
- name: texts
  kind: generate
  data: rows.jsonl
  prompt: "{{ q }}"
  target: "{{ a }}"
  max_new_tokens: 4
"""


@pytest.fixture
def folder(tmp_path):
    rows = [{"q": f"質問{i}", "a": "はい" * (1 + i % 2), "b": "いいえ"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("chat.yaml", CHAT), ("local.yaml", LOCAL)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


def asked(server):
    """Return the requests of tasks, without those that identify the model."""
    return [body for _, _, body in server.requests if body["max_tokens"] == 8]


def results_of(folder, name):
    result = json.loads((folder / name / RESULT).read_text(encoding="utf-8"))
    return {field: value for field, value in result.items() if field not in TIMES}, (
        folder / name / ANSWERS
    ).read_bytes()


def test_a_killed_evaluation_of_a_server_goes_on_and_asks_nothing_twice(folder, server):
    arguments = [server.url, "--served-model", "tiny", "--tasks", folder / "chat.yaml", "--concurrency", "2"]
    answer, gate = server.answer, []

    def slow(body):
        if body["max_tokens"] != 8:
            return answer(body)
        gate.append(body)
        if len(gate) > 12:  # The kill comes while requests are in flight.
            server.free.wait(30)
        return answer(body)

    server.answer = slow
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "evaluate", *map(str, arguments)]
    process = subprocess.Popen([*command, "--output", str(folder / "killed")], stderr=subprocess.PIPE)
    journal = folder / "killed" / "chats" / JOURNAL
    end = time.monotonic() + 300
    while time.monotonic() < end and not (len(gate) >= 14 and journal.read_bytes().count(b"\n") >= 12):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    process.stderr.close()
    stored, in_flight = journal.read_bytes().count(b"\n"), len(gate)
    assert (stored, in_flight) == (12, 14)
    server.answer = answer
    assert evaluate(*arguments, "--output", folder / "killed") == 0
    # 40 questions, and the two that were in flight once more.
    assert len(asked(server)) == 42
    server.requests.clear()
    assert evaluate(*arguments, "--output", folder / "killed") == 0
    assert asked(server) == []
    assert evaluate(*arguments, "--output", folder / "whole") == 0
    assert results_of(folder / "killed", "chats") == results_of(folder / "whole", "chats")
    assert results_of(folder / "whole", "chats")[0]["score"] == 1.0


def test_other_weights_under_the_same_name_are_refused(folder, server, capsys):
    arguments = [server.url, "--served-model", "tiny", "--tasks", folder / "chat.yaml", "--output", folder / "out"]
    assert evaluate(*arguments, "--limit", 2) == 0
    model = results_of(folder / "out", "chats")[0]["model"]
    assert (model["url"], model["served_model"], len(model["fingerprint"])) == (server.url, "", 32)
    answer = server.answer
    server.answer = lambda body: {"model": "tiny-v2", **answer(body)}
    server.requests.clear()
    assert evaluate(*arguments) == 2
    assert "answers with a different model than at the start of this evaluation" in capsys.readouterr().err
    assert asked(server) == []
    (folder / "out" / "server.json").unlink()
    assert evaluate(*arguments) == 0
    # The two stored answers are not those of this model.
    assert len(asked(server)) == 40
    # A server without a chat template is asked for a completion.
    server.troubles = {"富士山": [400]}
    assert evaluate(*arguments) == 2
    assert "answers with a different model" in capsys.readouterr().err
    server.troubles = {"富士山": [400, 400]}
    assert evaluate(*arguments) == 2
    assert "does not answer: HTTP 400" in capsys.readouterr().err


def test_failures_are_named_and_end_with_a_status(folder, server, capsys):
    server.troubles = {"質問7": [400]}
    arguments = [server.url, "--served-model", "tiny", "--tasks", folder / "chat.yaml", "--output", folder / "out"]
    assert evaluate(*arguments) == 1
    assert "chats, item 8: HTTP 400" in capsys.readouterr().err
    assert evaluate(*arguments) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run folder, the same as that of tests/models."""
    params = jax.jit(lambda key: init_params(Plamo2(SHAPE), key))(jax.random.key(0))
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
    checkpoint.save_model(folder, SHAPE, {**params, "embedding": 20 * params["embedding"]}, tokenizer)
    return folder


def test_a_local_model_its_page_and_a_comparison(folder, run, capsys, tmp_path_factory):
    def of(output, *more):
        return [run, "--tasks", folder / "local.yaml", "--batch-size", 4, "--output", folder / output, *more]

    assert evaluate(*of("a", "--limit", 8)) == 0
    shown = capsys.readouterr().out
    assert "choices  accuracy" in shown
    # A run of which half is lost ends in the same results.
    expected = [results_of(folder / "a", name) for name in ("choices", "texts")]
    for name in ("choices", "texts"):
        journal = folder / "a" / name / JOURNAL
        content = journal.read_bytes()
        journal.write_bytes(content[: len(content) // 2])
        (folder / "a" / name / RESULT).unlink()
    assert evaluate(*of("a", "--limit", 8)) == 0
    assert [results_of(folder / "a", name) for name in ("choices", "texts")] == expected
    assert evaluate(*of("b", "--limit", 12)) == 0
    capsys.readouterr()
    assert evaluate("--compare", folder / "a", folder / "b", "--output", folder / "compared.json") == 0
    assert "+0.0000" in capsys.readouterr().out
    compared = json.loads((folder / "compared.json").read_text(encoding="utf-8"))
    assert compared["tasks"]["choices"]["scores"]["accuracy"]["items"] == 8
    page = (folder / "a" / "report.html").read_text(encoding="utf-8")
    assert "質問" in page
    assert page.count('class="track"') == 2
    if chromium.find() is None:
        pytest.skip("there is no Chromium")
    browser = chromium.Browser(tmp_path_factory.mktemp("profile"))
    try:
        opened = browser.open((folder / "a" / "report.html").as_uri(), width=390)
        for width, theme in ((390, "light"), (1100, "dark")):
            opened.resize(width, 800, theme)
            opened.wait(f"innerWidth === {width}")
            assert opened.value("document.documentElement.scrollWidth <= innerWidth")
            if os.environ.get("SCREENSHOTS"):
                opened.screenshot(Path(os.environ["SCREENSHOTS"]) / f"evaluation_{width}.png")
    finally:
        browser.close()


def test_items_in_the_training_data_are_counted_on_the_page(folder, run, capsys):
    rows = [json.loads(line)["q"] for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    long = {row: f"{row}は訓練データに{row}含まれ、{row}同じ文が{row}あります。" for row in rows}
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"q": text, "a": "はい", "b": "いいえ"}) + "\n" for text in long.values()), encoding="utf-8"
    )
    documents = [Document("関係のない文書です。", "0"), *(Document(long[row], row) for row in rows[5:8])]
    write_shards(documents, Tokenizer.load(run), folder / "shards", progress=False)
    arguments = [run, "--tasks", folder / "local.yaml", "--limit", 40, "--training-data", folder / "shards"]
    assert evaluate(*arguments, "--output", folder / "out") == 0
    assert "choices, accuracy: clean items 35 (" in capsys.readouterr().out
    found = results_of(folder / "out", "choices")[0]["contamination"]
    assert (found["contaminated"]["n"], found["clean"]["n"], found["rules"]) == (3, 35, {"window": 3})
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert '<th class="number">in training data</th>' in page
    assert '<td>in the training data</td><td class="number">3</td>' in page
    assert evaluate(*arguments, "--output", folder / "out", "--training-data", folder / "absent") == 2
    assert f"{folder / 'absent'}" in capsys.readouterr().err


def test_the_list_has_sources_and_licences(capsys):
    assert evaluate("--list") == 0
    shown = capsys.readouterr().out
    assert "jmmlu: " in shown
    assert "data: --path jmmlu=PATH, from https://github.com/nlp-waseda/JMMLU" in shown
    assert "licence: " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--tasks", "cloze", "--shots", "9"], "--shots has no effect on cloze: leave it out"),
        (["m", "--tasks", "ifeval", "rules", "--mode", "../up"], "--mode has no effect on ifeval, rules: leave it out"),
        ([], "no tasks and no held-out data are given"),
        (["--tasks", "ruler"], "the model is missing"),
        (["m", "--tasks", "hellaswag"], "the task 'hellaswag' is unknown"),
        (["m", "--tasks", "jmmul"], "the task 'jmmul' is unknown: did you mean jmmlu?"),
        (["http://localhost", "--heldout", "ja=x"], "--heldout is not allowed with the server http://localhost"),
        (["m", "--tasks", "jmmlu"], "add --path jmmlu=PATH"),
        (["m", "--tasks", "ruler", "--path", "jmmlu=x"], "--path names jmmlu, which is not one of --tasks ruler"),
        (["m", "--tasks", "ruler", "--path", "x"], "--path x has no task name"),
        (["m", "--tasks", "ruler", "--output", "x.json"], "with --tasks it must be a folder"),
        (["m", "--tasks", "ruler", "ruler"], "--tasks has ruler twice"),
        (["m", "--tasks", "ruler", "--limit", "0"], "--limit 0 is not allowed"),
        (["--tasks", "ruler", "--answers", "x"], "--answers needs one task and an output file"),
        (["--tasks", "ruler", "--answers", "x", "--output", "y"], "the task ruler cannot score stored answers"),
        (["--compare", "x", "y"], "x has no results"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(*arguments) != 0
    assert message in capsys.readouterr().err


def test_options_of_tasks_are_those_that_their_modules_read():
    names = "mode|shots|trials|max_new_tokens|lengths|depths|kinds"
    for name, info in TASKS.items():
        source = inspect.getsource(importlib.import_module(f"plamo2_jax.eval.tasks.{info.module}"))
        read = set(re.findall(rf"options\.({names})\b", source))
        # Of the tasks in its module, only jfbench has trials and kinds.
        alone = {"trials", "kinds"} if name in ("ifeval", "mifeval_ja") else set()
        assert options_of(name) == read - alone, name
