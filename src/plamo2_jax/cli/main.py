"""Entry point of the `plamo2` command: picks the verb and hands it the remaining arguments."""

from __future__ import annotations

import importlib
import os
import signal
import sys

VERBS = {
    "tokenizer": "train a vocabulary, encode, decode",
    "data": "build the bundled corpus, clean text, write tokenized shards",
    "pretrain": "train a model from a config file",
    "sft": "fine-tune a model on conversations",
    "dpo": "train a model on pairs of answers, one preferred",
    "prefer": "pairs of answers for dpo, sampled from a model and scored by rules and a judge",
    "iterate": "rounds of prefer, dpo and merge",
    "lora": "add trained adapters to a model's weights",
    "pipeline": "run commands as a graph; what is done is not done again",
    "launch": "run pretrain on TPU slices, in GKE, under SLURM or as several processes",
    "evaluate": "held-out bits per byte of a model",
    "generate": "continue a prompt",
    "convert": "read and write checkpoints of the public PLaMo 2 layout",
    "logits": "logits of given tokens, for comparing implementations",
    "grow": "start a larger model from a smaller one's weights",
    "prune": "cut a smaller model out of a larger one",
    "merge": "one model out of several: means, differences from a base, checkpoints of a run",
    "extend": "a wider attention window, full attention, another RoPE base",
    "distill": "write a teacher's logits to disk for distillation",
    "probe": "retrieval at chosen lengths: phonebook and needle",
    "phonebook": "write phonebooks as training text",
    "inspect": "what a folder of a model, adapters or shards holds",
    "report": "one HTML page from a run directory",
    "plan": "what a program costs on a TPU that is not there, by its compiler",
}


def usage() -> str:
    """The text of `plamo2 --help`."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: plamo2 VERB [options]        (plamo2 VERB --help explains a verb)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status. Errors meant for the user are one sentence on stderr and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in VERBS:
        print(f"plamo2: unknown verb {argv[0]!r}; it must be one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    # Imported on demand: `plamo2 --help` must not pay for importing jax.
    verb = importlib.import_module(f"plamo2_jax.cli.{argv[0]}")
    try:
        return verb.main(argv[1:]) or 0
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more may be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"plamo2 {argv[0]}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        print(f"plamo2 {argv[0]}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
