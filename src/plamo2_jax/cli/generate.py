"""`plamo2 generate MODEL --prompt ...`: continue prompts."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call

if TYPE_CHECKING:
    from plamo2_jax.infer.generate import Generator
    from plamo2_jax.infer.generation import Completion, Generation

Several = tyro.conf.UseAppendAction


def generate(
    model: Annotated[Path, tyro.conf.Positional],
    *,
    prompt: Several[tuple[str, ...]] = (),
    prompt_file: Several[tuple[Path, ...]] = (),
    max_new_tokens: int = 256,
    min_new_tokens: int = 0,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    samples: int = 1,
    stop: Several[tuple[str, ...]] = (),
    stop_id: Several[tuple[int, ...]] = (),
    allow_control: bool = False,
    stream: bool = True,
    json: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
    step: int | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Continue prompts. Several prompts run as one batch; the text of a prompt depends on the prompt and the seed only.

    A text ends at the model's end-of-document token, at a stop string or id, or after --max-new-tokens.

    Args:
        model: A run folder, or a folder of the public layout.
        prompt: Text to continue; may be given several times. Without any prompt the model begins a document.
        prompt_file: File whose whole text, without its last newline, is a prompt; "-" is standard input. May be given several times.
        max_new_tokens: Maximum number of new tokens.
        min_new_tokens: Minimum number of new tokens.
        temperature: Divisor of the logits; 0 always takes the likeliest token.
        top_k: Sample from the k likeliest tokens.
        top_p: Sample from the likeliest tokens that together reach this probability; 1 is off.
        min_p: Sample from tokens at least this fraction as likely as the likeliest; 0 is off.
        repetition_penalty: Values above 1 make tokens of the prompt and of the text so far less likely.
        seed: Random seed.
        samples: Samples per prompt.
        stop: Stop string, which is cut off; may be given several times.
        stop_id: Token id to stop at, in addition to bos, eos and op; may be given several times.
        allow_control: Read control strings such as <|plamo:op|> in prompts as control tokens. Not for text of others.
        stream: Print a single text while it is generated; several are printed when all are done.
        json: Print one JSON object per text: prompt, sample, text, token_ids, logprobs, finish_reason.
        dtype: Dtype of activations and matrices; left out, float32 on CPU and bfloat16 elsewhere.
        step: Which checkpoint of a run folder; left out, the newest.
        tokenizer: A tokenizer.jsonl, or the folder that holds it, instead of the model's own.
    """
    from plamo2_jax.infer.generate import default_stop_ids
    from plamo2_jax.infer.sampling import SamplingConfig
    from plamo2_jax.infer.stop import StopConfig

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    stops = StopConfig(max_new_tokens, min_new_tokens, stop_id, stop)
    prompts = [*prompt, *map(read_prompt, prompt_file)] or [""]
    generator = open_generator(model, step, dtype, tokenizer)
    stop_ids = (*default_stop_ids(generator.model, generator.tokenizer), *stop_id)
    generation = generator.stream(
        prompts,
        sampling=sampling,
        stop=dataclasses.replace(stops, ids=stop_ids),
        seed=seed,
        samples=samples,
        allow_control=allow_control,
    )
    rows = [(text, sample) for text in prompts for sample in range(samples)]
    begun = time.perf_counter()
    if stream and len(rows) == 1 and not json:
        for _, piece in generation:
            print(piece, end="", flush=True)
        print()
    else:
        show_progress(generation, len(rows) * max_new_tokens)
    for row, ((text, sample), completion) in enumerate(zip(rows, generation.results(), strict=True)):
        if json:
            print(as_json(text, sample, completion))
        elif len(rows) > 1:
            print(f"[{row + 1}/{len(rows)}] {text}\n{completion.text}\n")
        elif not stream:
            print(completion.text)
    seconds, count = time.perf_counter() - begun, generation.tokens_generated
    reasons = ", ".join(dict.fromkeys(completion.finish_reason for completion in generation.results()))
    print(f"{count} tokens in {seconds:.1f} s with compilation; ended by: {reasons}", file=sys.stderr)


def read_prompt(path: Path) -> str:
    """The text of a prompt file without its last newline.

    Raises:
        ValueError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        name = "standard input" if str(path) == "-" else str(path)
        raise ValueError(f"--prompt-file: {name} is not UTF-8 (byte {error.start})") from None


def open_generator(folder: Path, step: int | None, dtype: str | None, tokenizer: Path | None) -> Generator:
    """Load a model and its tokenizer.

    Raises:
        ValueError: the folder is no model, or no tokenizer is to be found.
    """
    import jax.numpy as jnp

    from plamo2_jax.convert.load import load_model
    from plamo2_jax.infer.generate import Generator
    from plamo2_jax.infer.weights import cast_matrices
    from plamo2_jax.model import Plamo2
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    loaded = load_model(folder, step=step)
    vocabulary = loaded.tokenizer if tokenizer is None else Tokenizer.load(tokenizer)
    if vocabulary is None:
        raise ValueError(f"{folder} has no tokenizer.jsonl; give one with --tokenizer")
    network = Plamo2(loaded.config, dtype=None if dtype is None else jnp.dtype(dtype))
    return Generator(network, cast_matrices(network, loaded.params), vocabulary)


def show_progress(generation: Generation, total: int) -> None:
    """Run a generation to its end under a progress bar of tokens."""
    from plamo2_jax.progress import tqdm

    with tqdm(total=total, desc="generate", unit="token", delay=2) as bar:
        for _ in generation:
            bar.update(generation.tokens_generated - bar.n)


def as_json(prompt: str, sample: int, completion: Completion) -> str:
    """One row as a line of JSON."""
    return json.dumps({"prompt": prompt, "sample": sample, **dataclasses.asdict(completion)}, ensure_ascii=False)


def main(argv: list[str]) -> None:
    """Runs `plamo2 generate`."""
    call(generate, argv, "plamo2 generate")
