"""`plamo2 convert`: convert models from and to Hugging Face format, and to GGUF."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call_subcommand
from plamo2_jax.errors import PlamoError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def from_hf(
    source: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Convert a folder in Hugging Face format (config.json, safetensors, tokenizer.jsonl) to a run folder.

    Only safetensors files are read, never pickle files, and no code in the folder is run. Without --dtype, the conversion is bit-exact. The
    chat template in chat_template.jinja or tokenizer_config.json is copied. Symbolic links that lead out of the folder are refused.

    Args:
        source: Folder with config.json and model.safetensors, or with model.safetensors.index.json and its files. A snapshot folder of
            the Hugging Face cache is allowed.
        output: Run folder to create: it must not exist, or it must be empty.
        dtype: Dtype of the written parameters. Default: the dtype of the files. Training and inference read both into float32.
    """
    from plamo2_jax.convert.hf import from_public

    with progress("reading") as advance:
        config = from_public(source, output, dtype=dtype, on_read=advance)
    print(f"{output}: {config.parameter_count():,} parameters")


def to_hf(
    source: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    step: int | None = None,
    ema: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_shard_size: str = "5GB",
    with_code: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    languages: tuple[str, ...] = (),
) -> None:
    """Convert a run folder to a folder in Hugging Face format, for transformers, vLLM and other programs.

    The tokenizer is written as tokenizer.jsonl and as tokenizer.json, which AutoTokenizer in transformers loads without remote code. A
    quantized model is written in the compressed-tensors format. README.md is the model card.

    Args:
        source: Run folder, such as runs/demo, or one of its checkpoints: RUN@STEP, RUN@ema or RUN@STEP,ema.
        output: Folder to create: it must not exist, or it must be empty.
        step: Step of the checkpoint, instead of RUN@STEP. Default: the newest.
        ema: Write the moving average of the parameters, which runs with ema_decay keep, instead of the parameters.
        dtype: Dtype of the files. Default: the dtype of the checkpoint.
        max_shard_size: Largest size of one safetensors file: a number of bytes, or a number with the unit KB, MB, GB, KiB, MiB or GiB.
        with_code: Also write the model (plain PyTorch) and the exact tokenizer as Python files, for programs that load the folder with
            trust_remote_code=True. AutoTokenizer and AutoModelForCausalLM then require that option.
        base_model: Name of the base model on the Hugging Face Hub, for README.md.
        license: Licence of the weights as an identifier of the Hub, such as apache-2.0, for README.md.
        languages: Language codes for README.md, such as ja en. Default: the languages in the names of the run's data.
    """
    from plamo2_jax.convert.hf import to_public
    from plamo2_jax.convert.model_card import CardOptions
    from plamo2_jax.convert.small_files import TOKENIZER_JSON

    size = parse_size(max_shard_size)
    with progress("writing") as advance:
        options = {"step": step, "ema": ema, "dtype": dtype, "max_shard_bytes": size, "with_code": with_code}
        options["card"] = CardOptions(base_model, license, languages)
        config = to_public(source, output, **options, on_write=advance)
    print(f"{output}: {config.parameter_count():,} parameters")
    if (output / TOKENIZER_JSON).exists():
        print(
            f"{TOKENIZER_JSON}: encodes like tokenizer.jsonl, but chooses differently between segmentations of "
            "equal cost: 0.05 % of the token boundaries of the bundled corpus differ (docs/checkpoints.md)"
        )


def to_gguf(
    source: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    step: int | None = None,
    ema: bool = False,
    context_length: int | None = None,
) -> None:
    """Convert a model to a GGUF file, for llama.cpp.

    The file contains the tokenizer and the chat template. Norms, biases, per-head scales and convolutions are F32. With q8_0 and q4_0, the
    projections for B, C and dt are F16; with q4_0, the output projections of Mamba layers are F16, and embedding and head are Q8_0. The
    integers of a quantized model are kept. llama.cpp has no attention window for PLaMo 2, so its results are correct for up to
    attention_window_size + 1 tokens only.

    Args:
        source: Run folder, such as runs/demo, one of its checkpoints (RUN@STEP, RUN@ema or RUN@STEP,ema), or folder in Hugging Face format.
        output: File to create, such as model.gguf: it must not exist.
        type: Type of most matrices. Default: the type of a quantized model, otherwise f16.
        step: Step of the checkpoint, instead of RUN@STEP. Default: the newest.
        ema: Write the moving average of the parameters, which runs with ema_decay keep, instead of the parameters.
        context_length: Context length in the file's metadata, in tokens. Default: the largest number of tokens for which llama.cpp computes
            the same results.
    """
    from plamo2_jax.convert import gguf
    from plamo2_jax.convert.gguf_layout import count_types

    options = {"kind": type, "step": step, "ema": ema, "context_length": context_length}
    with progress("writing") as advance:
        written = gguf.to_gguf(source, output, **options, on_write=advance)
    for note in written.notes:
        print(f"warning: {source}: {note}", file=sys.stderr)
    parameters = written.config.parameter_count()
    print(f"{output}: {parameters:,} parameters, {written.bytes:,} bytes, tensors: {count_types(written.tensors)}")


def parse_size(text: str, option: str = "--max-shard-size") -> int:
    """Return the number of bytes of a size such as 5GB, 500 MiB or 1000000; raise PlamoError if the text is not a size."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = match and _UNITS.get(match[2].upper().removesuffix("B") + "B" if match[2] else "")
    size = int(float(match[1]) * unit) if unit else 0
    if size < 1:
        raise PlamoError(f"{option} {text!r} is not a size: it must be like 5GB, 500MiB or 1000000")
    return size


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `advance(done, total)`, which updates a progress bar in bytes."""
    from plamo2_jax.progress import tqdm

    with tqdm(desc=what, unit="B", unit_scale=True, delay=1) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        yield advance


SUBCOMMANDS = {"from-hf": from_hf, "to-hf": to_hf, "to-gguf": to_gguf}


def main(argv: list[str]) -> int | None:
    """Run the command."""
    return call_subcommand(SUBCOMMANDS, argv, "plamo2 convert")
