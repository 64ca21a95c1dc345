"""configs/pipeline_demo.py so short that nothing is learned, in minutes: every stage is what it is there, only smaller.

For tests and for `pipeline.py`, in a working directory of its own that has configs/ in it: it makes runs/demo as the demo does.
"""

import dataclasses
import runpy

_SMALLER = "--model.hidden-size 64 --steps 4 --checkpoint-every 2 --evaluate-every 4"
_OPTIONS = {
    "tokenizer": "--sample-bytes 600000",
    "pretrain": _SMALLER,
    "sft": _SMALLER,
    "dpo": _SMALLER,
    "data prepare": "--split heldout --heldout-fraction 0.06",
    "prune": "--batches 1",
    "data instructions": "--limit 24",
    # A model that knows nothing hardly makes answers of different worth.
    "preference-data": "--samples 3 --stop.max-new-tokens 8 --pairing.margin 0.001 --heldout-share 0.3",
    "generate": "--max-new-tokens 8",
}
_STEPS = {
    "@60": "@2",
    "@120": "@4",
    " --limit 480": "",
    " --samples 2": "",
    "--limit 32": "--limit 4",
    "--max-new-tokens 32": "--max-new-tokens 4",
}


def shorter(command: str) -> str:
    """A command of the demo with further options."""
    for long, short in _STEPS.items():
        command = command.replace(long, short)
    words = command.split()
    options = _OPTIONS.get(words[0]) or _OPTIONS.get(" ".join(words[:2])) or ""
    command, redirect, file = command.partition(" > ")
    return f"{command} {options}".rstrip() + redirect + file


_demo = runpy.run_path("configs/pipeline_demo.py")["pipeline"]
pipeline = dataclasses.replace(
    _demo, stages=tuple(dataclasses.replace(stage, command=shorter(stage.command)) for stage in _demo.stages)
)
