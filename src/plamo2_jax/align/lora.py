"""LoRA (arXiv:2106.09685): a low-rank difference to each of some matrices is trained, and nothing else.

    W' = W + s · A B,   A [in, r] at random, B [r, out] zero at first, s = alpha / r (or alpha / √r, rsLoRA, arXiv:2312.03732)

Of a parameter, the axes that its input has come first (`embed` of q_proj, `heads` and `head_dim` of o_proj); A has these and `rank`,
B has `rank` and the others, so both are divided over a mesh as the parameter is. The sum is formed where the model is applied: its
gradient has the model's size for the length of a step, while optimizer state and checkpoints have the adapters'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.model import Plamo2, abstract_params, logical_axes
from plamo2_jax.model import axes as names_of
from plamo2_jax.pattern import PatternError, first_matches, require_pattern
from plamo2_jax.public_config import is_integer, is_number, shown
from plamo2_jax.train.config import BASE_FINGERPRINT
from plamo2_jax.train.task import Batch, EvalResult, Metrics, TrainTask
from plamo2_jax.train.trainable import Trainable

A, B = "lora_a", "lora_b"
LARGEST_RANK = 2**16


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get adapters, and of what size.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    rank: int = 16
    """r, inner width of an adapter."""
    alpha: float = 32.0
    """What adapters are multiplied by, over the rank."""
    rank_stabilized: bool = False
    """Over the root of the rank instead."""
    dropout: float = 0.0
    """Share of an adapter's input features that is left out, the same ones for all tokens of a micro-batch: the sum of weights is
    formed once for them all."""
    targets: tuple[str, ...] = ("/mixer/", "/mlp/")
    """Regular expressions; a matrix gets an adapter when one of them is found in its description, such as "run_0/layer_1/mixer/o_proj
    axes=layers,heads,head_dim,embed model.layers.layers.1.mixer.o_proj.weight". Norms, per-head scales, filters, embedding and
    lm_head have none."""

    def __post_init__(self) -> None:
        self._require("rank", is_integer(self.rank) and 1 <= self.rank <= LARGEST_RANK, f"from 1 to {LARGEST_RANK:,}")
        self._require("alpha", is_number(self.alpha) and self.alpha > 0, "positive and finite")
        self._require("rank_stabilized", isinstance(self.rank_stabilized, bool), "true or false")
        self._require("dropout", is_number(self.dropout) and 0 <= self.dropout < 1, "in [0, 1)")
        listed = bool(self.targets) and all(isinstance(target, str) for target in self.targets)
        self._require("targets", listed, "one or several regular expressions")
        for target in self.targets:
            try:
                require_pattern(target)
            except PatternError as error:
                raise ValueError(f"LoraConfig.targets: {error}") from error

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"LoraConfig.{name}={shown(getattr(self, name))} is not allowed: it must be {allowed}")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclasses.dataclass(frozen=True)
class Split:
    """A parameter's axes as those of a linear map."""

    names: names_of.Axes
    inputs: tuple[int, ...]
    """Axes that are contracted with the input."""
    outputs: tuple[int, ...]
    """All others but `layers`."""

    @property
    def stacked(self) -> bool:
        """Whether the first axis is `layers`."""
        return self.names[0] == names_of.LAYERS

    def parts(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[tuple[int, ...], names_of.Axes]]:
        """Shapes and axes of A and B for a parameter of this shape."""
        lead = (0,) if self.stacked else ()
        return {
            A: (
                (*(shape[i] for i in (*lead, *self.inputs)), rank),
                (*(self.names[i] for i in (*lead, *self.inputs)), names_of.RANK),
            ),
            B: (
                (*(shape[i] for i in lead), rank, *(shape[i] for i in self.outputs)),
                (*(self.names[i] for i in lead), names_of.RANK, *(self.names[i] for i in self.outputs)),
            ),
        }

    def product(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """A B in the parameter's shape."""
        letters = "lhijkmnop"[: len(self.names)]
        lead = letters[0] if self.stacked else ""
        inputs, outputs = ("".join(letters[i] for i in some) for some in (self.inputs, self.outputs))
        spec = f"{lead}{inputs}r,{lead}r{outputs}->{letters}"
        return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def split_axes(names: names_of.Axes) -> Split | None:
    """How a parameter maps input to output; None for one that has no adapter.

    The input is the first axis that is a feature, with `head_dim` behind it where it is an axis of heads.
    """
    if not names_of.is_matrix(names) or names_of.VOCAB in names:
        return None
    skipped = (names_of.LAYERS, None)
    first = next(i for i, name in enumerate(names) if name not in skipped)
    inputs = (first, first + 1) if names[first + 1 : first + 2] == (names_of.HEAD_DIM,) else (first,)
    outputs = tuple(i for i, name in enumerate(names) if i not in inputs and name != names_of.LAYERS)
    return Split(names, inputs, outputs)


def find_targets(config: ModelConfig, lora: LoraConfig) -> dict[str, Split]:
    """The parameters that get adapters, by path.

    Raises:
        ValueError: there is none.
    """
    public: dict[str, list[str]] = {}
    for tensor in public_tensors(config):
        for part in tensor.parts:
            public.setdefault(part.path, []).append(tensor.name)
    splits, descriptions = {}, []
    axes = flax.traverse_util.flatten_dict(logical_axes(Plamo2(config)), sep="/")
    for path, names in axes.items():
        split = split_axes(names)
        if split is not None:
            splits[path] = split
            spelled = ",".join(name or "-" for name in names)
            descriptions.append(f"/{path} axes={spelled} {' '.join(public[path])}")
    try:
        matches = first_matches(lora.targets, descriptions, "search")
    except PatternError as error:
        raise ValueError(f"LoraConfig.targets: {error}") from error
    found = {path: split for (path, split), match in zip(splits.items(), matches, strict=True) if match is not None}
    if not found:
        raise ValueError(
            f"LoraConfig.targets={lora.targets!r} is not allowed: no matrix of the layers has one of them in its description"
        )
    return found


class Adapters:
    """The adapters of a model: their shapes and axes, their first values, and their sum with the model's parameters."""

    def __init__(self, config: ModelConfig, lora: LoraConfig, seed: int = 0):
        self.config, self.lora, self._seed = config, lora, seed
        self.targets = find_targets(config, lora)
        shapes = flax.traverse_util.flatten_dict(abstract_params(Plamo2(config)), sep="/")
        abstract, axes = {}, {}
        for path, split in self.targets.items():
            for part, (shape, names) in split.parts(shapes[path].shape, lora.rank).items():
                abstract[f"{path}/{part}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
                axes[f"{path}/{part}"] = names
        self.abstract = flax.traverse_util.unflatten_dict(abstract, sep="/")
        self.axes = flax.traverse_util.unflatten_dict(axes, sep="/")

    def create(self, shardings: Any) -> Any:
        """A uniform with the variance 1 / (3 in) that PyTorch's linear layers begin with, B zero."""

        def init(key: jax.Array) -> Any:
            leaves = flax.traverse_util.flatten_dict(self.abstract, sep="/")
            made = {}
            for number, (path, leaf) in enumerate(sorted(leaves.items())):
                if path.endswith(B):
                    made[path] = jnp.zeros(leaf.shape, leaf.dtype)
                    continue
                split = self.targets[path.rsplit("/", 1)[0]]
                bound = 1 / math.sqrt(math.prod(leaf.shape[split.stacked : -1]))
                draw = jax.random.fold_in(key, number)
                made[path] = jax.random.uniform(draw, leaf.shape, leaf.dtype, -bound, bound)
            return flax.traverse_util.unflatten_dict(made, sep="/")

        return jax.jit(init, out_shardings=shardings)(jax.random.key(self._seed))

    def apply(self, params: Any, adapters: Any, rng: jax.Array | None = None) -> Any:
        """The model's parameters with the adapters added; with a key, features are dropped."""
        return add(params, adapters, self.targets, self.lora.scale, self.lora.dropout if rng is not None else 0.0, rng)


def add(
    params: Any,
    adapters: Any,
    targets: Mapping[str, Split],
    scale: float,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> Any:
    """W + s · A B for each target, in the dtype of W; the other parameters as they are.

    Args:
        params: the model's.
        adapters: tree of `lora_a` and `lora_b` below the paths of the targets.
        targets: by path.
        scale: s.
        dropout: share of the input features of A that are left out; the others are scaled up.
        rng: needed with dropout.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    parts = flax.traverse_util.flatten_dict(adapters, sep="/")
    for number, (path, split) in enumerate(sorted(targets.items())):
        a, b, w = parts[f"{path}/{A}"], parts[f"{path}/{B}"], leaves[path]
        if dropout:
            kept = jax.random.bernoulli(jax.random.fold_in(rng, number), 1 - dropout, (*a.shape[:-1], 1))
            a = jnp.where(kept, a / (1 - dropout), 0)
        leaves[path] = (w + scale * split.product(a, b)).astype(w.dtype)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


BASE = "base"
"""Name of the model's parameters among the frozen arrays of a task that trains adapters."""


def with_adapters(task: TrainTask, adapters: Adapters, params: Any) -> TrainTask:
    """Return a task that trains adapters to the parameters of another task, which are frozen.

    Args:
        task: trains the model's parameters.
        adapters: what to train instead.
        params: the model's parameters, or their shapes in a plan.
    """
    merge = jax.jit(adapters.apply)

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        for_adapters, for_inner = jax.random.split(rng)
        return task.loss_fn(adapters.apply(frozen[BASE], params, for_adapters), batch, for_inner, frozen)

    def to_model_params(params: Any, frozen: Mapping[str, Any]) -> Any:
        return merge(frozen[BASE], params)

    def evaluate(params: Any, batches: Iterable[Batch], frozen: Mapping[str, Any]) -> EvalResult:
        return task.evaluate(to_model_params(params, frozen), batches, frozen)

    # A fingerprint picks values of whole arrays, which no process of several has.
    readable = jax.process_count() == 1 and isinstance(jax.tree.leaves(params)[0], jax.Array)
    described = {BASE_FINGERPRINT: fingerprint(adapters.config, params)} if readable else {}
    return dataclasses.replace(
        task,
        loss_fn=loss_fn,
        trainable=Trainable(adapters.axes, adapters.abstract, adapters.create),
        frozen={**task.frozen, BASE: params},
        evaluate=evaluate,
        to_model_params=to_model_params,
        description={**task.description, **described},
    )


def parameter_count(adapters: Adapters) -> int:
    """Numbers that are trained."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(adapters.abstract))
