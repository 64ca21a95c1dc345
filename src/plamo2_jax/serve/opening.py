"""Opening the models that a server serves: a base, and adapters on the same arrays."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import plamo2_jax
from plamo2_jax import checkpoint
from plamo2_jax.adapters.open import model_folders
from plamo2_jax.adapters.peft import read_adapters
from plamo2_jax.convert.names import ModelName
from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generator import Generator, default_stop_ids
from plamo2_jax.engine.grammar import prepare_grammars
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.engine.weights import attach_adapters
from plamo2_jax.errors import PlamoError
from plamo2_jax.models.local import open_generator
from plamo2_jax.models.stop_ids import answer_stop_ids
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.template_files import find_template


def open_models(
    model: str | Path,
    config: ServeConfig,
    *,
    name: str | None = None,
    template: str | None = None,
    adapters: Mapping[str, Path] | None = None,
    dtype: str | None = None,
    step: int | None = None,
    tokenizer: Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> list[ServedModel]:
    """Open a model and its adapters, ready to answer.

    Args:
        model: run folder, RUN@STEP, RUN@ema, folder in Hugging Face format or folder of adapters.
        config: sizes.
        name: name of the model; None: the folder's.
        template: chat template; None: the model's own.
        adapters: folders of LoRA adapters by the names under which they are served.
        dtype: of activations and matrices; None: float32 on CPU and bfloat16 elsewhere.
        step: checkpoint of a run folder.
        tokenizer: a tokenizer instead of the model's own.
        mesh: devices that the model is divided over; None: the first one.

    Raises:
        ValueError: a folder is not a model, or not an adapter of the model.
    """
    found = ChatTemplate.load(template) if template else _own_template(model)
    generator, loaded = open_generator(
        model, step=step, dtype=dtype, tokenizer=tokenizer, mesh=mesh, key_dtype=config.kv_cache
    )
    name = name or ModelName.parse(model).folder.resolve().name
    fingerprint = checkpoint.fingerprint(loaded.config, loaded.params)
    cache = PrefixCache(int(config.prefix_cache * 2**30)) if config.prefix_cache else None
    served = [serve_generator(generator, found, config, name=name, fingerprint=fingerprint, prefix_cache=cache)]
    for adapter, adapter_folder in (adapters or {}).items():
        if adapter == name:
            raise PlamoError(
                f"--adapter {adapter}={adapter_folder} is not allowed: the model itself has this name, see --name"
            )
        read = read_adapters(model, loaded.config, adapter_folder)
        adapted = copy.copy(generator)
        adapted.params = attach_adapters(generator.model, generator.params, *read)
        served.append(
            serve_generator(
                adapted,
                found if template else _own_template(adapter_folder) or found,
                config,
                name=adapter,
                fingerprint=f"{fingerprint} {checkpoint.fingerprint(loaded.config, read[1])}",
                prefix_cache=cache,
                parent=name,
            )
        )
    return served


def _own_template(model: str | Path) -> ChatTemplate | None:
    text = find_template(*model_folders(model))
    return None if text is None else ChatTemplate(*text)


def serve_generator(
    generator: Generator,
    template: ChatTemplate | None,
    config: ServeConfig,
    *,
    name: str,
    fingerprint: str,
    prefix_cache: PrefixCache | None = None,
    parent: str | None = None,
) -> ServedModel:
    """Return a model with an engine of its own, compiled if the configuration says so.

    Args:
        generator: the network, its parameters and its tokenizer.
        template: chat template.
        config: sizes.
        name: name of the model.
        fingerprint: identifies the parameters.
        prefix_cache: snapshots of prompts; models may share it.
        parent: name of the base of an adapter.
    """
    tokenizer, length = generator.tokenizer, min(config.max_length, generator.max_length)
    engine = Engine(
        generator.model,
        generator.params,
        slots=config.slots,
        max_length=length,
        prefill_size=config.prefill_size,
        usable=tokenizer.vocab_size,
        prefix_cache=prefix_cache,
        speculation=SpeculationConfig(config.drafts) if config.drafts else None,
    )
    if config.warm_up:
        engine.warm_up(scoring=True)
        # Without llguidance, requests with a grammar are refused.
        with contextlib.suppress(PlamoError):
            prepare_grammars(tokenizer)
    documents = default_stop_ids(generator.model, tokenizer)
    mesh = generator.model.mesh
    # The first encoding compiles the tokenizer.
    tokenizer.encode("warm-up")
    return ServedModel(
        name,
        Scheduler(engine, tokenizer, prefill_budget=config.prefill_size),
        tokenizer,
        generator.model.config.vocab_size,
        template,
        length,
        documents,
        documents if template is None else answer_stop_ids(generator.model, template, tokenizer),
        _system_fingerprint(
            config,
            length,
            fingerprint,
            tokenizer.fingerprint,
            template and template.source,
            mesh and dict(mesh.shape),
        ),
        int(time.time()),
        parent,
    )


def _system_fingerprint(config: ServeConfig, length: int, *others: object) -> str:
    """Return a short name for all that a text depends on besides the request: `others` identify the model, its prompts and its mesh."""
    parts: Sequence[object] = (
        *others,
        plamo2_jax.__version__,
        jax.__version__,
        jax.devices()[0].device_kind,
        config.slots,
        config.prefill_size,
        config.drafts,
        config.kv_cache,
        length,
    )
    return "fp_" + hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
