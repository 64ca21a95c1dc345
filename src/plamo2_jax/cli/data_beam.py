"""`plamo2 data beam`: the stages of data preparation on a cluster, with Apache Beam."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from plamo2_jax.cli.against import evaluation_items
from plamo2_jax.cli.data_deduplicate import FileReader
from plamo2_jax.cli.data_files import ReadOptions
from plamo2_jax.data.clean import CleanConfig
from plamo2_jax.data.files import find_files
from plamo2_jax.data.join import JoinConfig
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    import apache_beam

RUNNERS = {
    "dataflow": (
        "DataflowRunner",
        ("project=PROJECT", "region=REGION", "temp_location=gs://BUCKET/temporary", "sdk_container_image=IMAGE"),
    ),
    "flink": ("FlinkRunner", ("flink_master=HOST:8081", "environment_type=DOCKER", "environment_config=IMAGE")),
}
"""Name in Beam and required options of the runners for clusters."""


@dataclasses.dataclass(frozen=True)
class BeamOptions(ReadOptions):
    """Clean, deduplicate, decontaminate, score or join documents with Apache Beam, on this machine or on a cluster (needs the extra beam).

    The stages run in the given order. The output has the same documents as the output of the local commands, as JSON lines, in any order.
    """

    input: tuple[str, ...]
    """Files, folders and "patterns" as in plamo2 data deduplicate, or files and patterns in a bucket (gs://BUCKET/*.jsonl.gz)."""
    output: str
    """Folder for the output, which must not exist, or must be empty. It may be in a bucket."""
    stages: tuple[Literal["clean", "deduplicate", "decontaminate", "score", "join"], ...] = ("clean", "deduplicate")
    """Stages to run, in this order, each at most once."""
    criteria: tyro.conf.OmitArgPrefixes[CleanConfig] = dataclasses.field(default_factory=CleanConfig)
    """clean: criteria for keeping a document."""
    boilerplate: Literal["edges", "anywhere"] = "edges"
    """clean: where to remove repeated lines."""
    boilerplate_documents: int = 20
    """clean: a line that occurs in at least this many documents is boilerplate; 0 keeps all lines."""
    similarity: float = 0.8
    """deduplicate: smallest Jaccard similarity of the 5-character sets of near-duplicates."""
    against: tuple[str, ...] = ()
    """decontaminate: evaluation data, as in plamo2 data prepare. The workers must be able to read it."""
    against_fields: tuple[str, ...] = ()
    """decontaminate: fields of the records of --against that are compared. Default: all fields that hold text."""
    model: str | None = None
    """score: model file that plamo2 data quality wrote. The workers must be able to read it."""
    field: str = "quality"
    """score: field for the probability."""
    at_least: float = 0.0
    """score: remove documents with a lower probability."""
    join_with: tuple[str, ...] = ()
    """join: files with the records whose fields are added. Each record needs the text field."""
    join_fields: tuple[str, ...] = ()
    """join: fields to add."""
    join_key: Literal["id", "source"] = "id"
    """join: where the fields are added. id: to the record with the same id. source: to the entries with the same id in the record's field
    `source`."""
    runner: Literal["direct", "dataflow", "flink"] = "direct"
    """direct: run in this process, with all data in memory, for tests and small inputs. dataflow, flink: run on a cluster."""
    beam_options: tuple[str, ...] = ()
    """Options of Beam as NAME=VALUE, such as project=my-project."""
    dry_run: bool = False
    """Check the options and print the commands for Dataflow and Flink; run nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise PlamoError("--stages must name at least one stage, and each stage only once")
        if self.boilerplate_documents < 0 or self.boilerplate_documents == 1:
            raise PlamoError(
                f"--boilerplate-documents {self.boilerplate_documents} is not allowed: it must be 0 or at least 2"
            )
        if not 0 <= self.at_least <= 1:
            raise PlamoError(f"--at-least {self.at_least} is not allowed: it must be between 0 and 1")
        if self.field in ("id", "text", "language"):
            raise PlamoError(
                f"--field {self.field} is not allowed: documents already have a field of this name. Choose another name"
            )
        needs = {"decontaminate": ("against",), "score": ("model",), "join": ("join_with", "join_fields")}
        for stage in self.stages:
            for name in needs.get(stage, ()):
                if not getattr(self, name):
                    raise PlamoError(f"the stage {stage} needs --{name.replace('_', '-')}")
        for option in self.beam_options:
            if "=" not in option:
                raise PlamoError(f"--beam-options {option} is not allowed: it must be NAME=VALUE")


def beam(options: BeamOptions) -> None:
    """Clean, deduplicate, decontaminate, score or join documents with Apache Beam."""
    dedup, joined = DedupConfig(threshold=options.similarity), None
    if "join" in options.stages:
        joined = JoinConfig(options.join_fields, options.join_key)
    if options.dry_run:
        for runner in RUNNERS:
            print(command(options, runner))
        return
    given = {option.partition("=")[0] for option in options.beam_options}
    missing = [one for one in RUNNERS.get(options.runner, ("", ()))[1] if one.partition("=")[0] not in given]
    if missing:
        raise PlamoError(f"--runner {options.runner} needs --beam-options {' '.join(missing)}")
    try:
        import apache_beam
    except ModuleNotFoundError as error:
        raise PlamoError(
            f"plamo2 data beam needs the package {error.name}: install this project with the extra beam, as in pip install '.[beam]'"
        ) from error
    from apache_beam.options.pipeline_options import PipelineOptions

    files = _found(options.input)
    _check_output(options.output)
    flags = [f"--{option}" for option in options.beam_options]
    if options.runner == "direct":
        # Beam's DirectRunner may download another runner; this one is in the package.
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner

        runner: Any = FnApiRunner()
    else:
        runner = RUNNERS[options.runner][0]
    pipeline = apache_beam.Pipeline(runner=runner, options=PipelineOptions(flags))
    _build(pipeline, files, options, dedup, joined)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    totals: dict[str, int] = {}
    for counter in counters:
        if counter.key.metric.namespace == "plamo2":
            totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + counter.result
    print(json.dumps(totals, indent=2, sort_keys=True, ensure_ascii=False), file=sys.stderr)
    print(options.output)


def _build(
    pipeline: apache_beam.Pipeline,
    files: list[str],
    options: BeamOptions,
    dedup: DedupConfig,
    joined: JoinConfig | None,
) -> None:
    """Add the stages to a pipeline."""
    import apache_beam

    from plamo2_jax.data import beam as stages

    reader = FileReader(ReadOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ReadOptions)}))

    def read(note: str, paths: list[str]) -> apache_beam.PCollection:
        numbered = pipeline | f"{note}: files" >> apache_beam.Create(list(enumerate(paths)))
        return numbered | f"{note}: read" >> apache_beam.ParDo(stages.ReadFile(reader, options.max_bad_rate))

    documents = read("input", files)
    for stage in options.stages:
        match stage:
            case "clean":
                transform = stages.Clean(options.criteria, options.boilerplate_documents, options.boilerplate)
            case "deduplicate":
                transform = stages.Deduplicate(dedup)
            case "decontaminate":
                transform = stages.Decontaminate(
                    functools.partial(evaluation_items, options.against, options.against_fields)
                )
            case "score":
                transform = apache_beam.ParDo(stages.Score(options.model, options.field, options.at_least))
            case _:
                transform = stages.Join(read("join", _found(options.join_with)), joined)
        documents = documents | stage >> transform
    lines = documents | "lines" >> apache_beam.Map(stages.to_line)
    _ = lines | "write" >> apache_beam.io.WriteToText(f"{options.output}/part", ".jsonl")


def command(options: BeamOptions, runner: str) -> str:
    """Return the command that runs the same stages on a cluster. Required options of Beam that are missing get placeholders."""
    default = {field.name: field for field in dataclasses.fields(options)}
    words = ["plamo2", "data", "beam"]
    for name, field in default.items():
        value = getattr(options, name)
        if name in ("runner", "beam_options", "dry_run"):
            continue
        if name == "criteria":
            standard = CleanConfig()
            some = {key: one for key, one in dataclasses.asdict(value).items() if one != getattr(standard, key)}
        else:
            some = {} if value == field.default else {name: value}
        for key, one in some.items():
            values = one if isinstance(one, tuple) else (one,)
            words += [f"--{key.replace('_', '-')}", *map(str, values)]
    given = {option.partition("=")[0] for option in options.beam_options}
    required = [one for one in RUNNERS[runner][1] if one.partition("=")[0] not in given]
    words += ["--runner", runner, "--beam-options", *options.beam_options, *required]
    return shlex.join(words)


def _found(specs: tuple[str, ...]) -> list[str]:
    """Return the files of all inputs, each once, in order."""
    files: dict[str, None] = {}
    for spec in specs:
        if spec.startswith(("tfds:", "bundled:")):
            raise PlamoError(
                f"--input {spec} is not a file: it must be a file, a folder or a pattern. Export it to a file first"
            )
        if "://" not in spec:
            files |= dict.fromkeys(str(path.resolve()) for path in find_files(spec))
            continue
        from apache_beam.io.filesystems import FileSystems

        found = sorted(entry.path for entry in FileSystems.match([spec])[0].metadata_list)
        if not found:
            raise PlamoError(f"{spec} does not exist: it must be a file or a pattern that matches a file")
        files |= dict.fromkeys(found)
    return list(files)


def _check_output(output: str) -> None:
    """Check that the output folder is empty."""
    if "://" in output:
        from apache_beam.io.filesystems import FileSystems

        used = bool(FileSystems.match([f"{output}/*"], limits=[1])[0].metadata_list)
    else:
        folder = Path(output)
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if used:
        raise PlamoError(f"{output} is not empty: give the name of a new folder")
