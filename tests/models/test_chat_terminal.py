"""`plamo2 chat` in a pseudo terminal, on a folder and on a server."""

import json
import re
import time

import pytest

from plamo2_jax.cli.main import main
from support.terminal import CTRL_C, CTRL_D, Terminal

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from starlette.responses import JSONResponse

from support.scripted_server import scripted_server


@pytest.fixture
def server():
    with scripted_server() as server:
        yield server


@pytest.fixture
def chat(tmp_path):
    """Start `plamo2 chat`."""
    running = []

    def start(*arguments):
        running.append(Terminal("chat", *arguments, folder=tmp_path))
        return running[-1]

    yield start
    for terminal in running:
        terminal.close()


def test_a_conversation_with_a_folder(chat, folder, tmp_path):
    terminal = chat(folder, "--max-new-tokens", "24", "--seed", "3", "--system", "短く答える。" * 8)
    terminal.wait("lists the commands")
    terminal.line("吾輩は猫である。")
    first = terminal.wait(r"24 tokens, [\d.]+ tokens/s, first token after [\d.]+ s, prompt \d+ tokens, ended by")
    terminal.line("名前はまだ無い。" * 4)
    # The second turn reads on from the first one.
    second = terminal.wait(r"24 tokens, .* prompt (\d+) tokens \((\d+) from the cache\)")
    prompt, cached = map(int, re.search(r"prompt (\d+) tokens \((\d+)", second).groups())
    assert 40 < cached < prompt
    terminal.line("/save talk.jsonl")
    terminal.wait("saved talk.jsonl")
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"].split("\n")[0][:8] in first
    # The same question in an empty conversation has the same answer.
    terminal.line("/reset")
    terminal.wait("conversation is empty")
    terminal.line("吾輩は猫である。")
    terminal.wait("24 tokens")
    terminal.line("/save again.jsonl")
    terminal.wait("saved again.jsonl")
    again = json.loads((tmp_path / "again.jsonl").read_text(encoding="utf-8"))["messages"]
    assert again == messages[:3]
    terminal.line("/exit")
    assert terminal.end() == 0


def test_ctrl_c_stops_a_local_answer_and_the_chat_goes_on(chat, folder):
    terminal = chat(folder, "--max-new-tokens", "8000", "--temperature", "0")
    terminal.wait(r"lists the commands\.\s+> ")
    terminal.line("ab")
    terminal.wait(r"(?s)ab\n.")
    terminal.type(CTRL_C)
    terminal.wait(r"(?s)\(stopped\).*> ")
    terminal.type("left over")
    # Python notices a signal that arrives while readline handles a key at the next key only, so let it finish the last one.
    terminal.wait("left over")
    time.sleep(1)
    terminal.type(CTRL_C)
    terminal.wait("/exit or Ctrl-D ends the chat")
    terminal.line("/help")
    # Without the prompt, the terminal may not take Ctrl-D as the end yet.
    terminal.wait(r"(?s)/system TEXT.*> ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_a_conversation_with_a_server(chat, server, tmp_path):
    server.answer = ["吾輩", 0.2, "は猫。\x1b[31m"]
    terminal = chat(server.url, "--temperature", "0", "--max-new-tokens", "9")
    terminal.wait(re.escape(f"tiny at {server.url}/v1"))
    terminal.line("だれ？")
    # Control characters of an answer are spelled out.
    assert "吾輩は猫。\\x1b[31m\n" in terminal.wait("2 tokens, .*prompt 7 tokens \\(4 from the cache\\)")
    terminal.line("/system Be kind.")
    terminal.wait("system message is set")
    terminal.line("one\\")
    terminal.line("two")
    terminal.wait("2 tokens")
    body = server.bodies[-1]
    assert [(each["role"], each["content"]) for each in body["messages"]] == [
        ("system", "Be kind."),
        ("user", "だれ？"),
        ("assistant", "吾輩は猫。\x1b[31m"),
        ("user", "one\ntwo"),
    ]
    assert (body["temperature"], body["max_tokens"]) == (0, 9)
    assert "seed" not in body
    # Ctrl-C ends the request, and what was said stays.
    server.answer = ["Half", 60]
    terminal.line("more")
    terminal.wait("Half")
    terminal.type(CTRL_C)
    terminal.wait(r"\(stopped\)")
    server.answer = ["Whole"]
    terminal.line("again")
    terminal.wait("1 tokens")
    assert [each["content"] for each in server.bodies[-1]["messages"]][-3:] == ["more", "Half", "again"]
    assert server.dropped == 1
    terminal.line("/exit")
    assert terminal.end() == 0


def test_problems_are_one_sentence_and_the_chat_goes_on(chat, server, tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    terminal = chat(server.url)
    terminal.wait("lists the commands")
    for line, sentence in [
        ("/sytem x", "error: unknown command '/sytem': /help lists the commands\n"),
        ("/save", "error: the file name is missing: use /save FILE\n"),
        ("/save new.jsonl", "error: there is no conversation to save: send a message first\n"),
    ]:
        terminal.line(line)
        terminal.wait(re.escape(sentence))
    server.refusals = [JSONResponse({"error": {"message": "too\nlong"}}, 400)]
    terminal.line("Hi")
    terminal.wait(re.escape(f"error: {server.url}/v1 refuses the request (HTTP 400): too long\n"))
    server.answer = ["Half", None]
    terminal.line("Hi")
    terminal.wait("error: .* cannot be reached .*\n|error: .* ended the connection before the answer was complete.*\n")
    server.answer = [{"error": {"message": "out of memory"}}]
    terminal.line("Hi")
    terminal.wait("error: the server could not finish the answer: out of memory\n")
    server.answer = [{"choices": 3}]
    terminal.line("Hi")
    terminal.wait("error: .* does not answer as an OpenAI-compatible server: .*\n")
    server.answer = ["Fine."]
    terminal.line("Hi")
    terminal.wait("1 tokens")
    # Questions without an answer are forgotten; the half answer is not.
    assert [each["content"] for each in server.bodies[-1]["messages"]] == ["Hi", "Half", "Hi"]
    terminal.line("/save mine.txt")
    # Without the prompt, the terminal may not take Ctrl-D as the end yet.
    terminal.wait(r"(?s)error: mine.txt already exists: give the name of a new file\n.*> ")
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "kept"
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_lines_of_a_pipe_are_answered_without_prompts(server, capsys, monkeypatch):
    import io

    server.answer = ["A", "B"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n/reset\ntwo\n"))
    assert main(["chat", server.url]) == 0
    assert capsys.readouterr().out == "AB\nAB\n"
    assert [len(body["messages"]) for body in server.bodies] == [1, 1]
    server.refusals = [JSONResponse({}, 500)]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert main(["chat", server.url]) == 2
    assert "refuses the request (HTTP 500): no reason given" in capsys.readouterr().err


def test_keys_come_from_the_environment(server, capsys, monkeypatch):
    import io

    server.key = "sesame"
    assert main(["chat", server.url]) == 2
    assert "needs an API key. Give the name of its environment variable" in capsys.readouterr().err
    monkeypatch.setenv("CHAT_KEY", "sesame")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert main(["chat", server.url, "--api-key-env", "CHAT_KEY", "--name", "other"]) == 0
    assert capsys.readouterr().out == "Hello.\n"
    assert server.bodies[-1]["model"] == "other"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["MODEL", "--name", "x"], "--name is for servers"),
        (["MODEL", "--seed", "-1"], "--seed -1 is not allowed: it must be from 0 to 4294967295"),
        (["http://127.0.0.1:1"], "http://127.0.0.1:1/v1 cannot be reached"),
        (["http://user@host"], "http://HOST/"),
        (
            ["http://127.0.0.1:1", "--template", "chat"],
            "--template is for model folders: the server at http://127.0.0.1:1",
        ),
        (["http://127.0.0.1:1", "--mesh.tensor", "2"], "--mesh is for model folders"),
        (["MODEL", "--temperature", "-1"], "temperature=-1"),
    ],
)
def test_odd_options_are_refused(capsys, arguments, sentence):
    assert main(["chat", *arguments]) == 2
    assert sentence in capsys.readouterr().err
