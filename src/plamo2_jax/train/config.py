"""PretrainConfig: everything that decides a pretraining run, and its form as JSON."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.pipeline import DataConfig
from plamo2_jax.model.plamo2 import Remat
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.sharding.rules import Strategy
from plamo2_jax.storage import address, located
from plamo2_jax.train.distillation import DistillationConfig
from plamo2_jax.train.guard import SpikeConfig
from plamo2_jax.train.optimizer import OptimizerConfig
from plamo2_jax.train.schedule import ScheduleConfig, make_schedule


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run. The resolved configuration is written to config.json in the run's folder.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    name: str
    """Name of the run, and of its folder under `output`."""
    model: ModelConfig
    """Shape of the network."""
    tokenizer: Path
    """tokenizer.jsonl, or a folder with one; it must be the one that the shards were written with."""
    data: DataConfig
    """What to train on, and how it is mixed, shuffled and packed."""
    steps: int
    """Number of updates. It may rise when a run is resumed, as long as the learning rates of the updates already made stay the same:
    with a wsd schedule until the decay begins, if warmup is a number of steps."""
    output: Path = Path("runs")
    """Folder of runs, or gs://BUCKET/FOLDER; this one is written to output/name."""
    init_from: Path | None = None
    """Initial parameters: a run folder (its newest checkpoint) or a folder of the public layout. Ignored when the run already has a
    checkpoint."""
    fork: Path | None = None
    """Start from a checkpoint of another run, RUN@STEP (RUN: its newest), with its optimizer state, number of updates and random key.
    `steps` counts the updates before the fork too. Ignored when the run already has a checkpoint."""
    fork_data: Literal["continue", "restart"] = "continue"
    """continue: a fork goes on at the other run's position in the data, which must be the same data. restart: it reads its data from
    the beginning."""
    heldout: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Folders of held-out shards by language; bits per byte are reported for each."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW, clipping and weight decay."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """How the learning rate moves."""
    distillation: DistillationConfig | None = None
    """Learn from a teacher too; none: from the text alone."""
    accumulation: int = 1
    """Micro-batches an update; it must divide the batch size. More of them need less memory, and change no result."""
    z_loss: float = 1e-4
    """Coefficient of log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 turns it off."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations. Parameters, optimizer, scan state, norms' statistics, softmax and loss are float32 in any case."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """The devices, and what is divided over them. By default parameters and rows are divided over all that the rows can be."""
    sharding: Strategy = "fsdp_tensor"
    """Which axes of parameters and optimizer state are divided over which axes of the mesh; see plamo2_jax.sharding.rules."""
    remat: Remat = "none"
    """What the forward pass keeps of each period of layers; the backward pass recomputes the rest. none: all of it. dots: its input
    and the products with weights. block: its input, for least memory and about a third more time. offload: its input, in the
    host's memory."""
    loss_chunk: int | None = None
    """Positions of each row whose logits exist at a time; none: all. With a large vocabulary logits are the largest activation by
    far: rows × sequence_length × vocab_size × 4 bytes. A chunk costs computing them twice."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters, decaying by this an update (0.999: over about the last thousand). Checkpoints hold
    it beside the parameters (RUN@ema names it to merge, extend and convert) and held-out text is measured with it too. None: keep
    none."""
    seed: int = 0
    """Of the initial parameters. The data have a seed of their own."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step has one in any case."""
    keep: int = 3
    """Checkpoints to keep; older ones are deleted."""
    evaluate_every: int = 1000
    """Steps between measurements of held-out bits per byte; the last step has one in any case."""
    log_every: int = 10
    """Steps between writes to the log. Every step has its line in it: this sets only how often the device is waited for."""

    max_skipped: int = 5
    """Updates that are not finite are skipped and counted; more of them in a row than this stop the run."""
    spike: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)
    """Going back to a checkpoint when the loss jumps; off unless spike.factor is given."""
    stall_seconds: float = 600.0
    """After so long without a step the stacks of all threads go to stderr and to stalls.txt. Compiling is no stall."""

    def __post_init__(self) -> None:
        allowed = "a folder name: not empty, no slash, no leading dot"
        self._require("name", bool(self.name) and "/" not in self.name and not self.name.startswith("."), allowed)
        for name in ("steps", "accumulation", "checkpoint_every", "keep", "evaluate_every", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("max_skipped", self.max_skipped >= 0, "0 or more")
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or none")
        self._require("stall_seconds", 0 < self.stall_seconds < math.inf, "positive and finite")
        self._require("z_loss", self.z_loss >= 0 and math.isfinite(self.z_loss), "zero or positive")
        self._require("dtype", self.dtype in ("bfloat16", "float32"), "bfloat16 or float32")
        forks = ("fork_data", ("continue", "restart"))
        for name, kinds in (("remat", get_args(Remat)), ("sharding", get_args(Strategy)), forks):
            self._require(name, getattr(self, name) in kinds, f"one of {', '.join(kinds)}")
        divides = self.loss_chunk is None or (self.loss_chunk >= 1 and self.data.sequence_length % self.loss_chunk == 0)
        self._require("loss_chunk", divides, f"none or a divisor of data.sequence_length={self.data.sequence_length}")
        batch = self.data.batch_size
        self._require("accumulation", batch % self.accumulation == 0, f"a divisor of data.batch_size={batch}")
        make_schedule(self.schedule, self.steps)  # Raises where warm-up and decay do not fit into the steps.

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(
                f"{type(self).__name__}.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}"
            )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return located(self.output) / self.name


# What may change between two starts of one run: where things lie, what is watched and how often, how data are read ahead, which
# devices compute and what they keep; nothing that changes an update by more than the order of its sums. (The tokenizer is compared
# by its fingerprint.)
FREE_TO_CHANGE = frozenset(
    {
        "output",
        "init_from",
        "fork",
        "fork_data",
        "tokenizer",
        "heldout",
        "checkpoint_every",
        "keep",
        "evaluate_every",
        "log_every",
        "mesh",
        "sharding",
        "remat",
        "loss_chunk",
        "max_skipped",
        "stall_seconds",
        "reference_log_probs",
        "samples",
        "chat.max_bad_rate",
        "pairs.max_bad_rate",
        "distillation.logits",
        "distillation.teacher",
        "data.prefetch_batches",
        "data.read_threads",
    }
)


def to_json(config: Any) -> Any:
    """A configuration as JSON types: dataclasses as objects by field name, paths as strings, tuples as lists."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    return address(config) if isinstance(config, Path) else config


def differences(ours: Any, theirs: Any, name: str = "", free: frozenset[str] = FREE_TO_CHANGE) -> list[str]:
    """Where two configurations in JSON form differ, but for what is free to change: `field: ours, not theirs`, dotted."""
    if name in free or ours == theirs:
        return []
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [f"{name}: {ours!r}, not {theirs!r}"]
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        found += differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key, free)
    return found
