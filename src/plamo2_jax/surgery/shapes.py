"""Target shapes of growing and pruning: reading them for the command line, and a table of the changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from plamo2_jax.config import PRESETS, ModelConfig
from plamo2_jax.convert import load
from plamo2_jax.convert.names import ModelName
from plamo2_jax.json_input import parse_json, read_json_object
from plamo2_jax.surgery.structure import SurgeryError, structure


def read_shape(name: str, changes: Sequence[str] = ()) -> ModelConfig:
    """Return the config of a preset, a model folder or a config.json, with fields replaced.

    Args:
        name: Name of a preset, a run folder, RUN@STEP, a folder in Hugging Face format, or the path of a config.json from either folder.
        changes: `FIELD=VALUE` with fields of ModelConfig and values in JSON.

    Raises:
        PlamoError: There is no such config, or a field is unknown or out of range.
    """
    path = Path(name)
    if name in PRESETS:
        config = PRESETS[name]
    elif ModelName.parse(name).folder.is_dir():
        config = load.read_shape(name)
    elif path.is_file():
        values = read_json_object(path, error=SurgeryError)
        try:
            config = ModelConfig.from_hf(values["model"] if isinstance(values.get("model"), dict) else values)
        except ValueError as error:
            raise SurgeryError(f"{path}: {error}") from error
    else:
        raise SurgeryError(
            f"{name} is not a model shape: it must be a model folder, a config.json or one of {', '.join(PRESETS)}"
        )
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    values = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals or field not in fields:
            raise SurgeryError(
                f"--set {change!r} is not allowed: it must be FIELD=VALUE with a field of the model's config.json"
            )
        values[field] = parse_json(text, f"the value of --set {change[:80]!r}", error=SurgeryError)
    return dataclasses.replace(config, **values)


# Fields that growing and pruning change. The other fields (windows, RoPE bases, ids) define how the same weights are used.
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size_per_head",
    "mamba_num_heads",
    "mamba_d_state",
    "mamba_d_conv",
    "mamba_step",
    "mamba_enabled",
    "vocab_size",
    "tie_word_embeddings",
)


def require_sizes(changes: Sequence[str]) -> None:
    """Check that all fields of `FIELD=VALUE` are sizes, the only fields that `with_sizes` uses.

    Raises:
        SurgeryError: A field is not a size.
    """
    for change in changes:
        field = change.partition("=")[0]
        if field not in _SIZES:
            raise SurgeryError(
                f"--set {change!r} is not allowed: {field} is not a size, and keeps the model's value. Sizes are "
                f"{', '.join(_SIZES)}. To change windows and RoPE, use plamo2 extend"
            )


def with_sizes(source: ModelConfig, target: ModelConfig) -> ModelConfig:
    """Return the source config with the sizes of the target.

    `full_attention_idx` is kept only if the layer pattern stays the same; `grown_config` and `cut_config` set it otherwise.

    Raises:
        PlamoError: A size does not fit the other fields, such as a vocabulary smaller than the source's token ids.
    """
    same = source.num_hidden_layers == target.num_hidden_layers
    kept = source.full_attention_idx if same and source.mamba_step == target.mamba_step else ()
    return dataclasses.replace(source, full_attention_idx=kept, **{name: getattr(target, name) for name in _SIZES})


def changes_table(source: ModelConfig, target: ModelConfig) -> str:
    """Return a text table with the old and new size of every axis and the numbers of parameters."""
    old, new = structure(source).sizes, structure(target).sizes
    sizes = [(name, old[name], new[name]) for name in sorted(old.keys() & new.keys() - {None})]
    sizes.append(("layers", source.num_hidden_layers, target.num_hidden_layers))
    rows = [("axis", "from", "to")]
    rows += [(name, f"{before:,}", f"{after:,}" if before != after else "kept") for name, before, after in sizes]
    rows.append(("parameters", f"{source.parameter_count():,}", f"{target.parameter_count():,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows)
