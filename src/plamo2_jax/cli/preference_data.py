"""`plamo2 preference-data CONFIG.py [--field value ...]`: preference data from a model's own answers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plamo2_jax.align.preference_data.config import PreferenceDataConfig
    from plamo2_jax.cli.preference_data_options import Options

DESCRIPTION = """Make pairs of answers for plamo2 dpo: sample a policy, score by rules and a judge, pair the better with the worse.

usage: plamo2 preference-data CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = PreferenceDataConfig(...)`; any field below can be replaced on the command line. Prompts are
records of {"prompt": text or messages} or {"messages": [...]} as JSON lines, Parquet or ArrayRecord, with "rules" where answers can be
checked; docs/post_training.md lists all forms. Policy and judge are folders, run by our own engine, or models behind OpenAI-compatible
endpoints (--policy.url, --judge.url).

Writes OUTPUT/pairs.jsonl and heldout.jsonl, which plamo2 dpo reads, answers.jsonl, config.json and report.json. The same command goes on
after a kill, and ends in the same bytes; on a folder that is complete it does nothing, except for prompts that failed.

exit status:
  0        all prompts are answered
  1        files are written, but prompts failed: report.json says which and why, and the same command tries them again
  2        an error, in one line on stderr
  130, 143 Ctrl-C or SIGTERM: it ends at once, and the same command goes on"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status, as DESCRIPTION tells it."""
    options = options_of("preference-data", argv, example, DESCRIPTION, "configs/preference_data.py")
    if options is None:
        return 2
    from plamo2_jax.align.preference_data.sampling import make_preference_data

    with progress("preference-data") as on_progress:
        report = make_preference_data(options.config, again=options.again, on_progress=on_progress)
    print(
        f"{report['answers']:,} answers to {report['prompts']:,} prompts: {report['pairs']:,} pairs, {report['heldout_pairs']:,} held out",
        file=sys.stderr,
    )
    if failed := report["failed"]:
        id, reason = next(iter(failed.items()))
        print(
            f"{len(failed):,} prompts failed, such as {id}: {reason}; the same command tries them again",
            file=sys.stderr,
        )
    print(options.config.output)
    return 1 if report["failed"] else 0


@contextlib.contextmanager
def progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; call what it gives with the prompts that are done, and all."""
    from plamo2_jax.progress import tqdm

    with tqdm(desc=verb, unit="prompt", delay=2) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress


def options_of(
    verb: str, argv: list[str], example: Callable[[], Any], description: str, such_as: str
) -> Options[Any] | None:
    """Options of the command line over the configuration of a file; None, and a sentence on stderr, where no file is named.

    Raises:
        ValueError: the file holds no such configuration.
    """
    from plamo2_jax.cli.preference_data_options import parse
    from plamo2_jax.config_file import load_config

    if not argv or argv[0].startswith("-"):
        if "-h" in argv or "--help" in argv:
            parse(verb, "CONFIG.py", example(), ["--help"], description)
        print(f"plamo2 {verb}: the first argument must be a config file, such as {such_as}", file=sys.stderr)
        return None
    path, *overrides = argv
    return parse(verb, path, load_config(Path(path), type(example()), such_as), overrides, description)


def example() -> PreferenceDataConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.align.preference_data.config import PreferenceDataConfig
    from plamo2_jax.models import ChatModelConfig

    return PreferenceDataConfig(Path("data/preferences"), (Path("prompts.jsonl"),), ChatModelConfig("runs/sft"))
