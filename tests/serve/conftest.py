"""A real server of the tiny model, and a real client."""

import openai
import pytest

from support.http_server import running
from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]


@pytest.fixture(scope="session")
def server(generator):
    with running(generator) as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
