"""Entry point of the `plamo2` command: selects the subcommand and passes the other arguments to it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys

from plamo2_jax.cli import compile_cache
from plamo2_jax.cli.allocator import keep_freed_memory
from plamo2_jax.cli.compile_cache import NO_CACHE
from plamo2_jax.cli.library_logs import silence_library_logs
from plamo2_jax.errors import PlamoError

COMMANDS = {
    "init": "write a project folder: config files, a Makefile, hints about the data format",
    "quickstart": "train a tiny model on the bundled text in about a minute and chat with it",
    "tokenizer": "train a tokenizer, encode and decode text",
    "data": "clean, deduplicate, score and tokenize text; export the bundled corpus",
    "pretrain": "train a model from a config file",
    "sft": "fine-tune a model on conversations",
    "dpo": "train a model on preference data (DPO and related losses)",
    "preference-data": "make preference data: sample answers from a model, score them, form pairs",
    "iterate": "iterative DPO: rounds of preference-data, dpo and merge",
    "lora": "merge LoRA adapters into a model's weights",
    "synth": "make synthetic data from documents, rules and models",
    "pipeline": "run plamo2 commands as a pipeline; finished stages are skipped",
    "launch": "start training on TPU slices, in GKE, under SLURM or as several processes",
    "evaluate": "evaluate a model on benchmark tasks and held-out data; compare results",
    "generate": "continue a prompt",
    "chat": "chat with a model or a server in the terminal",
    "serve": "serve a model over HTTP: OpenAI-compatible API and chat page",
    "bench-serve": "measure an OpenAI-compatible server under load",
    "convert": "convert models from and to Hugging Face format, and to GGUF",
    "logits": "write the logits of given tokens, to compare implementations",
    "grow": "initialize a larger model from a smaller one",
    "prune": "prune a model to a smaller shape by importance",
    "quantize": "quantize a model to 8 or 4 bits",
    "merge": "merge several models or checkpoints into one",
    "extend": "extend the context: attention window, full attention, RoPE base",
    "distill": "write the logits of a teacher model to disk for distillation",
    "probe": "measure retrieval from long contexts: phonebook and needle tasks",
    "phonebook": "write phonebook documents as training text",
    "config": "show, compare and check config files",
    "watch": "follow a training run or a pipeline in the terminal",
    "inspect": "describe a model, adapter or shard folder",
    "report": "write an HTML report of a run or a pipeline",
    "plan": "predict memory and step time on a TPU slice you do not have",
}

OLD_COMMANDS = {"prefer": "preference-data"}
"""Command names before version 1.1. They still work for one release, with a warning."""


def module_of(verb: str) -> str:
    """Return the name of a command's module."""
    return verb.replace("-", "_")


def usage() -> str:
    """Return the text of `plamo2 --help`."""
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in COMMANDS.items())
    return f"""usage: plamo2 COMMAND [options]        (plamo2 COMMAND --help explains a command)

{verbs}

options:
  {"--version":<{width}}  print the version of plamo2-jax, jax and Python
  {NO_CACHE:<{width}}  do not use the cache of compiled programs in ~/.cache/plamo2"""


def version() -> str:
    """Return the text of `plamo2 --version`."""
    import platform
    from importlib import metadata

    import plamo2_jax

    return f"plamo2-jax {plamo2_jax.__version__} (jax {metadata.version('jax')}, Python {platform.python_version()})"


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status. A user error prints one sentence on stderr and returns status 2.

    All exceptions except PlamoError, OSError and KeyboardInterrupt are defects and keep their traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Arguments after `--` belong to the command that `launch` starts.
    end = argv.index("--") if "--" in argv else len(argv)
    if NO_CACHE in argv[:end]:
        argv[:end] = [word for word in argv[:end] if word != NO_CACHE]
        compile_cache.disable()
    if not argv or argv[0] in ("-h", "--help"):
        return _print(usage()) or (0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        return _print(version())
    if argv[0] in OLD_COMMANDS:
        verb = OLD_COMMANDS[argv[0]]
        print(
            f"plamo2: warning: the command {argv[0]} is now called {verb}; the old name will be removed",
            file=sys.stderr,
        )
        argv[0] = verb
    if argv[0] not in COMMANDS:
        from plamo2_jax.cli.arguments import closest_commands

        meant = closest_commands(argv[0], COMMANDS)
        known = (
            f"did you mean {meant}? plamo2 --help lists all" if meant else f"it must be one of {', '.join(COMMANDS)}"
        )
        print(f"plamo2: unknown command {argv[0][:60]!r}; {known}", file=sys.stderr)
        return 2
    compile_cache.enable()
    keep_freed_memory()
    silence_library_logs()
    # Imported on demand, so that `plamo2 --help` does not import JAX.
    verb = importlib.import_module(f"plamo2_jax.cli.{module_of(argv[0])}")
    try:
        return verb.main(argv[1:]) or 0
    except BrokenPipeError:
        return _drop_output()
    except KeyboardInterrupt:
        print(f"plamo2 {argv[0]}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (PlamoError, OSError) as error:
        print(f"plamo2 {argv[0]}: {_printable(_sentence(error))}", file=sys.stderr)
        return 2


def _print(text: str) -> int:
    """Print a text, and return 0, or the exit status for a closed pipe, as in `plamo2 --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _drop_output()
    return 0


def _drop_output() -> int:
    """Return the exit status for an output whose reader has closed the pipe. Any further write would fail, also the one at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _sentence(error: Exception) -> str:
    """Return the message of an error, without the number of the operating system's error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _printable(message: str) -> str:
    """Return a message with escaped control characters, so that names in untrusted files cannot control the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], message)


if __name__ == "__main__":
    sys.exit(main())
