"""RunConfig: the configuration of a training run, and its JSON form."""

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
from plamo2_jax.model.float8 import LinearType
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.sharding.rules import Strategy
from plamo2_jax.storage import address, is_remote, located
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.benchmarks import BenchmarksConfig
from plamo2_jax.train.loss_guard import SpikeConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig, make_schedule
from plamo2_jax.train.source import ShardSource, Source
from plamo2_jax.train.task import TaskContext, TrainTask
from plamo2_jax.validation import require

FREE = {"free": True}
"""Metadata of a field that may change when a run is resumed: file locations, logging, prefetching, devices, micro-batches and
rematerialization. Such a field changes an update only by the order of sums, and by the random noise of tasks that draw some. Instead of
True, a function of the configuration may say whether the field is free."""


class TaskConfig(abc.ABC):
    """Configuration of the task of a run: a frozen dataclass that makes the `TrainTask` and the data source."""

    kind: ClassVar[str]
    """Name of the task in config.json."""

    @abc.abstractmethod
    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task.

        Raises:
            PlamoError: A file that the task names is missing or invalid.
        """

    def check(self, run: RunConfig) -> None:
        """Raise PlamoError if the other fields of the run do not fit the task. By default, all do."""
        del run

    def make_source(self, run: RunConfig, tokenizer: Tokenizer) -> Source:
        """Make the source of the batches; by default shards of text.

        Raises:
            PlamoError: A file is missing or damaged, or has nothing to train on.
        """
        return ShardSource(run.data, run.heldout, tokenizer)

    def on_evaluate(self, run: RunConfig) -> Callable[[int, Any], None] | None:
        """Return a function that is called with step and model parameters at every evaluation; None by default."""
        return None

    @property
    def asks_for_samples(self) -> bool:
        """Whether the model generates sample texts at every evaluation."""
        return False

    @property
    def inputs(self) -> Mapping[str, Path | None]:
        """Files and folders that the task reads, by field."""
        return {}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Configuration of a training run. The resolved configuration is written to config.json in the run folder.

    Raises:
        PlamoError: A field is out of range.
    """

    name: str
    """Name of the run. Its folder is output/name."""
    model: ModelConfig
    """Shape of the network."""
    tokenizer: Path = dataclasses.field(metadata=FREE)
    """tokenizer.jsonl, or a folder that contains it. It must be the tokenizer that wrote the shards."""
    data: DataConfig
    """Training data: mixture, shuffling and packing."""
    steps: int
    """Number of training steps (optimizer updates). You can increase it when you resume a run, if the learning rates of all finished steps
    stay the same: with a wsd schedule, before the decay begins, and with `warmup` given as a number of steps."""
    task: Annotated[TaskConfig, tyro.conf.arg(name="")]
    """Task of the run: Pretrain, Distill, Sft or Dpo. On the command line, its fields have no prefix, as in --z-loss."""
    output: Path = dataclasses.field(default=Path("runs"), metadata=FREE)
    """Folder for runs, or gs://BUCKET/FOLDER. This run is written to output/name."""
    init_from: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Initial parameters: a run folder (its newest checkpoint) or a folder in Hugging Face format. Not used if the run already has a
    checkpoint, but the base of adapters and the reference of DPO must still be the same."""
    fork: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Start from the full training state of another run: RUN@STEP, or RUN for its newest checkpoint. Optimizer state, step and random key
    are taken over. `steps` includes the steps before the fork. Ignored if the run already has a checkpoint."""
    fork_data: Literal["continue", "restart"] = dataclasses.field(default="continue", metadata=FREE)
    """Data position of a fork. continue: continue at the data position of the other run, which must have the same data. restart: read the
    data from the beginning."""
    heldout: dict[str, Path] = dataclasses.field(default_factory=dict, metadata=FREE)
    """Held-out data by name, measured at every evaluation. For text: folders of shards by language; the metric is bits per byte."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW optimizer, gradient clipping and weight decay."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    accumulation: int = dataclasses.field(default=1, metadata=FREE)
    """Gradient accumulation: number of micro-batches per step; it must divide the batch size. More micro-batches need less memory and give
    the same result, except that dropout and NEFTune use different noise, and that the losses kto and bco use the mean of a micro-batch."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """dtype of activations. Parameters, optimizer, scan state, norm statistics, softmax and loss are always float32."""
    linear_type: LinearType = "normal"
    """Precision of the matrix products of the projections and the MLP in a train step. normal: `dtype`. fp8: operands are rounded to 8-bit
    floats, e4m3 in the forward and e5m2 in the backward pass; parameters stay float32. Held-out data are measured in `dtype`."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata=FREE)
    """Device mesh. By default, parameters and rows are sharded over as many devices as the number of rows allows."""
    sharding: Strategy = dataclasses.field(default="fsdp_tensor", metadata=FREE)
    """Strategy for sharding parameters and optimizer state over the mesh (docs/sharding.md). zero1 and zero2 gather the parameters once per
    step; the others gather them for each use."""
    remat: Remat = dataclasses.field(default="none", metadata=FREE)
    """Rematerialization: the activations of each period of layers that are saved for the backward pass; the others are recomputed. none:
    all are saved. dots: its input, the products with weights, and the outputs of attention. dots_except_up, dots_except_gate_up: the same
    without the widest products of the MLP. outputs: its input, the results of mixers and MLPs, and the outputs of attention. block: its
    input, for the least memory and about a third more time. offload: its input, in host memory."""
    loss_chunk: int | None = dataclasses.field(default=None, metadata=FREE)
    """Number of positions of each row whose logits are in memory at the same time; none: all. With a large vocabulary, the logits are by
    far the largest activation: rows × sequence_length × vocab_size × 4 bytes. With chunks, the logits are computed twice."""
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict, metadata=FREE)
    """Options of the TPU compiler as names and values, in addition to the defaults for the TPU generation (docs/compiler_options.md). An
    empty value removes an option."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the parameters (0.999 averages about the last thousand steps). Checkpoints contain
    the average (RUN@ema in other commands), and held-out data are also measured with it. None: no average."""
    seed: int = 0
    """Random seed of the initial parameters. data.seed is the seed of the data."""
    checkpoint_every: int = dataclasses.field(default=1000, metadata=FREE)
    """Number of steps between checkpoints. The last step always has a checkpoint."""
    max_to_keep: int = dataclasses.field(default=3, metadata=FREE)
    """Maximum number of checkpoints to keep; older ones are deleted."""
    local_checkpoints: Path | None = dataclasses.field(default=None, metadata=FREE)
    """Folder on a local disk of each host, for additional checkpoints that are faster to write. A job that restarts on the same hosts
    resumes from them. None: no local checkpoints."""
    local_every: int = dataclasses.field(default=100, metadata=FREE)
    """Number of steps between local checkpoints. Steps with a checkpoint in the run folder have no local checkpoint."""
    evaluate_every: int = dataclasses.field(default=1000, metadata=FREE)
    """Number of steps between evaluations on held-out data. The last step always has an evaluation."""
    evaluation: BenchmarksConfig = dataclasses.field(default_factory=BenchmarksConfig, metadata=FREE)
    """Benchmark tasks that are evaluated during training."""
    device_prefetch: int = dataclasses.field(default=2, metadata=FREE)
    """Maximum number of batches that a background thread puts onto the devices in advance; 0: put each batch when its step needs it."""
    log_every: int = dataclasses.field(default=10, metadata=FREE)
    """Number of steps between writes to the log; each write waits for the device. The log has a line for every step."""
    max_skipped: int = dataclasses.field(default=5, metadata=FREE)
    """Maximum number of consecutive skipped updates. Updates that are not finite (NaN or infinity) are skipped; the run stops if more than
    this number are skipped in a row."""
    spike: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)
    """Rollback to a checkpoint after a loss spike. Off unless spike.factor is set."""
    stall_seconds: float = dataclasses.field(default=600.0, metadata=FREE)
    """Time without a finished step after which the stack traces of all threads are written to stderr and stalls.txt, in seconds.
    Compilation does not count."""

    def __post_init__(self) -> None:
        allowed = "a folder name: not empty, no slash, no leading dot"
        require(self, "name", bool(self.name) and "/" not in self.name and not self.name.startswith("."), allowed)
        for name in (
            "steps",
            "accumulation",
            "checkpoint_every",
            "max_to_keep",
            "local_every",
            "evaluate_every",
            "log_every",
        ):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "seed", 0 <= self.seed < 1 << 32, "from 0 to 2**32 - 1")
        is_local = self.local_checkpoints is None or not is_remote(self.local_checkpoints)
        require(self, "local_checkpoints", is_local, "a folder on a disk of the host")
        require(self, "device_prefetch", self.device_prefetch >= 0, "0 or more")
        require(self, "max_skipped", self.max_skipped >= 0, "0 or more")
        require(self, "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or none")
        require(self, "stall_seconds", 0 < self.stall_seconds < math.inf, "positive and finite")
        require(self, "dtype", self.dtype in ("bfloat16", "float32"), "bfloat16 or float32")
        forks = ("fork_data", ("continue", "restart"))
        products = ("linear_type", get_args(LinearType))
        for name, kinds in (("remat", get_args(Remat)), ("sharding", get_args(Strategy)), products, forks):
            require(self, name, getattr(self, name) in kinds, f"one of {', '.join(kinds)}")
        divides = self.loss_chunk is None or (self.loss_chunk >= 1 and self.data.sequence_length % self.loss_chunk == 0)
        require(self, "loss_chunk", divides, f"none or a divisor of data.sequence_length={self.data.sequence_length}")
        batch = self.data.batch_size
        require(self, "accumulation", batch % self.accumulation == 0, f"a divisor of data.batch_size={batch}")
        make_schedule(self.schedule, self.steps)  # Raises if warm-up and decay do not fit into the steps.
        require(self, "task", isinstance(self.task, TaskConfig), "Pretrain(...), Distill(...), Sft(...) or Dpo(...)")
        self.task.check(self)

    def evaluation_due(self, step: int) -> bool:
        """Return whether held-out data are measured and samples written after a step."""
        return step == self.steps or step % self.evaluate_every == 0

    def tasks_due(self, step: int) -> bool:
        """Return whether the benchmark tasks are answered after a step."""
        every = self.evaluate_every if self.evaluation.every is None else self.evaluation.every
        return bool(self.evaluation.tasks) and (step == self.steps or step % every == 0)

    def local_due(self, step: int) -> bool:
        """Return whether a local checkpoint is saved after a step."""
        return self.local_checkpoints is not None and step % self.local_every == 0

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return located(self.output) / self.name


def to_json(config: Any) -> Any:
    """Return a configuration as JSON values: dataclasses as objects, tasks with their kind, paths as strings, tuples as lists."""
    if dataclasses.is_dataclass(config):
        kind = {"kind": config.kind} if isinstance(config, TaskConfig) else {}
        return kind | {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    return address(config) if isinstance(config, Path) else config


def fill_defaults(stored: Any, config: Any) -> Any:
    """Return a stored configuration, in JSON form, with the defaults of fields that did not exist when it was written.

    `config` is the configuration, or part of one, that `stored` is compared with.
    """
    if isinstance(config, tuple) and isinstance(stored, list) and len(config) == len(stored):
        return [fill_defaults(*pair) for pair in zip(stored, config, strict=True)]
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
    """Yield the dotted names of the fields, including nested ones, that may change when a run is resumed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        free = field.metadata.get("free", False)
        if free(config) if callable(free) else free:
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(value):
            yield from free_fields(value, f"{prefix}{field.name}.")


def differences(ours: Any, theirs: Any, free: frozenset[str] = frozenset(), name: str = "") -> list[str]:
    """Return the differences of two configurations in JSON form, as `field: ours, not theirs` with dotted names.

    Args:
        free: Dotted names of fields that may differ.
        name: Dotted name of the part that is compared.
    """
    if name in free or ours == theirs:
        return []
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [f"{name}: {ours!r}, not {theirs!r}"]
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        found += differences(ours.get(key), theirs.get(key), free, f"{name}.{key}" if name else key)
    return found
