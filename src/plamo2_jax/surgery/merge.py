"""Merging models tensor by tensor: what `plamo2 merge` does.

Tensors are those of the public layout, for which most merged models of others were made too: a method that looks at a whole tensor
(lengths, angles, thresholds) looks at the same one here. Arithmetic is float32 with float64 sums. At most one tensor of each model
is in memory, and one more: the result is written as it comes, into its place in a safetensors file whose header is known before.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import flax.traverse_util
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.convert.blocks import Progress, blocks
from plamo2_jax.convert.files import CONFIG, DTYPES, INDEX
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import common_dtype
from plamo2_jax.convert.write import Shard, header, plan_shards
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import LAYERS
from plamo2_jax.pattern import PatternError, first_matches, require_pattern
from plamo2_jax.storage import new_folder, require_empty, write_whole
from plamo2_jax.surgery import merge_methods as methods
from plamo2_jax.surgery.merge_sources import MergeError, Source, open_source
from plamo2_jax.tokenizer.template_files import chat_template_files

Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "dare_linear",
    "della",
    "model_stock",
    "karcher",
    "breadcrumbs",
    "nearswap",
]
MERGED = "merge.json"
"""Beside the merged model: how it came about."""

_WITHOUT_BASE = ("linear", "slerp", "karcher")
_ELECTS = ("ties", "dare_ties", "della")
_DENSITY = {"ties": 0.2, "dare_ties": 0.5, "dare_linear": 0.5, "della": 0.5, "breadcrumbs": 0.9}
# Fields of the shape that do not change what a model computes.
_WITHOUT_EFFECT = ("initializer_range", "max_position_embeddings", "mamba_chunk_size")


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """How to merge. The methods are told in `merge_methods`.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    method: Method
    """Which arithmetic."""
    weights: tuple[float, ...] = ()
    """One a model, in order; none: all 1. linear, slerp and karcher divide by their sum (slerp's t is the second's share)."""
    weights_for: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Pairs of a regular expression and other weights, for the tensors in whose description it is found (see `describe`); the last
    that is found counts."""
    density: float | None = None
    """Share of each difference that is kept; None: 0.2 for ties, 0.9 for breadcrumbs, 0.5 for dare and della."""
    scale: float = 1.0
    """lambda: what the merged differences are multiplied by."""
    normalize: bool | None = None
    """Whether differences are divided by the weights; None: for ties and della, as mergekit does."""
    rescale: methods.Rescale = "probability"
    """dare, della: what makes up for dropped differences."""
    epsilon: float = 0.15
    """della: probabilities of keeping go from density - epsilon to density + epsilon."""
    gamma: float = 0.01
    """breadcrumbs: share of the largest differences that is left out."""
    t: float = 1e-3
    """nearswap: how far an element may move."""
    seed: int = 0
    """Of what is dropped at random."""

    def __post_init__(self) -> None:
        self._require("method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            self._require("weights", all(map(math.isfinite, weights)), "finite numbers")
        for pattern, _ in self.weights_for:
            try:
                require_pattern(pattern)
            except PatternError as error:
                raise ValueError(f"--weights-for {error}") from error
        self._require("density", self.density is None or 0 < self.density <= 1, "in (0, 1], or none")
        self._require("rescale", self.rescale in get_args(methods.Rescale), "probability, norm or none")
        self._require("scale", math.isfinite(self.scale), "a finite number")
        self._require("gamma", 0 <= self.gamma < 1, "in [0, 1)")
        self._require("t", self.t >= 0 and math.isfinite(self.t), "zero or positive")
        self._require("seed", self.seed >= 0, "0 or more")
        if self.method == "della":
            kept = self.kept
            fits = self.epsilon >= 0 and (kept == 1 or (kept - self.epsilon > 0 and kept + self.epsilon < 1))
            self._require("epsilon", fits, f"such that density={kept} ± epsilon lies in (0, 1)")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"MergeConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")

    @property
    def kept(self) -> float:
        """The density, default resolved."""
        return _DENSITY.get(self.method, 1.0) if self.density is None else self.density

    @property
    def normalizes(self) -> bool:
        """Whether differences are divided by the weights, default resolved."""
        return self.method in ("ties", "della") if self.normalize is None else self.normalize

    def weights_of(self, descriptions: Sequence[str], count: int) -> list[tuple[float, ...]]:
        """The weights of `count` models for the tensors with these descriptions.

        Raises:
            MergeError: a pattern of `weights_for` is found in no description, or takes too long.
        """
        try:
            for pattern, _ in self.weights_for:
                if set(first_matches([pattern], descriptions, "search")) == {None}:
                    example = descriptions[0]
                    raise MergeError(
                        f"--weights-for {pattern!r} is found in no tensor; they are described as {example!r}"
                    )
            # The last pattern that is found counts.
            patterns = [pattern for pattern, _ in reversed(self.weights_for)]
            found = first_matches(patterns, descriptions, "search")
        except PatternError as error:
            raise MergeError(f"--weights-for {error}") from error
        default = self.weights or (1.0,) * count
        return [default if number is None else self.weights_for[-1 - number][1] for number in found]

    def check(self, count: int, base: bool) -> None:
        """Raise MergeError unless the method takes `count` models besides the base, and with or without one."""
        method = self.method
        if base and method in _WITHOUT_BASE:
            raise MergeError(f"{method} has no base: leave --base out, or name that model among the others")
        if not base and method not in _WITHOUT_BASE:
            raise MergeError(f"{method} merges differences from a base model: name it with --base")
        least = {"slerp": 2, "linear": 2, "karcher": 2, "model_stock": 2}.get(method, 1)
        most = {"slerp": 2, "nearswap": 1}.get(method, math.inf)
        if not least <= count <= most:
            allowed = f"{least}" if least == most else f"at least {least}"
            raise MergeError(f"{method} takes {allowed} model(s){' besides the base' if base else ''}, not {count}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            if weights and len(weights) != count:
                raise MergeError(f"{len(weights)} weight(s) are given for {count} model(s); each model needs one")
            if weights and method in _WITHOUT_BASE and not sum(weights) > 0:
                raise MergeError(f"the weights {weights} of {method} are not allowed: their sum must be positive")


def merge_tensor(
    config: MergeConfig, name: str, weights: Sequence[float], models: Sequence[np.ndarray], base: np.ndarray | None
) -> np.ndarray:
    """One merged tensor, in the memory of one of the arguments, all of which are overwritten.

    Args:
        config: how.
        name: of the tensor; what is dropped at random depends on it, on the seed and on the model's number alone.
        weights: one a model.
        models: float32, all of one shape.
        base: float32, of the same shape; None for the methods without one.
    """
    method = config.method
    if method == "linear":
        return methods.linear(models, weights)
    if method == "slerp":
        return methods.slerp(models[0], models[1], weights[1] / sum(weights))
    if method == "karcher":
        return methods.karcher(models, weights)
    if method == "model_stock":
        return methods.model_stock(base, models)
    if method == "nearswap":
        return methods.nearswap(base, models[0], config.t)
    thin = None
    if method != "task_arithmetic":
        thin = [
            _thinner(config, np.random.default_rng([config.seed, i, zlib.crc32(name.encode())]))
            for i in range(len(models))
        ]
    return methods.add_differences(
        base,
        models,
        weights,
        thin=thin,
        elect=method in _ELECTS,
        normalize=config.normalizes,
        scale=config.scale,
    )


def _thinner(config: MergeConfig, rng: np.random.Generator) -> methods.Thin:
    density = config.kept
    if config.method == "ties":
        return lambda delta: methods.keep_largest(delta, density)
    if config.method == "breadcrumbs":
        return lambda delta: methods.keep_middle(delta, density, config.gamma)
    if config.method == "della":
        return lambda delta: methods.drop_by_rank(delta, density, config.epsilon, rng, config.rescale)
    return lambda delta: methods.drop_random(delta, density, rng, config.rescale)


def merge(
    models: Sequence[str],
    output: str | os.PathLike[str],
    config: MergeConfig,
    *,
    base: str | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    on_write: Progress | None = None,
) -> None:
    """Merge models into a folder of the public layout.

    Args:
        models: folders of the public layout, run folders, or `RUN@STEP`, `RUN@ema`, `RUN@STEP,ema`.
        output: folder to make; it must not exist or be empty.
        config: how.
        base: the model that differences are taken from.
        dtype: of the files, float32 or bfloat16; None: that of the models.
        max_shard_bytes: bytes of tensors in one safetensors file.
        on_write: called for every tensor written with its bytes and those of the whole model.

    Raises:
        ValueError: the models do not go together, or one is missing or damaged; the message says which and why, and nothing is left
        behind.
    """
    output = Path(output).absolute()
    require_empty(output)
    config.check(len(models), base is not None)
    # The first model that has a chat template gives it.
    files = chat_template_files(*(ModelName.parse(name).folder for name in models))
    sources = [open_source(name) for name in models]
    origin = None if base is None else open_source(base)
    everything = [*sources, *([] if origin is None else [origin])]
    _check_alike(everything)
    first = everything[0]
    dtype = common_dtype(source.dtype for source in everything) if dtype is None else np.dtype(dtype)
    if dtype not in DTYPES.values():
        raise MergeError(f"dtype {dtype} is not allowed; it must be float32 or bfloat16")
    tensors = public_tensors(first.config)
    descriptions = describe(first)
    weights = dict(zip(descriptions, config.weights_of(list(descriptions.values()), len(sources)), strict=True))
    shards = plan_shards(tensors, dtype, max_shard_bytes)
    with new_folder(output) as partial:
        places = _lay_out(partial, shards, dtype)
        total = sum(shard.bytes(dtype) for shard in shards)
        # Periods of one of our parameters follow each other: a checkpoint that stores them as one array is decoded once.
        for tensor in sorted(tensors, key=lambda tensor: (tensor.parts[0].path, tensor.parts[0].period or 0)):
            start = None if origin is None else origin.read(tensor)
            merged = merge_tensor(
                config, tensor.name, weights[tensor.name], [source.read(tensor) for source in sources], start
            )
            del start
            _write(*places[tensor.name], merged.reshape(-1), dtype)
            del merged
            if on_write:
                on_write(tensor.size * dtype.itemsize, total)
        _write_description(partial, everything, first, shards, total, dtype, config, models, base, files)


def describe(source: Source) -> dict[str, str]:
    """By public name, what `weights_for` is searched in: `NAME PARAMETER,... axes=AXIS,...`.

    For instance `model.layers.layers.1.mixer.o_proj.weight run_0/layer_1/mixer/o_proj axes=heads,head_dim,embed`.
    """
    axes = flax.traverse_util.flatten_dict(logical_axes(Plamo2(source.config)), sep="/")
    result = {}
    for tensor in public_tensors(source.config):
        paths = [part.path for part in tensor.parts]
        names = dict.fromkeys(name for path in paths for name in axes[path] if name not in (None, LAYERS))
        result[tensor.name] = f"{tensor.name} {','.join(paths)} axes={','.join(names)}"
    return result


def _check_alike(sources: Sequence[Source]) -> None:
    first = sources[0]
    ours = checkpoint.model_json(first.config)
    for other in sources[1:]:
        theirs = checkpoint.model_json(other.config)
        different = [
            f"{name} is {ours[name]!r} and {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name] and name not in _WITHOUT_EFFECT
        ]
        if different:
            raise MergeError(
                f"{first.name} and {other.name} are of different shapes ({'; '.join(different)}): only equal ones can be merged"
            )
    named = [source for source in sources if source.tokenizer is not None]
    for other in named[1:]:
        if other.tokenizer.fingerprint != named[0].tokenizer.fingerprint:
            raise MergeError(
                f"{named[0].name} and {other.name} have different tokenizers ({named[0].tokenizer.fingerprint[:12]}, "
                f"{other.tokenizer.fingerprint[:12]}): their embeddings do not mean the same tokens"
            )


def _lay_out(folder: Path, shards: Sequence[Shard], dtype: np.dtype) -> dict[str, tuple[Path, int]]:
    """Make the files with their headers and full lengths; returns the file and offset of each tensor."""
    places: dict[str, tuple[Path, int]] = {}
    for shard in shards:
        head = header(shard.tensors, dtype)
        path, offset = folder / shard.name, len(head)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(offset + shard.bytes(dtype))
        for tensor in shard.tensors:
            places[tensor.name] = path, offset
            offset += tensor.size * dtype.itemsize
    return places


def _write(path: Path, offset: int, values: np.ndarray, dtype: np.dtype) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        for rows in blocks(values):
            view = memoryview(values[rows].astype(dtype, copy=False).view(np.uint8))
            while len(view):
                view = view[file.write(view) :]


def _write_description(
    folder: Path,
    sources: Sequence[Source],
    first: Source,
    shards: Sequence[Shard],
    total: int,
    dtype: np.dtype,
    config: MergeConfig,
    models: Sequence[str],
    base: str | None,
    files: Mapping[str, bytes],
) -> None:
    if len(shards) > 1:
        names = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
        checkpoint.write_json(
            folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        )
    checkpoint.write_json(folder / CONFIG, {**first.config.to_hf(), "torch_dtype": dtype.name})
    tokenizer = next((source.tokenizer for source in sources if source.tokenizer is not None), None)
    if tokenizer is not None:
        tokenizer.save(folder)
    for name, content in files.items():
        write_whole(folder / name, content)
    settings = {"models": list(models), "base": base, **dataclasses.asdict(config)}
    checkpoint.write_json(folder / MERGED, {**settings, "density": config.kept, "normalize": config.normalizes})
