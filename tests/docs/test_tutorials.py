"""The tutorials and the examples of the concept pages, run as a reader would run them, on the shortened demo (make docs-test)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from plamo2_jax.data import corpus
from support.documents import ROOT, block
from support.short_demo import commands, environment, run, run_all, run_demo

pytestmark = pytest.mark.docs

TUTORIALS = ROOT / "docs" / "tutorials"
CONCEPTS = ROOT / "docs" / "concepts"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the demo has run."""
    return run_demo(tmp_path_factory.mktemp("tutorials"))


def test_train_on_your_text(tmp_path):
    page = TUTORIALS / "train_on_your_text.md"
    (tmp_path / "mine.py").write_text(
        block("mine.py", page).replace("hidden_size=256", "hidden_size=64").replace("700", "4").replace("350", "2"),
        encoding="utf-8",
    )
    run(block("text", page).strip(), tmp_path)
    text = tmp_path / "text.jsonl"
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == sum(1 for _ in corpus.documents("en", "train"))
    text.write_text("".join(lines[::6]), encoding="utf-8")
    printed = run_all(commands("tutorial", page), tmp_path)
    assert "bits per byte" in printed
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_sft_and_dpo(home):
    lines = [
        re.sub(r"instructions (.*)", r"instructions \1 --limit 24", line.replace(" --limit 480", ""))
        for line in commands("tutorial", TUTORIALS / "sft_and_dpo.md")
    ]
    run_all(lines, home)
    assert (home / "runs" / "chat" / "model.safetensors").exists()
    pairs = (home / "data" / "pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "chosen", "rejected"} <= json.loads(pairs[0]).keys()


def test_prune_and_distil(home):
    printed = run_all(commands("tutorial", TUTORIALS / "prune_and_distil.md"), home)
    assert (home / "runs" / "cut" / "merged" / "merge.json").exists()
    assert printed.count("xz -9e") == 2


def test_quantize_and_export(home):
    run_all(commands("tutorial", TUTORIALS / "quantize_and_export.md"), home)
    assert (home / "exported" / "tuned.gguf").read_bytes()[:4] == b"GGUF"
    config = json.loads((home / "exported" / "eight" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_evaluate(home):
    printed = run_all(commands("tutorial", TUTORIALS / "evaluate.md"), home)
    assert "cloze" in printed
    assert (home / "scores" / "demo" / "report.html").exists()


def test_serve(home):
    page = TUTORIALS / "serve.md"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (line,) = re.findall(r"^plamo2 serve runs/demo/tuned(?=  )", page.read_text(encoding="utf-8"), re.MULTILINE)
    port = address.rpartition(":")[2]
    server = subprocess.Popen(
        [sys.executable, "-m", "plamo2_jax.cli.main", *line.split()[1:], "--port", port, "--max-length", "512"],
        cwd=home,
        env=environment(),
    )
    try:
        end = time.monotonic() + 300
        while not answers(f"http://{address}/health"):
            assert server.poll() is None
            assert time.monotonic() < end, "the server did not become ready"
            time.sleep(0.2)
        for line in commands("requests", page):
            assert (
                run(line.replace("127.0.0.1:8000", address).replace("curl ", "curl --silent --fail "), home)
                or "health" in line
            )
        client = block("client", page).replace("127.0.0.1:8000", address)
        subprocess.run([sys.executable, "-c", client], check=True, stdout=subprocess.PIPE, timeout=120)
        (line,) = commands("measure", page)
        assert "tokens" in run(line.replace("127.0.0.1:8000", address), home)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()


def answers(url):
    """Say whether a server answers a request with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_tpu_pod():
    """The scripts are printed; a shell accepts those that are scripts."""
    for line in commands("tutorial", TUTORIALS / "tpu_pod.md"):
        printed = run(line, ROOT)
        if " xpk " in line:
            assert "kind: JobSet" in printed
        else:
            subprocess.run(["bash", "-n"], input=printed, text=True, check=True)


@pytest.mark.parametrize("name", ["packing", "cache", "axis_names"])
def test_examples_of_the_concepts(name, capsys):
    scope: dict = {}
    exec(compile(block("example", CONCEPTS / f"{name}.md"), name, "exec"), scope)
    printed = capsys.readouterr().out
    if name == "packing":
        assert float(printed) == 0
    elif name == "cache":
        assert float(printed) < 1e-5
    else:
        expected = re.findall(r"# (\(.*\))$", block("example", CONCEPTS / f"{name}.md"), re.MULTILINE)
        assert printed.splitlines() == expected


def test_the_python_example_of_the_readme(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    exec(compile(example.replace("temperature=0", "temperature=0, max_new_tokens=4"), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_tutorials_name_the_models_of_the_demo(home):
    for path in TUTORIALS.glob("*.md"):
        for model in re.findall(r"runs/demo/(\w+)(?![\w/.])", path.read_text(encoding="utf-8")):
            assert (home / "runs" / "demo" / model).exists(), f"{path.name}: {model}"
            assert Path(os.path.realpath(home / "runs" / "demo" / model)).is_dir()
