"""RunConfig: everything that decides a training run, and its form as JSON."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import tyro

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.pipeline import DataConfig
from plamo2_jax.model.block import Remat
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.sharding.rules import Strategy
from plamo2_jax.storage import address, located
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.loss_guard import SpikeConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig, make_schedule
from plamo2_jax.train.source import ShardSource, Source
from plamo2_jax.train.task import TaskContext, TrainTask
from plamo2_jax.validation import require

FREE = {"free": True}
"""Metadata of a field that may change when a run is resumed: it says where files are, what is logged and how often, how data are read
ahead, or which devices compute and what they keep. It changes an update by no more than the order of its sums."""


class TaskConfig(abc.ABC):
    """What a run is for: a frozen dataclass that makes the run's `TrainTask` and its data source."""

    kind: ClassVar[str]
    """Name of the task in config.json."""

    @abc.abstractmethod
    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task.

        Raises:
            ValueError: a file that the task names is missing or unfit.
        """

    def check(self, run: RunConfig) -> None:
        """Raise ValueError where the task does not go with the other fields of the run; any run does by default."""
        del run

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> Source:
        """Make the source of the batches; that of text is the default.

        Raises:
            ValueError: a file is missing, damaged or holds nothing to train on.
        """
        return ShardSource(run.data, run.heldout, tokenizer)

    def on_evaluate(self, run: RunConfig) -> Callable[[int, Any], None] | None:
        """Return what is called with step and model parameters at every evaluation; None by default."""
        del run
        return None

    @property
    def asks_for_samples(self) -> bool:
        """Whether the model generates text at every evaluation."""
        return False

    @property
    def inputs(self) -> Mapping[str, Path | None]:
        """Files and folders that the task reads besides those of the run, by field."""
        return {}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run. The resolved configuration is written to config.json in the run's folder.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    name: str
    """Name of the run, and of its folder under `output`."""
    model: ModelConfig
    """Shape of the network."""
    tokenizer: Path = dataclasses.field(metadata=FREE)
    """tokenizer.jsonl, or a folder with one; it must be the one that the shards were written with."""
    data: DataConfig
    """What to train on, and how it is mixed, shuffled and packed."""
    steps: int
    """Number of updates. It may rise when a run is resumed, as long as the learning rates of the updates already made stay the same:
    with a wsd schedule until the decay begins, if warmup is a number of steps."""
    task: Annotated[TaskConfig, tyro.conf.arg(name="")]
    """What the run is for: Pretrain, Distill, Sft or Dpo. On a command line its fields stand beside those of the run: --z-loss."""
    output: Path = dataclasses.field(default=Path("runs"), metadata=FREE)
    """Folder of runs, or gs://BUCKET/FOLDER; this one is written to output/name."""
    init_from: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Initial parameters: a run folder (its newest checkpoint) or a folder of the public layout. Ignored when the run already has a
    checkpoint."""
    fork: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Start from a checkpoint of another run, RUN@STEP (RUN: its newest), with its optimizer state, number of updates and random key.
    `steps` counts the updates before the fork too. Ignored when the run already has a checkpoint."""
    fork_data: Literal["continue", "restart"] = dataclasses.field(default="continue", metadata=FREE)
    """continue: a fork resumes at the other run's position in the data, which must be the same data. restart: it reads its data from
    the beginning."""
    heldout: dict[str, Path] = dataclasses.field(default_factory=dict, metadata=FREE)
    """Held-out data by name, measured at every evaluation; for text folders of shards by language, for which bits per byte are reported."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW, clipping and weight decay."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """How the learning rate moves."""
    accumulation: int = 1
    """Micro-batches an update; it must divide the batch size. More of them need less memory, and change no result."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """dtype of activations. Parameters, optimizer, scan state, statistics of norms, softmax and loss are float32 in any case."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata=FREE)
    """The devices, and what is divided over them. By default parameters and rows are divided over all that the rows can be."""
    sharding: Strategy = dataclasses.field(default="fsdp_tensor", metadata=FREE)
    """Which axes of parameters and optimizer state are divided over which axes of the mesh; see plamo2_jax.sharding.rules."""
    remat: Remat = dataclasses.field(default="none", metadata=FREE)
    """What the forward pass keeps of each period of layers; the backward pass recomputes the rest. none: all of it. dots: its input
    and the products with weights. block: its input, for least memory and about a third more time. offload: its input, in the
    host's memory."""
    loss_chunk: int | None = dataclasses.field(default=None, metadata=FREE)
    """Positions of each row whose logits exist at a time; none: all. With a large vocabulary logits are the largest activation by
    far: rows × sequence_length × vocab_size × 4 bytes. A chunk costs computing them twice."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay an update (0.999: over about the last thousand). Checkpoints hold
    it beside the parameters (RUN@ema names it to merge, extend and convert), and held-out data are measured with it too. None: keep
    none."""
    seed: int = 0
    """Random seed of the initial parameters. The data have a seed of their own."""
    checkpoint_every: int = dataclasses.field(default=1000, metadata=FREE)
    """Steps between checkpoints; the last step has one in any case."""
    max_to_keep: int = dataclasses.field(default=3, metadata=FREE)
    """Number of checkpoints to keep; older ones are deleted."""
    evaluate_every: int = dataclasses.field(default=1000, metadata=FREE)
    """Steps between measurements of held-out data; the last step has one in any case."""
    log_every: int = dataclasses.field(default=10, metadata=FREE)
    """Steps between writes to the log. Every step has its line in it: this sets only how often the host waits for the device."""
    max_skipped: int = dataclasses.field(default=5, metadata=FREE)
    """Updates that are not finite are skipped and counted; more of them in a row than this stop the run."""
    spike: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)
    """Going back to a checkpoint when the loss jumps; off unless spike.factor is given."""
    stall_seconds: float = dataclasses.field(default=600.0, metadata=FREE)
    """After so long without a step the stacks of all threads go to stderr and to stalls.txt. Compiling is no stall."""

    def __post_init__(self) -> None:
        allowed = "a folder name: not empty, no slash, no leading dot"
        require(self, "name", bool(self.name) and "/" not in self.name and not self.name.startswith("."), allowed)
        for name in ("steps", "accumulation", "checkpoint_every", "max_to_keep", "evaluate_every", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "max_skipped", self.max_skipped >= 0, "0 or more")
        require(self, "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or none")
        require(self, "stall_seconds", 0 < self.stall_seconds < math.inf, "positive and finite")
        require(self, "dtype", self.dtype in ("bfloat16", "float32"), "bfloat16 or float32")
        forks = ("fork_data", ("continue", "restart"))
        for name, kinds in (("remat", get_args(Remat)), ("sharding", get_args(Strategy)), forks):
            require(self, name, getattr(self, name) in kinds, f"one of {', '.join(kinds)}")
        divides = self.loss_chunk is None or (self.loss_chunk >= 1 and self.data.sequence_length % self.loss_chunk == 0)
        require(self, "loss_chunk", divides, f"none or a divisor of data.sequence_length={self.data.sequence_length}")
        batch = self.data.batch_size
        require(self, "accumulation", batch % self.accumulation == 0, f"a divisor of data.batch_size={batch}")
        make_schedule(self.schedule, self.steps)  # Raises where warm-up and decay do not fit into the steps.
        require(self, "task", isinstance(self.task, TaskConfig), "Pretrain(...), Distill(...), Sft(...) or Dpo(...)")
        self.task.check(self)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return located(self.output) / self.name


def to_json(config: Any) -> Any:
    """Return a configuration as JSON: dataclasses as objects by field name, tasks with their kind, paths as strings, tuples as lists."""
    if dataclasses.is_dataclass(config):
        kind = {"kind": config.kind} if isinstance(config, TaskConfig) else {}
        return kind | {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    return address(config) if isinstance(config, Path) else config


def fill_defaults(stored: Any, config: Any) -> Any:
    """Return a stored configuration with the defaults of fields that did not exist when it was written.

    Args:
        stored: in JSON form.
        config: the configuration, or a part of it, that `stored` is compared with.
    """
    if not (dataclasses.is_dataclass(config) and isinstance(stored, dict)):
        return stored
    filled = dict(stored)
    for field in dataclasses.fields(config):
        if field.name in stored:
            filled[field.name] = fill_defaults(stored[field.name], getattr(config, field.name))
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_json(field.default_factory())
    return filled


def free_fields(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields of a configuration, and of its parts, that may change when a run is resumed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("free"):
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(value):
            yield from free_fields(value, f"{prefix}{field.name}.")


def differences(ours: Any, theirs: Any, free: frozenset[str] = frozenset(), name: str = "") -> list[str]:
    """Return where two configurations in JSON form differ, as `field: ours, not theirs` with dotted names.

    Args:
        ours, theirs: the configurations.
        free: dotted names of fields that may differ.
        name: of the part that is compared.
    """
    if name in free or ours == theirs:
        return []
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [f"{name}: {ours!r}, not {theirs!r}"]
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        found += differences(ours.get(key), theirs.get(key), free, f"{name}.{key}" if name else key)
    return found
