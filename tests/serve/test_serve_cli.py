"""`plamo2 serve` as a user starts it: a process, a real signal, and one sentence for what cannot be served."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main

OPTIONS = ("--port", "0", "--slots", "2", "--max-length", "128", "--prefill-size", "16", "--template", "chat")


@pytest.fixture(scope="module")
def folder(model, params, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    checkpoint.save_model(folder, model.config, params, tokenizer)
    return folder


def test_a_signal_under_load_cuts_no_stream(folder):
    """SIGTERM kills streams (vllm#24885, #34730)."""
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "serve", str(folder), *OPTIONS, "--shutdown-timeout", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PLAMO2_API_KEY": "k"}
    ) as process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "ready after" in line:
                    break
            assert "ready after" in lines[-1], lines
            host, port = re.search(r"http://([\d.]+):(\d+) serves tiny", lines[-1]).groups()
            connections = [http.client.HTTPConnection(host, int(port), timeout=120) for _ in range(4)]
            body = json.dumps({"prompt": "ab", "max_tokens": 120, "ignore_eos": True, "stream": True})
            headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
            first = []
            for connection in connections:
                connection.request("POST", "/v1/completions", body, headers)
                # The response has begun when the head is there.
                first.append(connection.getresponse())
            assert [response.status for response in first] == [200] * 4
            process.send_signal(signal.SIGTERM)
            for response in first:
                events = response.read().decode().split("\n\n")
                assert events[-2:] == ["data: [DONE]", ""]
                last = json.loads(events[-3].removeprefix("data: "))
                assert last["choices"][0]["finish_reason"] in ("abort", "length")
            assert process.wait(120) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--adapter", "x"), "--adapter 'x' is not allowed: it must be NAME=DIR"),
        (("--adapter", "x=a", "--adapter", "x=b"), "and each name must be unique"),
        (("--api-key-file", "/dev/null"), "--api-key-file /dev/null has no API key"),
        (("--slots", "0"), "slots=0 is not allowed: it must be at least 1"),
        (("--prefill-size", "100"), "prefill_size=100 is not allowed: it must be a power of two"),
        (("--host", "203.0.113.7"), "cannot listen on 203.0.113.7:0"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(folder, capsys, options, message):
    assert main(["serve", str(folder), *OPTIONS, *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nothing"), *OPTIONS]) == 2
    assert "is not a folder" in capsys.readouterr().err
    # Found out in the engine thread, after the server has begun to listen.
    (tmp_path / "empty").mkdir()
    assert main(["serve", str(tmp_path / "empty"), *OPTIONS]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("/empty has no file config.json")


def test_a_port_that_is_taken_is_one_sentence(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(folder), *OPTIONS, "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
