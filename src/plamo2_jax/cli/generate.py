"""`plamo2 generate MODEL --prompt ...`: continue prompts; `plamo2 generate MODEL --chat ...`: answer messages."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.cli.decode_mesh import DecodeMesh
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from plamo2_jax.engine.generator import Prompt
    from plamo2_jax.tokenizer.chat_template import ChatTemplate
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

MAX_PROMPT_BYTES = 64 << 20
"""Largest size of a prompt file."""

Several = tyro.conf.UseAppendAction


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Continue prompts (--prompt) or answer chat messages (--chat).

    Several prompts run as one batch. In float32, each text depends only on its own prompt and the seed; in bfloat16, also on the number of
    prompts. A text ends at the model's end-of-document token, at a stop string or id, or after --max-new-tokens.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, RUN@STEP or RUN@ema, a folder in Hugging Face format, or a folder of adapters."""
    prompt: Several[tuple[str, ...]] = ()
    """Text to continue; may be given several times. Default: the model starts a new document."""
    prompt_file: Several[tuple[Path, ...]] = ()
    """File with one prompt; "-" is standard input. May be given several times. A newline at the end of the file is part of the prompt. A
    byte order mark is removed, and CRLF line ends become LF."""
    chat: Several[tuple[str, ...]] = ()
    """User message to answer; may be given several times. Each message starts a separate conversation."""
    system: str | None = None
    """System message of every --chat conversation."""
    template: str | None = None
    """Chat template of --chat: chat, translate, a Jinja file, or a folder that has one. Default: the model's own, or chat if the
    model has no template."""
    max_new_tokens: int = 256
    """Maximum number of new tokens."""
    min_new_tokens: int = 0
    """Minimum number of new tokens."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens."""
    top_p: float = 0.95
    """Sample from the most likely tokens that together reach this probability; 1 is off."""
    min_p: float = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens less likely that occur in the prompt or in the text so far."""
    presence_penalty: float = 0.0
    """Value subtracted from the logits of tokens that were generated before; 0 is off."""
    frequency_penalty: float = 0.0
    """Value subtracted from the logit of a token for each time it was generated before; 0 is off."""
    seed: int = 0
    """Random seed."""
    samples: int = 1
    """Number of samples per prompt."""
    stop: Several[tuple[str, ...]] = ()
    """Stop string, which is removed from the text; may be given several times."""
    stop_id: Several[tuple[int, ...]] = ()
    """Token id to stop at, in addition to bos, eos and op; may be given several times."""
    allow_control: bool = False
    """Encode control strings such as <|plamo:op|> in --prompt and --prompt-file as control tokens. By default they are encoded as text. Use
    this option only for prompts you wrote yourself. --chat does not need it."""
    stream: bool = True
    """Print the text while it is generated. Several texts are printed when all are complete."""
    json: bool = False
    """Print one JSON object per text: prompt, sample, text, token_ids, logprobs, finish_reason."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of activations and matrices. Default: float32 on CPU, bfloat16 elsewhere."""
    kv_cache: Literal["int8"] | None = None
    """Dtype of cached keys and values. int8 needs about a quarter of the memory of float32; the state of Mamba layers stays in float32.
    Default: the dtype of the activations."""
    mesh: DecodeMesh = dataclasses.field(default_factory=DecodeMesh)
    """Devices over which the model is sharded."""
    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""
    tokenizer: Path | None = None
    """A tokenizer.jsonl, or the folder that contains it, instead of the model's own."""


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(GenerateOptions, argv, "plamo2 generate")
    from plamo2_jax.engine.generator import default_stop_ids
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig
    from plamo2_jax.models.local import open_generator
    from plamo2_jax.models.stop_ids import end_ids

    sampling = SamplingConfig(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.presence_penalty,
        options.frequency_penalty,
    )
    stops = StopConfig(options.max_new_tokens, options.min_new_tokens, options.stop_id, options.stop)
    if options.chat and (options.prompt or options.prompt_file):
        raise PlamoError("--chat cannot be combined with --prompt or --prompt-file: give only one of them")
    for option, value in (("--system", options.system), ("--template", options.template)):
        if value is not None and not options.chat:
            raise PlamoError(f"{option} applies only to --chat: add --chat MESSAGE, or remove {option}")
    texts = [*options.chat] or [*options.prompt, *map(read_prompt, options.prompt_file)] or [""]
    chat_template = open_template(options.model, options.template) if options.chat else None
    generator, _ = open_generator(
        options.model,
        step=options.step,
        dtype=options.dtype,
        tokenizer=options.tokenizer,
        mesh=options.mesh.make(),
        key_dtype=options.kv_cache,
    )
    stop_ids = (*default_stop_ids(generator.model, generator.tokenizer), *options.stop_id)
    prompts: Sequence[Prompt] = texts
    if chat_template is not None:
        prompts = [chat_prompt(chat_template, generator.tokenizer, text, options.system) for text in texts]
        stop_ids = (*stop_ids, *end_ids(chat_template, generator.tokenizer))
    elif not options.allow_control:
        warn_of_control_strings(texts, generator.tokenizer)
    generation = generator.stream(
        prompts,
        sampling=sampling,
        stop=dataclasses.replace(stops, ids=stop_ids),
        seed=options.seed,
        samples=options.samples,
        allow_control=options.allow_control,
    )
    rows = [(text, sample) for text in texts for sample in range(options.samples)]
    begun = time.perf_counter()
    if options.stream and len(rows) == 1 and not options.json:
        for _, piece in generation:
            print(piece, end="", flush=True)
        print()
    else:
        total = len(rows) * options.max_new_tokens
        with tqdm(total=total, desc="generate", unit="token", delay=2) as bar:
            for _ in generation:
                bar.update(generation.tokens_generated - bar.n)
    for number, ((text, sample), completion) in enumerate(zip(rows, generation.results(), strict=True), start=1):
        if options.json:
            row = {"prompt": text, "sample": sample, **dataclasses.asdict(completion)}
            print(json.dumps(row, ensure_ascii=False))
        elif len(rows) > 1:
            print(f"[{number}/{len(rows)}] {text}\n{completion.text}\n")
        elif not options.stream:
            print(completion.text)
    seconds, count = time.perf_counter() - begun, generation.tokens_generated
    reasons = ", ".join(dict.fromkeys(completion.finish_reason for completion in generation.results()))
    print(f"{count} tokens in {seconds:.1f} s, including compilation; finish reasons: {reasons}", file=sys.stderr)


def read_prompt(path: Path) -> str:
    """Return the text of a prompt file, without a byte order mark and with LF line ends; refuse large files and other encodings."""
    piped = str(path) == "-"
    name = "standard input" if piped else str(path)
    with contextlib.nullcontext(sys.stdin.buffer) if piped else path.open("rb") as file:
        data = file.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise PlamoError(f"--prompt-file: {name} is too large: a prompt may have at most {MAX_PROMPT_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlamoError(f"--prompt-file: {name} is not UTF-8 (byte {error.start}): save the file as UTF-8") from None
    if "\r\n" in text:
        print(f"--prompt-file: CRLF line ends of {name} are read as LF", file=sys.stderr)
    return text.replace("\r\n", "\n")


def warn_of_control_strings(texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Print a warning with the control strings in prompts that are encoded as text."""
    if found := dict.fromkeys(string for text in texts for string in tokenizer.control_strings_in(text)):
        print(
            f"warning: {', '.join(found)} in the prompt is encoded as text, not as a control token; use --chat for chat models, or"
            " --allow-control for prompts you wrote yourself",
            file=sys.stderr,
        )


def open_template(folder: Path, template: str | None) -> ChatTemplate:
    """Return the chat template that --template names, otherwise the model's own, otherwise `chat`."""
    from plamo2_jax.adapters.open import model_folders
    from plamo2_jax.storage import located
    from plamo2_jax.tokenizer.chat_template import ChatTemplate
    from plamo2_jax.tokenizer.template_files import find_template

    if template is not None:
        return ChatTemplate.load(template)
    folders = model_folders(folder)
    # A folder that does not exist is reported when the model is loaded.
    if located(folders[0]).exists() and find_template(*folders) is None:
        print(
            f"{folders[0]} has no chat template; using the built-in template `chat` (--template changes it)",
            file=sys.stderr,
        )
    return ChatTemplate.of_model(*folders)


def chat_prompt(template: ChatTemplate, tokenizer: Tokenizer, message: str, system: str | None) -> np.ndarray:
    """Return the token ids [t] int32 of a conversation with one message, up to the start of the answer."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": message})
    return template.encode(tokenizer, messages, add_generation_prompt=True).ids
