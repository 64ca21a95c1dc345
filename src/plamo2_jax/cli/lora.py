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
        model: The model that the adapters were trained on: a run folder, RUN@STEP, or a folder of the public layout.
        adapter: A run that trained adapters, RUN@STEP or RUN@ema, or a folder in PEFT's layout, ours or another's. Plain LoRA is read,
            rsLoRA too. Adapters that need more than the plain model are refused by name: DoRA, activated LoRA, biases, whole modules,
            and those that were trained against a changed base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
        output: Run folder to make; it must not exist or be empty.
        step: Which checkpoint of a run with adapters, instead of RUN@STEP; left out, the newest.
    """
    from plamo2_jax import checkpoint
    from plamo2_jax.adapters.peft import FOLDER, merged_model
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.storage import require_empty
    from plamo2_jax.tokenizer.template_files import chat_template_files

    require_empty(output)
    folder = ModelName.parse(adapter).folder
    # A folder `adapter` lies in the run that trained it, and so does its template.
    run = (folder.parent,) if folder.name == FOLDER else ()
    files = chat_template_files(folder, *run, ModelName.parse(model).folder)
    merged = merged_model(model, adapter, step)
    checkpoint.save_model(output, merged.config, merged.params, merged.tokenizer, files=files)
    print(output)


def main(argv: list[str]) -> int:
    """Run the verb."""
    call(lora, argv, "plamo2 lora")
    return 0
