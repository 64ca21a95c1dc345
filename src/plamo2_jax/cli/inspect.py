"""`plamo2 inspect FOLDER`: describe a folder of a model, adapters or shards."""

from __future__ import annotations

import json as json_lines
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import call


def inspect(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    tensors: bool = False,
    step: int | None = None,
    verify: bool = False,
    json: bool = False,
) -> int:
    """Describe a model, adapter or shard folder. Only headers are read, not the weights.

    Prints the kind of folder, the number of parameters in total and by part of the network, stored dtypes, axis sizes, layer pattern,
    tokenizer, chat template, checkpoints and checksums.

    Args:
        folder: A run folder or RUN@STEP, a folder in Hugging Face format, a folder of adapters, or a folder of shards.
        tensors: List every stored tensor: name, dtype, shape, axes.
        step: Step of a run folder's checkpoint. Default: the newest.
        verify: Read all files of the checkpoint and compare their checksums. The exit status is 1 if one differs.
        json: Print one JSON object.
    """
    from plamo2_jax.report.inspect import as_text, inspect_folder

    facts, found = inspect_folder(folder, step, verify)
    if json:
        listed = [tensor._asdict() | {"dtype": str(tensor.dtype)} for tensor in found]
        print(json_lines.dumps(facts | ({"tensors": listed} if tensors else {}), ensure_ascii=False, indent=2))
    else:
        print(as_text(folder, facts))
        for tensor in found if tensors else ():
            axes = "" if tensor.axes is None else "  " + ",".join(name or "-" for name in tensor.axes)
            print(f"{tensor.name}  {tensor.dtype}  {list(tensor.shape)}{axes}")
    return int(facts.get("checksums", "").startswith("damaged"))


def main(argv: list[str]) -> int:
    """Run the command."""
    return call(inspect, argv, "plamo2 inspect")
