"""Names of models on disk: a folder, or one checkpoint of a run folder. Every command and every config field that takes a model uses
them.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.storage import address


@dataclasses.dataclass(frozen=True)
class ModelName:
    """FOLDER, FOLDER@STEP, FOLDER@ema or FOLDER@STEP,ema.

    Attributes:
        folder: Run folder, folder in Hugging Face format, or folder of adapters.
        step: Step of a run folder's checkpoint; None for the newest.
        ema: Whether the name means the moving average of the parameters instead of the parameters.
    """

    folder: Path
    step: int | None = None
    ema: bool = False

    @classmethod
    def parse(cls, name: str | os.PathLike[str], *, step: int | None = None, ema: bool = False) -> ModelName:
        """Parse a name that the user gave. If a folder of the whole name exists, an @ in the name has no meaning.

        Args:
            step: Step from an option such as `--step`.
            ema: Whether an option selects the moving average.

        Raises:
            ConvertError: The name and the option both give a step.
        """
        text = address(name)
        match = re.fullmatch(r"(.+)@(?:(\d+)(,ema)?|(ema))", text)
        if match is None or Path(text).exists():
            return cls(Path(text), step, ema)
        if match[2] is not None and step is not None:
            raise ConvertError(f"{text} already names a checkpoint: remove --step {step}, or write {match[1]}")
        return cls(Path(match[1]), step if match[2] is None else int(match[2]), ema or bool(match[3] or match[4]))
