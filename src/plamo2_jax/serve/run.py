"""Serving a model until a signal ends the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plamo2_jax.convert.names import ModelName
from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.config import ServeConfig

if TYPE_CHECKING:
    import jax

    from plamo2_jax.serve.served_model import ServedModel


def serve_model(
    model: str | os.PathLike[str],
    config: ServeConfig | None = None,
    *,
    name: str | None = None,
    template: str | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    api_key_file: str | os.PathLike[str] | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    step: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    make_mesh: Callable[[], jax.sharding.Mesh | None] | None = None,
) -> None:
    """Serve a model over HTTP with OpenAI's endpoints and a chat page, until Ctrl+C or SIGTERM. Needs the extra `serve`.

    Call this in the main thread. The first signal lets running texts end, the second one ends them at once.

    Args:
        model: run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters.
        config: address, sizes and limits; None: the defaults, port 8000 on this machine only.
        name: name of the model for clients; None: the name of its folder.
        template: chat template; None: the model's own. A model without one has no chat endpoint.
        adapters: folders of LoRA adapters on the same base, by the names under which they are served.
        api_key_file: file with an API key on each line. The environment variable PLAMO2_API_KEY may hold another one.
        dtype: dtype of activations and matrices; None: float32 on CPU and bfloat16 elsewhere.
        step: checkpoint of a run folder; None: the step in `model`, or else the newest.
        tokenizer: tokenizer.jsonl, or its folder, instead of the model's own.
        make_mesh: returns the devices that the model is divided over; None: the first device.

    Raises:
        PlamoError: the extra serve is not installed, the model cannot be loaded, or the address is in use.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise PlamoError(
            f"plamo2 serve needs the package {error.name}: install this project with the extra serve, as in pip install '.[serve]'"
        ) from None
    from plamo2_jax.serve.auth import is_loopback, read_keys
    from plamo2_jax.serve.opening import open_models
    from plamo2_jax.serve.server import Server

    config = config or ServeConfig()
    # Files and folders are checked here, before the engine thread starts.
    keys = read_keys(None if api_key_file is None else Path(api_key_file))
    folder = ModelName.parse(model).folder
    if not folder.is_dir():
        raise PlamoError(
            f"{folder} is not a folder: give a run, a folder in Hugging Face format or a folder of adapters"
        )
    if not keys and not is_loopback(config.host):
        print(f"warning: everybody who reaches {config.host} may use this server; see --api-key-file", file=sys.stderr)

    def load() -> list[ServedModel]:
        return open_models(
            model,
            config,
            name=name,
            template=template,
            adapters={adapter: Path(path) for adapter, path in (adapters or {}).items()},
            dtype=dtype,
            step=step,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            mesh=None if make_mesh is None else make_mesh(),
        )

    server = Server(load, config, keys)
    work = "loading and compiling" if config.warm_up else "loading"
    print(f"{server.url}: {work} {model}; requests get status 503 until it is ready", file=sys.stderr, flush=True)
    server.serve_forever()
