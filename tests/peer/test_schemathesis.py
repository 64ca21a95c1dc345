"""schemathesis sends requests made of the server's own OpenAPI document, valid and not. `make peers` installs it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.http_server import running
from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]

pytestmark = pytest.mark.peer


def test_every_answer_is_as_the_document_says(generator, tmp_path):
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("schemathesis is not installed (make peers installs it)")
    with running(generator) as server:
        command = [program, "run", f"{server.url}/openapi.json", "--max-examples", "30", "--seed", "1", "--no-color"]
        # Limits that JSON Schema cannot express, such as a context's, refuse some requests that it allows.
        command += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        assert server.engine.state == "ready"
        assert server.engine.compilations == 0
