"""`plamo2 lora MODEL ADAPTER OUT`: add trained adapters to a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import call


def lora(
    model: Annotated[Path, tyro.conf.Positional],
    adapter: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    step: int | None = None,
) -> None:
    """Add trained adapters to a model's weights, and write the sum as a run folder, which every other verb takes.

    Args:
        model: The model that the adapters were trained on: a run folder, or a folder of the public layout.
        adapter: A run that trained adapters, or a folder in PEFT's layout, ours or another's.
        output: Run folder to make; it must not exist or be empty.
        step: Which checkpoint of a run with adapters; left out, the newest.
    """
    from plamo2_jax import checkpoint
    from plamo2_jax.align.peft import CONFIG, merged_model
    from plamo2_jax.convert.hf import chat_template_files
    from plamo2_jax.storage import require_empty

    require_empty(output)
    if step is not None and (adapter / CONFIG).is_file():
        raise ValueError(f"{adapter} is of PEFT's layout and has no steps; leave --step out")
    merged = merged_model(model, adapter, step)
    # A folder `adapter` lies in the run that trained it, and so does its template.
    templates = (chat_template_files(folder) for folder in (adapter, adapter.parent, model))
    files = next(filter(None, templates), {})
    checkpoint.save_model(output, merged.config, merged.params, merged.tokenizer, files=files)
    print(output)


def main(argv: list[str]) -> int:
    """Run the verb."""
    call(lora, argv, "plamo2 lora")
    return 0
