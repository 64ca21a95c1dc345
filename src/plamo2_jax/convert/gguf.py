"""Writing models as GGUF files, for llama.cpp and the programs that use it.

The package gguf writes the header. The header determines the offset of every tensor, so the tensors are written in the order in which they
are read: one array at a time from a run folder, and one tensor at a time from a folder in Hugging Face format.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import Progress
from plamo2_jax.convert.compressed_read import holds_compressed
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.gguf_keys import add_network, add_tokenizer, describe_differences, exact_context, rope_base
from plamo2_jax.convert.gguf_layout import (
    FileType,
    GgufTensor,
    check_type,
    default_type,
    describe_conversion,
    gguf_tensors,
)
from plamo2_jax.convert.gguf_sources import Piece, leaves_of_run, pieces_of_leaves, pieces_of_public
from plamo2_jax.convert.load import is_run_folder, load_model, read_tokenizer
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import read_public_config
from plamo2_jax.public_config import LONGEST
from plamo2_jax.storage import allocate, new_file, new_parents, require_local
from plamo2_jax.tokenizer.template_files import find_template
from plamo2_jax.tokenizer.tokenizer import Tokenizer

ALIGNMENT = 32
"""Tensors begin at multiples of this number of bytes."""


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A written file.

    Attributes:
        config: Shape of the model.
        tensors: Tensors of the file.
        bytes: Size of the file.
        notes: Sentences about matrices that do not have the expected type, and about what llama.cpp computes differently.
    """

    config: ModelConfig
    tensors: list[GgufTensor]
    bytes: int
    notes: list[str]


def to_gguf(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    kind: FileType | None = None,
    step: int | None = None,
    ema: bool = False,
    context_length: int | None = None,
    on_write: Progress | None = None,
) -> GgufFile:
    """Read a model and write a GGUF file. For a model that is not quantized, only one array at a time is in memory.

    Args:
        source: Run folder, RUN@STEP or RUN@ema, or folder in Hugging Face format. It must have a tokenizer.jsonl.
        output: File to create; it must not exist.
        kind: Type of most matrices; None: the type of a quantized model, or f16. Norms, biases, per-head scales and convolutions are F32.
        step: Step of the checkpoint; None: the step in `source`, or else the newest.
        ema: Write the moving average of the parameters instead of the parameters.
        context_length: Number of tokens that the file states as its context; None: the number up to which llama.cpp computes what this
            model computes.
        on_write: Called after each block written with its bytes and the bytes of all tensors.

    Raises:
        PlamoError: A file or tensor is missing or damaged, a parameter is not finite, or GGUF cannot hold the model. The message names the
            cause. No file is left behind.
    """
    name = ModelName.parse(source, step=step, ema=ema)
    folder = name.folder
    leaves: Mapping[str, Any] = {}
    quantized = checkpoint.is_quantized(folder) if is_run_folder(folder) else holds_compressed(folder)
    if quantized:
        loaded = load_model(folder, step=name.step, ema=name.ema, quantized=True)
        config, leaves = loaded.config, flax.traverse_util.flatten_dict(loaded.params, sep="/")
        kind = default_type(leaves.values()) if kind is None else kind

        def pieces(tensors: list[GgufTensor]) -> Iterable[Piece]:
            return pieces_of_leaves(leaves.items(), tensors)

    elif is_run_folder(folder):
        checkpoint.require_model(folder)
        config = checkpoint.read_model_config(folder)

        def pieces(tensors: list[GgufTensor]) -> Iterable[Piece]:
            return pieces_of_leaves(leaves_of_run(name, config), tensors)

    elif name.step is not None or name.ema:
        raise ConvertError(f"{folder} is a folder in Hugging Face format, which has no steps: remove the step")
    else:
        config = read_public_config(folder)

        def pieces(tensors: list[GgufTensor]) -> Iterable[Piece]:
            return pieces_of_public(folder, config, tensors)

    tokenizer = read_tokenizer(folder, config)
    if tokenizer is None:
        raise ConvertError(f"{folder} has no tokenizer.jsonl, which a GGUF file must contain. Copy it into the folder")
    template = find_template(folder)
    about = _About(
        config,
        tokenizer,
        template=None if template is None else template.source,
        kind="f16" if kind is None else kind,
        context_length=context_length,
        name=folder.resolve().name,
    )
    return _write(Path(output), about, leaves, pieces, on_write)


def write_gguf(
    output: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    kind: FileType | None = None,
    template: str | None = None,
    context_length: int | None = None,
    name: str = "plamo2",
    on_write: Progress | None = None,
) -> GgufFile:
    """Write parameters in memory as a GGUF file. Other arguments, the result and the errors are the same as for `to_gguf`.

    Args:
        output: File to create; it must not exist.
        params: Parameter tree, with or without stacked layers: NumPy arrays, JAX arrays that are addressable by this process, and
            `QuantizedArray`. Integers without zero points, in groups of a multiple of 32 inputs, are written as they are.
        tokenizer: Vocabulary; the embedding may have more rows.
        template: Source of the chat template.
        name: Name of the model for users.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    kind = default_type(leaves.values()) if kind is None else kind
    about = _About(config, tokenizer, template, kind, context_length, name)
    return _write(Path(output), about, leaves, lambda tensors: pieces_of_leaves(leaves.items(), tensors), on_write)


@dataclasses.dataclass(frozen=True)
class _About:
    """What a file states besides its tensors."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: str | None
    kind: FileType
    context_length: int | None
    name: str

    def __post_init__(self) -> None:
        rope_base(self.config)
        if self.context_length is not None and not 1 <= self.context_length <= LONGEST:
            raise ConvertError(
                f"context_length={self.context_length} is not allowed: it must be from 1 to {LONGEST:,} tokens"
            )

    @property
    def context(self) -> int:
        """The context length of the file."""
        return exact_context(self.config) if self.context_length is None else self.context_length


def _write(
    output: Path,
    about: _About,
    leaves: Mapping[str, Any],
    pieces: Callable[[list[GgufTensor]], Iterable[Piece]],
    on_write: Progress | None,
) -> GgufFile:
    """Write a file; `leaves` are the parameters by path if they may be quantized."""
    if importlib.util.find_spec("gguf") is None:
        raise ConvertError(
            "writing a GGUF file needs the package gguf: install this project with the extra gguf, as in pip install '.[gguf]'"
        )
    require_local(output)
    if os.path.lexists(output):
        raise ConvertError(f"{output} already exists. Choose another file, or delete it")
    check_type(about.kind, leaves)
    tensors = gguf_tensors(about.config, about.kind, leaves)
    total = sum(tensor.bytes for tensor in tensors)
    with new_parents(output), new_file(output) as partial:
        offsets, size = _write_header(partial, about, tensors)
        with partial.open("r+b") as file:
            file.truncate(size)
            allocate(partial)
            for piece in pieces(tensors):
                file.seek(offsets[piece.tensor.name] + piece.start)
                for block in piece.encoded():
                    file.write(block.data)
                    if on_write:
                        on_write(block.nbytes, total)
    notes = describe_conversion(tensors, about.kind, leaves) + describe_differences(about.config, about.context)
    return GgufFile(about.config, tensors, size, notes)


def _write_header(path: Path, about: _About, tensors: list[GgufTensor]) -> tuple[dict[str, int], int]:
    """Write everything before the tensors. Return the offset of each tensor, and the size of the file."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "plamo2")
    add_network(writer, about.config, about.kind, about.context, about.name)
    add_tokenizer(writer, about.config, about.tokenizer, about.template)
    for tensor in tensors:
        # The dtype has no effect beside the type.
        kind = gguf.GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(tensor.name, tensor.shape, "float32", tensor.bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    offsets, end = {}, _aligned(path.stat().st_size)
    for tensor in tensors:
        offsets[tensor.name] = end
        end = _aligned(end + tensor.bytes)
    return offsets, end


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
