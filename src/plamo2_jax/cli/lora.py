"""`plamo2 lora MODEL ADAPTER OUT`: add trained adapters to a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call


def lora(
    model: Annotated[Path, tyro.conf.Positional],
    adapter: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    *,
    step: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Merge trained LoRA adapters into a model's weights, and write the result as a run folder.

    Args:
        model: The model that the adapters were trained on: a run folder, RUN@STEP, or a folder in Hugging Face format.
        adapter: A run that trained adapters, RUN@STEP or RUN@ema, or a folder in PEFT's layout, also from other programs. LoRA and rsLoRA
            are supported. Other kinds are refused: DoRA, activated LoRA, biases, whole modules, and adapters that were trained on a
            modified base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
        output: Run folder to create: it must not exist, or it must be empty.
        step: Step of the adapters' checkpoint, instead of RUN@STEP. Default: the newest.
        dtype: Dtype of the written parameters. The base is read in this dtype; adapters are added in float32.
    """
    from plamo2_jax import checkpoint
    from plamo2_jax.adapters.open import model_folders
    from plamo2_jax.adapters.peft import merged_model
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.storage import require_empty
    from plamo2_jax.tokenizer.template_files import chat_template_files

    require_empty(output)
    files = chat_template_files(*model_folders(adapter), ModelName.parse(model).folder)
    merged = merged_model(model, adapter, step, dtype=dtype)
    checkpoint.save_model(output, merged.config, merged.params, merged.tokenizer, files=files)
    print(output)


def main(argv: list[str]) -> int:
    """Run the command."""
    call(lora, argv, "plamo2 lora")
    return 0
