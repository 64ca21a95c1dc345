"""PLaMo 2 (arXiv:2509.04897) in JAX: model, tokenizer, data, training, conversion and inference.

import plamo2_jax as plamo2

with plamo2.load("runs/demo") as model:
    print(plamo2.generate(model, "吾輩は", max_new_tokens=64))

docs/python_api.md describes the public names. A name is imported when it is first used, so importing this package does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plamo2_jax.api import (
        chat,
        convert_model,
        evaluate_model,
        generate,
        load,
        merge_models,
        prune_model,
        quantize_model,
        serve_model,
        train_model,
    )
    from plamo2_jax.config import ModelConfig, preset
    from plamo2_jax.errors import PlamoError
    from plamo2_jax.models.chat_model import ChatModel, ChatRequest, CompletionRequest, ScoreRequest
    from plamo2_jax.quantize.config import QuantizeConfig
    from plamo2_jax.serve.config import ServeConfig
    from plamo2_jax.surgery.merge.config import MergeConfig
    from plamo2_jax.tokenizer.tokenizer import Tokenizer
    from plamo2_jax.train.config import RunConfig

# The module of each public name. Sub-packages are called convert, quantize, serve and train, so functions need other names.
_MODULES = {
    "ChatModel": "models.chat_model",
    "ChatRequest": "models.chat_model",
    "CompletionRequest": "models.chat_model",
    "MergeConfig": "surgery.merge.config",
    "ModelConfig": "config",
    "PlamoError": "errors",
    "QuantizeConfig": "quantize.config",
    "RunConfig": "train.config",
    "ScoreRequest": "models.chat_model",
    "ServeConfig": "serve.config",
    "Tokenizer": "tokenizer.tokenizer",
    "chat": "api",
    "convert_model": "api",
    "evaluate_model": "api",
    "generate": "api",
    "load": "api",
    "merge_models": "api",
    "preset": "config",
    "prune_model": "api",
    "quantize_model": "api",
    "serve_model": "api",
    "train_model": "api",
}

__all__ = [
    "ChatModel",
    "ChatRequest",
    "CompletionRequest",
    "MergeConfig",
    "ModelConfig",
    "PlamoError",
    "QuantizeConfig",
    "RunConfig",
    "ScoreRequest",
    "ServeConfig",
    "Tokenizer",
    "__version__",
    "chat",
    "convert_model",
    "evaluate_model",
    "generate",
    "load",
    "merge_models",
    "preset",
    "prune_model",
    "quantize_model",
    "serve_model",
    "train_model",
]


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names and those already imported."""
    return sorted({*globals(), *__all__})
