"""A folder with a recipe and seeds, which is the working directory, and an endpoint."""

import pytest

from support.endpoint_server import Server
from support.synth_runs import write_inputs


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path
