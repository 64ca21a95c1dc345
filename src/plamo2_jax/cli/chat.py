"""`plamo2 chat MODEL`: talk to a model in the terminal."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.cli.decode_mesh import DecodeMesh
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import changed_fields

if TYPE_CHECKING:
    from plamo2_jax.models.streaming import StreamingChat


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """Talk to a model in the terminal: a model folder, or an OpenAI-compatible server such as plamo2 serve or vLLM.

    Ctrl-C stops an answer. /exit or Ctrl-D ends the chat; /help lists the commands. A line that ends with a backslash continues on
    the next line.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run folder, RUN@STEP or RUN@ema, a folder in Hugging Face format, a folder of adapters, or the address of a server
    (http://HOST:PORT)."""
    system: str | None = None
    """System message."""
    max_new_tokens: int = 1024
    """Maximum number of tokens of an answer."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens."""
    top_p: float = 0.95
    """Sample from the most likely tokens that together reach this probability; 1 is off."""
    min_p: float = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens of the conversation less likely."""
    seed: int | None = None
    """Random seed. Default: a new seed for each answer."""
    template: str | None = None
    """Folder: chat template (chat, translate, a Jinja file, or a folder that has one). Default: the model's own, or chat if the model
    has no template."""
    max_length: int = 8192
    """Folder: maximum number of tokens of a conversation, limited by the model's max_position_embeddings."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Folder: dtype of activations and matrices. Default: float32 on CPU, bfloat16 elsewhere."""
    kv_cache: Literal["int8"] | None = None
    """Folder: dtype of cached keys and values. int8 needs about a quarter of the memory of float32. Default: the dtype of the
    activations."""
    mesh: DecodeMesh = dataclasses.field(default_factory=DecodeMesh)
    """Folder: devices over which the model is sharded."""
    name: str | None = None
    """Server: name of the model. Default: the first model that the server lists."""
    api_key_env: str | None = None
    """Server: name of the environment variable that holds the API key."""
    timeout: float = 600.0
    """Server: maximum time of one answer, in seconds."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(ChatOptions, argv, "plamo2 chat")
    from plamo2_jax.cli.chat_session import ChatSession
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig
    from plamo2_jax.models.streaming import AnswerSettings

    sampling = SamplingConfig(
        options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty
    )
    if options.seed is not None and not 0 <= options.seed < 1 << 32:
        raise PlamoError(f"--seed {options.seed} is not allowed: it must be from 0 to {(1 << 32) - 1}")
    settings = AnswerSettings(sampling, StopConfig(options.max_new_tokens), options.seed)
    model = open_chat(options)
    try:
        return ChatSession(model, settings, options.system).run()
    finally:
        model.close()


_FOLDER_ONLY = {"template", "max_length", "dtype", "kv_cache", "mesh"}


def open_chat(options: ChatOptions) -> StreamingChat:
    """Return the chat that the options name.

    Raises:
        PlamoError: the folder is not a model, or the server does not list its models.
    """
    if options.model.startswith(("http://", "https://")):
        for name in sorted(changed_fields(options) & _FOLDER_ONLY):
            flag = name.replace("_", "-")
            raise PlamoError(f"--{flag} is for model folders: the server at {options.model} chooses this itself")
        from plamo2_jax.models.server_stream import ServerChatStream

        return ServerChatStream(
            options.model, model=options.name, api_key_env=options.api_key_env, timeout=options.timeout
        )
    for option, value in (("--name", options.name), ("--api-key-env", options.api_key_env)):
        if value is not None:
            raise PlamoError(f"{option} is for servers: give an address such as http://127.0.0.1:8000 as MODEL")
    if options.max_length < 2:
        raise PlamoError(f"--max-length {options.max_length} is not allowed: it must be at least 2")
    from plamo2_jax.cli.generate import open_template
    from plamo2_jax.models.local import open_generator
    from plamo2_jax.models.local_stream import LocalChatStream

    template = open_template(Path(options.model), options.template)
    print(f"loading {options.model}; the first answers take longer, because JAX compiles the model", file=sys.stderr)
    generator, _ = open_generator(
        options.model, dtype=options.dtype, mesh=options.mesh.make(), key_dtype=options.kv_cache
    )
    return LocalChatStream(generator, template, options.model, max_length=options.max_length)
