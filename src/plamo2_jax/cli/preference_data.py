"""`plamo2 preference-data CONFIG.py [--field value ...]`: make preference data from a model's own answers."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.sampling import make_preference_data
from plamo2_jax.cli import arguments
from plamo2_jax.config_file import load_config
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.progress import tqdm

DESCRIPTION = """Make preference data for plamo2 dpo: sample answers from a policy, score them with rules and a judge, and form pairs.

usage: plamo2 preference-data CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = PreferenceDataConfig(...)`; any field below can be replaced on the command line. Prompts are
records of {"prompt": text or messages} or {"messages": [...]} as JSON lines, Parquet or ArrayRecord, with "rules" if answers can be
checked; docs/post_training.md lists all forms. Policy and judge are folders, which the local engine runs, or models on OpenAI-compatible
servers (--policy.url, --judge.url).

Writes OUTPUT/pairs.jsonl and heldout.jsonl, which plamo2 dpo reads, answers.jsonl, config.json and report.json. After an interruption, the
same command resumes, and the files come out bit-identical. If the folder is complete, the command retries only the prompts that failed.

exit status:
  0        all prompts are answered
  1        the files are written, but some prompts failed: report.json lists them with the reasons, and the same command retries them
  2        an error, in one line on stderr
  130, 143 Ctrl-C or SIGTERM: it ends at once, and the same command resumes"""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Options(Generic[Config]):
    """Options of `plamo2 preference-data` and `plamo2 iterate`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The configuration."""
    again: bool = False
    """Delete the contents of the output folder and start from the beginning."""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status (see DESCRIPTION)."""
    options = options_of("preference-data", argv, example, DESCRIPTION, "configs/preference_data.py")
    with progress("preference-data") as on_progress:
        report = make_preference_data(options.config, again=options.again, on_progress=on_progress)
    print(
        f"{report['answers']:,} answers to {report['prompts']:,} prompts: {report['pairs']:,} pairs, {report['heldout_pairs']:,} held out",
        file=sys.stderr,
    )
    if failed := report["failed"]:
        id, reason = next(iter(failed.items()))
        print(
            f"{len(failed):,} prompts failed, such as {id}: {reason}; the same command retries them",
            file=sys.stderr,
        )
    print(options.config.output)
    return 1 if failed else 0


@contextlib.contextmanager
def progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `on_progress(done, total)`, which updates a progress bar of prompts."""
    with tqdm(desc=verb, unit="prompt", delay=2) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress


def options_of(verb: str, argv: list[str], example: Callable[[], Any], description: str, such_as: str) -> Options[Any]:
    """Read a config file and the options of the command line.

    Raises:
        PlamoError: No file is named, it sets no such configuration, or an option is unknown.
    """
    path, overrides = arguments.split_config_file(
        argv, such_as, lambda: parse(verb, "CONFIG.py", example(), ["-h"], description)
    )
    return parse(verb, path, load_config(Path(path), type(example()), such_as), overrides, description)


def parse(verb: str, path: str, default: Config, args: list[str], description: str) -> Options[Config]:
    """Replace values of the configuration in the file `path` by options of the command line."""
    prog = f"plamo2 {verb} {path}"
    return arguments.parse(Options[type(default)], args, prog, description=description, default=Options(default))


def example() -> PreferenceDataConfig:
    """Return the values that the help shows if no config file is given."""
    return PreferenceDataConfig(Path("data/preferences"), (Path("prompts.jsonl"),), ChatModelConfig("runs/sft"))
