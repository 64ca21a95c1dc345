"""The functions of `import plamo2_jax as plamo2`. Each one calls the function behind the `plamo2` command of a similar name.

docs/python_api.md lists the public names. This module imports JAX only when a function is called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from plamo2_jax.config import ModelConfig
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.models.chat_model import ChatModel
    from plamo2_jax.quantize.config import QuantizeConfig
    from plamo2_jax.quantize.write import CalibrationConfig
    from plamo2_jax.serve.config import ServeConfig
    from plamo2_jax.surgery.merge.config import MergeConfig
    from plamo2_jax.train.config import RunConfig
    from plamo2_jax.train.loop import TrainResult
    from plamo2_jax.train.writers import WriterName

PathLike = str | os.PathLike[str]
"""A path."""


def load(
    name: PathLike,
    *,
    model: str | None = None,
    api_key_env: str | None = None,
    template: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 64,
    max_prompt_tokens: int = 4096,
) -> ChatModel:
    """Open a model that answers conversations, continues prompts and scores texts.

    Use the result as a context manager, or call its `close` at the end.

    Args:
        name: run folder, RUN@STEP, RUN@ema, folder in Hugging Face format, folder of LoRA adapters, or address of an OpenAI-compatible
            server (http://HOST/v1 or https://HOST/v1).
        model: name of the model on a server.
        api_key_env: name of the environment variable with the API key of a server; None: no key.
        template: chat template (`chat`, `translate`, a Jinja file or a folder with one); None: the model's own, or else `chat`.
        dtype: dtype of activations and matrices of a local model.
        batch_size: number of texts that a local model generates together.
        max_prompt_tokens: maximum number of tokens of a conversation.

    Raises:
        PlamoError: the folder is not a model or has no tokenizer, a value is out of range, or the API key is missing.
    """
    from plamo2_jax import models

    is_server = str(name).startswith(("http://", "https://"))
    others = (
        {"template": template, "dtype": None if dtype == "float32" else dtype}
        if is_server
        else {"api_key_env": api_key_env}
    )
    for field, value in others.items():
        if value is not None:
            kind = "the server" if is_server else "the folder"
            raise PlamoError(f"{field}={value!r} is not allowed with {kind} {name}: it has no effect there. Remove it")
    fields: dict[str, Any] = {"api_key_env": api_key_env, "template": template, "dtype": dtype}
    if model is not None:
        if not is_server:
            raise PlamoError(
                f"model={model!r} is not allowed with the folder {name}: it applies only to servers. Remove it"
            )
        fields["model"] = model
    return models.open(name, batch_size=batch_size, max_prompt_tokens=max_prompt_tokens, **fields)


@overload
def generate(  # type: ignore[overload-overlap]  # A text is also a sequence of texts.
    model: ChatModel | PathLike,
    prompts: str,
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    stop: Sequence[str] = ...,
    seed: int = ...,
) -> str: ...


@overload
def generate(
    model: ChatModel | PathLike,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    stop: Sequence[str] = ...,
    seed: int = ...,
) -> list[str]: ...


def generate(
    model: ChatModel | PathLike,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> str | list[str]:
    """Continue one prompt or several.

    Args:
        model: a model from `load`, or the name of one, which is opened for this call.
        prompts: a text or several texts. Control strings such as <|plamo:op|> in them are plain text.
        max_new_tokens: maximum number of tokens of each continuation.
        temperature: divisor of the logits; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together reach this probability; 1 is off.
        stop: strings that end a continuation; they are removed from it.
        seed: random seed. In float32, the same seed and prompt give the same text in any batch.

    Returns:
        The continuation, or a list of continuations for a list of prompts.

    Raises:
        PlamoError: the model cannot be opened, a value is out of range, or a prompt cannot be continued.
    """
    from plamo2_jax.models.chat_model import CompletionRequest

    if isinstance(model, str | os.PathLike):
        with load(model) as opened:
            return generate(
                opened,
                prompts,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                stop=stop,
                seed=seed,
            )
    settings = _settings(max_new_tokens, temperature, top_p, stop, seed)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    found = _texts(model.complete([CompletionRequest(text, **settings) for text in texts]))
    return found[0] if isinstance(prompts, str) else found


def chat(
    model: ChatModel | PathLike,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> str:
    """Answer a conversation.

    Args:
        model: a model from `load`, or the name of one, which is opened for this call.
        messages: a question, or the messages so far: objects with `role` (system, user or assistant) and `content`.
        max_new_tokens: maximum number of tokens of the answer.
        temperature: divisor of the logits; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together reach this probability; 1 is off.
        stop: strings that end the answer; they are removed from it.
        seed: random seed.

    Returns:
        The text of the answer.

    Raises:
        PlamoError: the model cannot be opened, a value is out of range, or the chat template refuses the conversation.
    """
    from plamo2_jax.models.chat_model import ChatRequest

    settings = _settings(max_new_tokens, temperature, top_p, stop, seed)
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    request = ChatRequest("chat", conversation, **settings)
    if isinstance(model, str | os.PathLike):
        with load(model) as opened:
            return _texts(opened.chat([request]))[0]
    return _texts(model.chat([request]))[0]


def train_model(config: RunConfig | PathLike, *, metrics: Sequence[WriterName] = ("tensorboard",)) -> TrainResult:
    """Train a model, or resume its training, as `plamo2 pretrain`, `sft` and `dpo` do. The task of the config selects pretraining,
    distillation, SFT or DPO.

    Ctrl-C and SIGTERM save a checkpoint and end the run; the same call resumes it. In a job of several processes, each one first calls
    `plamo2_jax.train.processes.join`.

    Args:
        config: the run, or a Python file that sets `config = RunConfig(...)`.
        metrics: where to log metrics in addition to metrics.jsonl: tensorboard, wandb (Weights & Biases, extra `wandb`), or both.

    Returns:
        The number of updates, the signal that stopped the run, if any, and the last measurements on held-out data. The model is in
        `config.folder`; a run with LoRA also has its adapters there, in PEFT's layout.

    Raises:
        PlamoError: a file of the configuration is missing or invalid, the folder has a run with another configuration, the package of a
            place in `metrics` is not installed or the place is unknown, or the loss diverged.
    """
    from plamo2_jax.config_file import load_config
    from plamo2_jax.eval.in_training import open_benchmarks
    from plamo2_jax.train.config import RunConfig
    from plamo2_jax.train.loop import train

    run: RunConfig = config if isinstance(config, RunConfig) else load_config(Path(config), RunConfig)
    result = train(run, open_benchmarks=open_benchmarks, writers=metrics)
    if result.signal is None and getattr(run.task, "lora", None) is not None:
        from plamo2_jax.adapters.peft import write_run_adapter

        write_run_adapter(run.folder)
    return result


def evaluate_model(
    model: PathLike,
    *,
    tasks: Sequence[str] = (),
    heldout: Mapping[str, PathLike] | None = None,
    data: Mapping[str, PathLike] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    output: PathLike | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on benchmark tasks and on held-out data. `plamo2 evaluate` has more settings, judges, comparisons and a report.

    Args:
        model: run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters.
        tasks: names of benchmark tasks; `plamo2 evaluate --list` prints them.
        heldout: paths by name: folders of shards, or text or conversations in any format that `plamo2 data prepare` or `sft` reads.
        data: data of tasks that is not part of this package: paths by the name of the task.
        limit: maximum number of items of each task, the same number from each group; None: all.
        batch_size: batch size of the model in tasks.
        output: folder for the results of tasks, with all answers. A second call with this folder reuses the stored answers. None: nothing
            is written.

    Returns:
        For each task, its result with `score`, `stderr` and `metrics`; for each held-out set, its metrics, such as `bits_per_byte`.

    Raises:
        PlamoError: the model or its tokenizer cannot be read, a task is unknown or needs data or a judge, a name occurs twice, or there is
            nothing to evaluate.
    """
    from plamo2_jax.align.heldout import measure_heldout
    from plamo2_jax.eval.run import run_task
    from plamo2_jax.eval.task import TaskOptions
    from plamo2_jax.eval.tasks import open_task
    from plamo2_jax.models.local import LocalChatModel

    if isinstance(tasks, str) or not isinstance(heldout or {}, Mapping) or not isinstance(data or {}, Mapping):
        raise PlamoError("tasks must be a list of names, and heldout and data must be dictionaries of paths by name")
    if limit is not None and limit < 1:
        raise PlamoError(f"limit={limit} is not allowed: it must be at least 1, or None")
    heldout, data = heldout or {}, data or {}
    if twice := set(tasks) & set(heldout):
        raise PlamoError(f"{min(twice)!r} names a task and a held-out set: give the held-out set another name")
    if unused := set(data) - set(tasks):
        raise PlamoError(f"data names {min(unused)!r}, which is not one of the tasks {', '.join(tasks) or '(none)'}")
    if not tasks and not heldout:
        raise PlamoError("there is nothing to evaluate: give tasks, heldout or both")
    results: dict[str, dict[str, Any]] = {}
    if tasks:
        with load(model, batch_size=batch_size) as opened:
            count = None
            if isinstance(opened, LocalChatModel):
                tokenizer = opened.tokenizer

                def count(text: str) -> int:
                    return len(tokenizer.encode(text))

            for name in tasks:
                path = Path(data[name]) if name in data else None
                task = open_task(name, TaskOptions(path=path, count_tokens=count))
                folder = None if output is None else Path(output) / name
                results[name] = run_task(task, opened, folder=folder, limit=limit, batch_size=4 * batch_size)
    if heldout:
        results |= {name: found.metrics for name, found in measure_heldout(model, heldout).items()}
    return results


def convert_model(
    source: PathLike,
    output: PathLike,
    layout: Literal["hf", "run", "gguf"] = "hf",
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    with_code: bool = False,
) -> ModelConfig:
    """Convert a model between run folders, Hugging Face format and GGUF files.

    Args:
        source: run folder, RUN@STEP or RUN@ema; for `run`, a folder in Hugging Face format; for `gguf`, either.
        output: folder or GGUF file to create: it must not exist, or must be an empty folder.
        layout: hf: Hugging Face format (config.json and safetensors), for transformers, vLLM and others. run: a run folder of this project.
            gguf: a file for llama.cpp, with the dtypes of a quantized model, or else float16. Needs the extra `gguf`.
        dtype: dtype of the files of hf and run; None: the dtype of the source.
        with_code: hf: also write the model and its tokenizer as Python files for `trust_remote_code=True`.

    Returns:
        The config of the model.

    Raises:
        PlamoError: the source is not a model or is damaged, or the output already exists.
    """
    if with_code and layout != "hf":
        raise PlamoError(f"with_code is not allowed with layout={layout}: it applies only to hf. Remove it")
    if layout == "gguf":
        from plamo2_jax.convert.gguf import to_gguf

        if dtype is not None:
            raise PlamoError(f"dtype={dtype} is not allowed with layout=gguf: it applies only to hf and run. Remove it")
        return to_gguf(source, output).config
    if layout == "run":
        from plamo2_jax.convert.hf import from_public

        return from_public(source, output, dtype=dtype)
    if layout == "hf":
        from plamo2_jax.convert.hf import to_public

        return to_public(source, output, dtype=dtype, with_code=with_code)
    raise PlamoError(f"layout={layout!r} is not allowed: it must be hf, run or gguf")


def prune_model(
    model: PathLike,
    output: PathLike,
    target: ModelConfig | Mapping[str, int] | PathLike,
    *,
    calibration: PathLike,
    method: Literal["activation", "taylor", "magnitude", "random"] = "activation",
    batches: int = 8,
    batch_size: int = 8,
    sequence_length: int = 512,
    seed: int = 0,
) -> ModelConfig:
    """Prune a model to a smaller shape by importance on calibration data. `plamo2 prune` can also search shapes within a budget.

    Args:
        model: run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format.
        output: folder in Hugging Face format to create: it must not exist or must be empty.
        target: target shape: the sizes to change, such as {"hidden_size": 512}; a `ModelConfig`, a preset, a config.json or the folder of
            a model. Only the sizes are used.
        calibration: folder of shards that `plamo2 data prepare` wrote with the model's tokenizer.
        method: how channels are ranked.
        batches: number of calibration batches.
        batch_size: rows per batch.
        sequence_length: positions per row.
        seed: random seed of the order of the data.

    Returns:
        The config of the pruned model. To train it further, use it as `init_from` of a `RunConfig`.

    Raises:
        PlamoError: the model or the calibration data cannot be read, the target is not a smaller shape of the model, or the output already
            exists.
    """
    from plamo2_jax.surgery.prune.write import prune_model
    from plamo2_jax.surgery.shapes import read_shape, require_sizes, with_sizes

    old = read_shape(os.fspath(model))
    if isinstance(target, Mapping):
        if not target:
            raise PlamoError("target={} is not allowed: it must have the sizes to change")
        changes = [f"{field}={json.dumps(size)}" for field, size in target.items()]
        require_sizes(changes)
        wanted = read_shape(os.fspath(model), changes)
    else:
        wanted = target if isinstance(target, ModelConfig) else read_shape(os.fspath(target))
    return prune_model(
        model,
        output,
        [with_sizes(old, wanted)],
        calibration=calibration,
        method=method,
        batches=batches,
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
    )


def merge_models(
    models: Sequence[PathLike],
    output: PathLike,
    config: MergeConfig | None = None,
    *,
    base: PathLike | None = None,
) -> None:
    """Merge models with the same shape and the same tokenizer, tensor by tensor, into a folder in Hugging Face format.

    Args:
        models: run folders, RUN@STEP or RUN@ema, or folders in Hugging Face format.
        output: folder to create: it must not exist or must be empty.
        config: merge method and its settings; None: the mean of the weights.
        base: model that the others were trained from, for the methods that merge differences.

    Raises:
        PlamoError: a model cannot be read, the models differ in shape or tokenizer, a setting is out of range, or the output already
            exists.
    """
    from plamo2_jax.surgery.merge.config import MergeConfig
    from plamo2_jax.surgery.merge.merge import merge

    if isinstance(models, str | os.PathLike):
        raise PlamoError(f"models={os.fspath(models)!r} is one path: it must be a list of models")
    merge(
        [os.fspath(model) for model in models],
        Path(output),
        config or MergeConfig("linear"),
        base=None if base is None else os.fspath(base),
    )


def quantize_model(
    model: PathLike,
    output: PathLike,
    config: QuantizeConfig | None = None,
    *,
    calibration: CalibrationConfig | None = None,
    budget: int | None = None,
) -> str:
    """Quantize the matrices of a model, and write a run folder. An interrupted call resumes after the last finished layer.

    Args:
        model: run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format.
        output: folder to create: it must not exist or must be empty.
        config: method, bits and exceptions; None: 8 bits, rounded to nearest.
        calibration: data for the methods that measure activations; None: bundled Japanese and English text.
        budget: largest size of all parameters, in bytes. Matrices get 4 bits instead of 8 until the model fits.

    Returns:
        A text table with the sizes and errors of each part of the network.

    Raises:
        PlamoError: the model or the calibration data cannot be read, the output is in the way, or no choice of bits fits the budget.
    """
    from plamo2_jax.quantize.write import quantize_model

    return quantize_model(model, output, config, calibration=calibration, budget=budget).table


def serve_model(
    model: PathLike,
    config: ServeConfig | None = None,
    *,
    name: str | None = None,
    template: str | None = None,
    adapters: Mapping[str, PathLike] | None = None,
    api_key_file: PathLike | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Serve a model over HTTP with OpenAI's endpoints and a chat page, until Ctrl+C or SIGTERM. Needs the extra `serve`.

    Call this in the main thread.

    Args:
        model: run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters.
        config: address, sizes and limits; None: port 8000 of this machine.
        name: name of the model for clients; None: the name of its folder.
        template: chat template; None: the model's own. A model without one has no chat endpoint.
        adapters: folders of LoRA adapters on the same base, by the names under which they are served.
        api_key_file: file with an API key on each line. The environment variable PLAMO2_API_KEY may hold another one.
        dtype: dtype of activations and matrices; None: float32 on CPU and bfloat16 elsewhere.

    Raises:
        PlamoError: the extra serve is not installed, the model cannot be loaded, or the address is in use.
    """
    from plamo2_jax.serve.run import serve_model

    serve_model(
        model,
        config,
        name=name,
        template=template,
        adapters=adapters,
        api_key_file=api_key_file,
        dtype=dtype,
    )


def _settings(max_new_tokens: int, temperature: float, top_p: float, stop: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the fields of a request."""
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig

    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    return {
        "sampling": SamplingConfig(temperature=temperature, top_p=top_p),
        "stop": StopConfig(max_new_tokens, strings=strings),
        "seed": seed,
    }


def _texts(results: Sequence[Any]) -> list[str]:
    """Return the first text of each result; raise the first error."""
    from plamo2_jax.models.chat_model import RequestError

    for i, result in enumerate(results):
        if isinstance(result, RequestError):
            raise PlamoError(result.reason if len(results) == 1 else f"prompt {i}: {result.reason}")
    return [responses[0].text for responses in results]
