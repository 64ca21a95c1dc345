"""`plamo2 bench-serve URL`: measure an OpenAI-compatible server under load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class BenchServeOptions:
    """Measure an OpenAI-compatible server under load: plamo2 serve, vLLM, llama.cpp.

    With --rate, requests arrive at random times (a Poisson process) and do not wait for earlier responses. Otherwise, --concurrency
    requests are always in flight. Prompts are texts from the bundled corpus; they differ after the shared prefix.

    A length is a number, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA.

    Prints a table and writes OUTPUT/results.json and OUTPUT/load.png.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Address of the server, such as http://127.0.0.1:8000."""
    output: Path
    """Folder to create: it must not exist, or it must be empty."""
    rate: float | None = None
    """Open loop: requests per second, on average."""
    concurrency: int | None = None
    """Closed loop: number of concurrent requests. Default: 1, unless --rate is given."""
    requests: int = 100
    """Maximum number of requests in the measurement."""
    duration: float = 600.0
    """Time after which no new request is sent, in seconds."""
    prompt_tokens: str = "256"
    """Prompt length in tokens, without the shared prefix and the chat template. If the server has no /tokenize endpoint, the length is in
    words."""
    output_tokens: str = "128"
    """Maximum length of an answer, in tokens."""
    ignore_eos: bool = False
    """Request answers of exactly --output-tokens tokens. OpenAI's API does not support this; vLLM, llama.cpp and plamo2 serve do."""
    shared_prefix: int = 0
    """Number of tokens at the beginning that all prompts share, to measure a prefix cache."""
    language: Literal["ja", "en"] | None = None
    """Language of the prompts. Default: both."""
    endpoint: Literal["chat", "completions"] = "chat"
    """chat: /v1/chat/completions. completions: /v1/completions, for base models."""
    temperature: float = 0.8
    """Sampling temperature of the requests."""
    slo_ttft: float | None = None
    """Service level objective for goodput: maximum time to first token, in milliseconds."""
    slo_itl: float | None = None
    """Service level objective for goodput: maximum mean time between two tokens of a request, in milliseconds."""
    warmup: int = 2
    """Number of requests before the measurement starts."""
    timeout: float = 300.0
    """Maximum time of one request, in seconds."""
    model: str | None = None
    """Name of the model. Default: the first model that the server lists."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key."""
    seed: int = 0
    """Random seed of arrivals, lengths and prompts."""


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if no request was answered."""
    options = parse(BenchServeOptions, argv, "plamo2 bench-serve")
    if options.rate is not None and options.concurrency is not None:
        raise PlamoError("--rate and --concurrency cannot be combined: give only one of them")
    from plamo2_jax.bench_serve.client import Client, Record
    from plamo2_jax.bench_serve.config import BenchConfig
    from plamo2_jax.bench_serve.lengths import Lengths
    from plamo2_jax.bench_serve.run import as_text, run, write_result
    from plamo2_jax.models.config import ChatModelConfig, api_key
    from plamo2_jax.models.server_stream import with_version
    from plamo2_jax.progress import tqdm
    from plamo2_jax.storage import new_folder, require_empty

    fields = {field.name for field in dataclasses.fields(BenchConfig)} & vars(options).keys()
    given = {name: getattr(options, name) for name in fields}
    given |= {
        "concurrency": 1 if options.concurrency is None else options.concurrency,
        "prompt_tokens": Lengths.parse(options.prompt_tokens, "--prompt-tokens"),
        "output_tokens": Lengths.parse(options.output_tokens, "--output-tokens"),
    }
    config = BenchConfig(**given)
    server = ChatModelConfig(url=with_version(options.url), api_key_env=options.api_key_env)
    require_empty(options.output)
    client = Client(server.url, options.model, api_key(server), config)
    with tqdm(total=config.requests, unit="request", desc="bench-serve") as bar:
        errors = 0

        def on_end(record: Record) -> None:
            nonlocal errors
            errors += record.error is not None
            bar.set_postfix(errors=errors, refresh=False)
            bar.update()

        result = run(client, config, on_end)
    with new_folder(options.output) as partial:
        write_result(partial, server.url, config, result)
    print(as_text(result))
    print(options.output)
    return 0 if result.summary["completed"] else 1
