"""`plamo2 serve MODEL`: serve a model over HTTP with OpenAI's endpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.cli.decode_mesh import DecodeMesh
from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.config import ServeConfig

Several = tyro.conf.UseAppendAction


@dataclasses.dataclass(frozen=True)
class ServeOptions(ServeConfig):
    """Serve a model over HTTP with OpenAI's endpoints and a chat page. Ctrl-C or SIGTERM lets running requests finish, then stops the
    server.
    """

    model: Annotated[Path, tyro.conf.Positional] = dataclasses.field(kw_only=True)
    """A run folder, RUN@STEP or RUN@ema, a folder in Hugging Face format, or a folder of adapters."""
    name: str | None = None
    """Name of the model for clients. Default: the name of its folder."""
    template: str | None = None
    """Chat template: chat, translate, a Jinja file, or a folder that has one. Default: the model's own. A model without a chat template has
    no chat endpoint."""
    adapter: Several[tuple[str, ...]] = ()
    """NAME=DIR: also serve the LoRA adapter in the folder DIR as a model with this name; may be given several times."""
    api_key_file: Path | None = None
    """File with one API key per line. The environment variable PLAMO2_API_KEY may hold another key. Default: no key is needed."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of activations and matrices. Default: float32 on CPU, bfloat16 elsewhere."""
    mesh: DecodeMesh = dataclasses.field(default_factory=DecodeMesh)
    """Devices over which the model is sharded."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""
    tokenizer: Path | None = None
    """A tokenizer.jsonl, or the folder that contains it, instead of the model's own."""


def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP with OpenAI's endpoints and a chat page."""
    from plamo2_jax.serve.run import serve_model

    serve_model(
        options.model,
        options,
        name=options.name,
        template=options.template,
        adapters=parse_adapters(options.adapter),
        api_key_file=options.api_key_file,
        dtype=options.dtype,
        step=options.step,
        tokenizer=options.tokenizer,
        make_mesh=options.mesh.make,
    )


def parse_adapters(values: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of `--adapter NAME=DIR` by name.

    Raises:
        ValueError: a value is not of this form, or a name occurs twice.
    """
    adapters: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise PlamoError(
                f"--adapter {value[:100]!r} is not allowed: it must be NAME=DIR, and each name must be unique"
            )
        adapters[name] = Path(folder)
    return adapters


def main(argv: list[str]) -> None:
    """Run `plamo2 serve`."""
    call(serve, argv, "plamo2 serve")
