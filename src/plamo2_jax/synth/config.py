"""The configuration of `plamo2 synth`, a YAML file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from plamo2_jax.data.contamination import ContaminationConfig
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.synth.diversity import GateConfig
from plamo2_jax.synth.fields import read_fields
from plamo2_jax.synth.filters import FilterConfig
from plamo2_jax.validation import require

_LARGEST_FILE = 1 << 20


@dataclasses.dataclass(frozen=True)
class SeedsConfig:
    """Inputs of the recipes."""

    inputs: tuple[str, ...] = ()
    """Documents: files, folders, patterns, bundled:LANGUAGE:SPLIT."""
    fields: tuple[str, ...] = ()
    """JSON lines whose fields are the seeds of recipes with `source: fields`."""
    translations: Literal["train", "heldout", "all"] | None = None
    """Split of the bundled corpus whose pages with their translations are the seeds of the translation recipes."""
    text_field: str = "text"
    """Field with the text of a document."""
    id_field: str = "id"
    """Field with the id."""
    license: str = "unknown"
    """Licence of seeds without a field `license`."""
    max_characters: int = 3000
    """Largest length of a segment. A longer document is cut at the ends of paragraphs."""
    min_characters: int = 100
    """Smallest length of a segment."""

    def __post_init__(self) -> None:
        require(self, "min_characters", self.min_characters >= 1, "at least 1")
        require(self, "max_characters", self.max_characters >= self.min_characters, "at least min_characters")


@dataclasses.dataclass(frozen=True)
class RecipeUse:
    """A recipe, with its numbers of seeds and samples."""

    name: str
    """Name of a recipe of this package, or a recipe file."""
    seeds: int | None = None
    """Largest number of seeds; for recipes without seeds, their number. Seeds are chosen by a hash. None: all."""
    samples: int = 1
    """Number of samples of each seed."""

    def __post_init__(self) -> None:
        require(self, "seeds", self.seeds is None or self.seeds >= 1, "at least 1")
        require(self, "samples", self.samples >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(ChatModelConfig):
    """A generator or judge model, its licence and its price."""

    license: str = "unknown"
    """Licence of the model's outputs."""
    price_prompt: float = 0.0
    """Price of a million prompt tokens."""
    price_completion: float = 0.0
    """Price of a million generated tokens."""
    servers: tuple[str, ...] = ()
    """Addresses of several servers with the same model. Worker I uses the server I modulo the number of servers. `url` is then the name of
    the service in keys and records, so these do not depend on the server. Empty: workers use `url`."""
    tokenizer: str | None = None
    """tokenizer.jsonl, or a folder with one, for the estimates of --dry-run; none: the tokenizer of a local model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "servers", not self.servers or self.url is not None, "empty, or used with url")
        for address in self.servers:
            dataclasses.replace(self, url=address, servers=())  # Raises an error if the address is not valid.
        for name in ("price_prompt", "price_completion"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "zero or positive, and finite")


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """Limits of requests and spending. All workers of a run folder share them, and budgets count all starts."""

    requests_per_minute: float | None = None
    """Maximum rate of requests to a server. It is halved when the server refuses requests, and then rises again."""
    tokens_per_minute: float | None = None
    """Maximum mean rate of prompt and generated tokens of a server. It is halved and rises like requests_per_minute."""
    max_tokens: int | None = None
    """Budget of tokens: prompt and generated tokens together."""
    max_cost: float | None = None
    """Budget of cost, in the currency of the prices."""
    max_seconds: float | None = None
    """Budget of time: total running time of all workers in all starts, in seconds."""
    attempts: int = 3
    """Number of starts in which a failed entry is retried."""

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "max_tokens", "max_cost", "max_seconds"):
            value = getattr(self, name)
            require(self, name, value is None or 0 < value < math.inf, "positive and finite")
        require(self, "attempts", self.attempts >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class MixSettings:
    """Settings for mixing the records with the documents, as in `synth.mix.MixConfig` without its inputs."""

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Relative shares of synthetic tokens by name of the recipe. Empty: all records."""
    max_synthetic_share: float = 0.5
    """Largest share of synthetic text among the texts."""
    max_synthetic_share_messages: float = 1.0
    """Largest share of synthetic text among the conversations."""
    conversations: tuple[str, ...] = ()
    """Files of conversations that people wrote."""
    max_generation: int = 1
    """Largest generation of a record. Text by people has generation 0; a record has 1 + the largest generation of its sources. Text by
    people has generation 0; a record has 1 + the largest generation of its sources."""


@dataclasses.dataclass(frozen=True)
class SynthConfig:
    """Configuration of a synthetic data run."""

    output: Path
    """Folder for plan, units, records and the data card."""
    recipes: tuple[RecipeUse, ...]
    """The recipes."""
    seeds: SeedsConfig = dataclasses.field(default_factory=SeedsConfig)
    """Inputs of the recipes."""
    generator: GeneratorConfig | None = None
    """Generator model; None: only recipes without a model can be used."""
    judge: GeneratorConfig | None = None
    """Judge model, for recipes with the verification step `judge`."""
    limits: LimitsConfig = dataclasses.field(default_factory=LimitsConfig)
    """Limits of requests and spending."""
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    """Filters of single records."""
    against: tuple[str, ...] = ()
    """Evaluation items that no record may contain: files, or task:NAME, as in `plamo2 data prepare --against`."""
    contamination: ContaminationConfig = dataclasses.field(default_factory=ContaminationConfig)
    """Settings for comparing records with evaluation items."""
    deduplicate: DedupConfig | None = dataclasses.field(default_factory=DedupConfig)
    """Deduplication of the records against each other and the documents; null: none."""
    gates: GateConfig = dataclasses.field(default_factory=GateConfig)
    """Diversity limits. The run stops without writing records if they are exceeded."""
    mix: MixSettings | None = None
    """Write OUTPUT/data, a mixture of records and documents; null: write no mixture."""
    unit_size: int = 64
    """Number of entries in a work unit."""
    seed: int = 0
    """Random seed of the run."""
    allow_unisolated_code: bool = False
    """Run model-written programs even if this system cannot isolate them."""

    def __post_init__(self) -> None:
        require(self, "recipes", bool(self.recipes), "at least one recipe")
        require(self, "unit_size", 1 <= self.unit_size <= 4096, "between 1 and 4,096")


def read_config(path: Path) -> SynthConfig:
    """Read a YAML file.

    Raises:
        PlamoError: the file cannot be read, or a field is unknown or not allowed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PlamoError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise PlamoError(f"{path} has {len(content):,} bytes: a config must have at most {_LARGEST_FILE:,}")
    try:
        given = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PlamoError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from error
    return read_fields(SynthConfig, given, str(path))


def digest(value: Any) -> str:
    """Return 32 hexadecimal digits: a hash of a dataclass or a JSON value."""
    text = json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]
