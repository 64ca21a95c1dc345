"""Describe a folder of a model, adapters or shards from its config files and headers, without reading weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.adapters.adapter_config import read_adapter_config
from plamo2_jax.adapters.peft import CONFIG as PEFT_CONFIG
from plamo2_jax.adapters.peft import WEIGHTS as PEFT_WEIGHTS
from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.compressed_config import read_groups
from plamo2_jax.convert.compressed_read import holds_compressed
from plamo2_jax.convert.files import (
    COMPRESSED_DTYPES,
    CONFIG,
    READ_DTYPES,
    find_tensors,
    inside,
    read_header,
    read_json,
)
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.load import is_run_folder
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.quantized import FOLDER as QUANTIZED
from plamo2_jax.convert.quantized import open_quantized
from plamo2_jax.convert.read import read_public_config
from plamo2_jax.data.shards import MANIFEST as SHARDS_MANIFEST
from plamo2_jax.data.shards import read_manifest
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_file
from plamo2_jax.manifest import MANIFEST, find_damage
from plamo2_jax.model import Plamo2, abstract_params, logical_axes
from plamo2_jax.model import axes as names_of
from plamo2_jax.report.run import kind_of
from plamo2_jax.tokenizer.chat_template import FILE_NAME as TEMPLATE
from plamo2_jax.tokenizer.tokenizer import FILE_NAME as TOKENIZER
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class Tensor(NamedTuple):
    """A stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...] | None
    """Axis names; None in the public layout, where a tensor can contain several parameters."""
    group: str
    """Part of the network, such as `mlps`."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def inspect_folder(folder: Path, step: int | None = None, verify: bool = False) -> tuple[dict[str, Any], list[Tensor]]:
    """Describe a folder.

    Args:
        folder: a run folder or RUN@STEP, a folder in Hugging Face format, a PEFT folder or a folder of shards.
        step: checkpoint of a run folder; None: the step in `folder`, or else the newest.
        verify: read all files of the checkpoint and compare them with their checksums.

    Returns:
        Facts as JSON types, and the stored tensors.

    Raises:
        PlamoError: the folder is none of these, or its config files or headers are damaged.
    """
    name = ModelName.parse(folder, step=step)
    folder, step = name.folder, name.step
    if (folder / SHARDS_MANIFEST).is_file() and not (folder / checkpoint.CONFIG).exists():
        facts, tensors = _shards(folder), []
    elif (folder / PEFT_CONFIG).is_file() and not (folder / checkpoint.CONFIG).exists():
        facts, tensors = _peft(folder)
    elif folder.is_dir() and not (folder / checkpoint.CONFIG).exists():
        raise PlamoError(
            f"{folder} has no model, no adapters and no shards: it must have config.json, {PEFT_CONFIG} or "
            f"{SHARDS_MANIFEST}{_described_below(folder)}"
        )
    elif is_run_folder(folder):
        quantized = checkpoint.is_quantized(folder)
        facts, tensors = _quantized(folder, verify) if quantized else _run(name, verify)
    else:
        facts, tensors = _public(folder)
    if (step is not None or name.ema) and "steps" not in facts:
        raise PlamoError(
            f"{folder} is not a run folder, so it has no steps: remove --step, or the @ and the text after it"
        )
    # A packed tensor of a quantized model has several values in one element.
    if tensors and "formats" not in facts:
        groups, dtypes = Counter(), Counter()
        for tensor in tensors:
            groups[tensor.group] += tensor.size
            dtypes[str(tensor.dtype)] += tensor.size
        facts["parameters"] = {"total": groups.total(), **groups}
        facts["dtypes"] = dict(sorted(dtypes.items()))
        facts["bytes"] = sum(tensor.size * tensor.dtype.itemsize for tensor in tensors)
    return facts, tensors


def _run(name: ModelName, verify: bool) -> tuple[dict[str, Any], list[Tensor]]:
    folder, step = name.folder, name.step
    described = checkpoint.read_config(folder)
    config = checkpoint.read_model_config(folder)
    lora, found = checkpoint.lora_of(described), checkpoint.steps(folder)
    facts = {"kind": "run folder", "trained": kind_of(described), **_network(config), **_texts(folder), "steps": found}
    if isinstance(lora, Mapping):
        facts |= {"base": described.get("init_from"), "lora": {name: lora.get(name) for name in ("rank", "alpha")}}
    if isinstance(described.get("forked_from"), Mapping):
        facts["forked_from"] = described["forked_from"]
    if not found and step is None and not name.ema:
        return facts, []
    path = checkpoint.step_folder(folder, step)
    facts |= {
        "checkpoint": int(path.name),
        "items": sorted(item.name for item in path.iterdir() if item.is_dir()),
        "checksums": _checksums(path, verify),
    }
    axes = flax.traverse_util.flatten_dict(logical_axes(Plamo2(config)), sep="/")
    item = checkpoint.EMA if name.ema else checkpoint.PARAMS
    stored = checkpoint.read_metadata(checkpoint.item_folder(folder, step, item))
    return facts, _tensors(
        flax.traverse_util.flatten_dict(stored, sep="/"), lambda name: _group(config, name), axes.get
    )


def _quantized(folder: Path, verify: bool) -> tuple[dict[str, Any], list[Tensor]]:
    config = checkpoint.read_model_config(folder)
    file = open_quantized(folder, config)
    formats = Counter(
        f"{each.values} with {each.groups:,} scale{'s' * (each.groups > 1)} per output"
        + (f" and {each.activations} activations" if each.activations else "")
        for each in file.quantization.tensors.values()
    )
    return {
        "kind": "quantized run folder",
        **_network(config),
        **_texts(folder),
        "method": file.quantization.method,
        "formats": dict(formats.most_common()),
        "bytes": sum(tensor.size * tensor.dtype.itemsize for tensor in file.tensors.values()),
        "checksums": _checksums(folder / QUANTIZED, verify),
    }, _tensors(file.tensors, lambda name: "other")


def _public(folder: Path) -> tuple[dict[str, Any], list[Tensor]]:
    config = read_public_config(folder)
    groups = {tensor.name: _group(config, tensor.parts[0].path) for tensor in public_tensors(config)}
    facts = {"kind": "folder in Hugging Face format", **_network(config), **_texts(folder)}
    facts["checksums"] = "none: safetensors files have no checksums"
    if holds_compressed(folder):
        stored = find_tensors(folder, READ_DTYPES | COMPRESSED_DTYPES)
        described = read_json(folder, CONFIG)
        read_groups(described, str(folder / CONFIG))
        settings = described["quantization_config"]
        facts["kind"] = f"quantized {facts['kind']}"
        facts["method"] = settings["quant_method"]
        facts["formats"] = {settings["format"]: sum(name.endswith(".weight_scale") for name in stored)}
        facts["bytes"] = sum(tensor.size * tensor.dtype.itemsize for tensor in stored.values())
        return facts, _tensors(stored, lambda name: "other")
    return facts, _tensors(find_tensors(folder), lambda name: groups.get(name, "other"))


def _peft(folder: Path) -> tuple[dict[str, Any], list[Tensor]]:
    about = read_adapter_config(folder / PEFT_CONFIG)
    lora = {"rank": about.rank, "alpha": about.alpha}
    facts = {"kind": "adapters in PEFT's layout", "base": about.base, "lora": lora}
    return facts, _tensors(read_header(inside(folder, PEFT_WEIGHTS)), lambda name: "other")


def _shards(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    counts = {name: manifest[name] for name in ("documents", "tokens", "bytes")}
    return {"kind": "folder of shards", **counts, "shards": len(manifest["shards"]), "tokenizer": manifest["tokenizer"]}


def _tensors(
    stored: Mapping[str, Any], group: Callable[[str], str], axes: Callable[[str], Any] = lambda name: None
) -> list[Tensor]:
    """Return the tensors by name, from objects with a shape and a dtype."""
    return [
        Tensor(name, tuple(each.shape), each.dtype, axes(name), group(name)) for name, each in sorted(stored.items())
    ]


def _network(config: ModelConfig) -> dict[str, Any]:
    """Return the shape of a network."""
    sizes: dict[str, int] = {}
    model = Plamo2(config)
    axes = flax.traverse_util.flatten_dict(logical_axes(model), sep="/")
    for path, leaf in flax.traverse_util.flatten_dict(abstract_params(model), sep="/").items():
        sizes |= {name: size for name, size in zip(axes[path], leaf.shape, strict=True) if name is not None}
    sizes.pop(names_of.LAYERS, None)
    windowed = LayerKind.WINDOW in config.layer_kinds
    runs = [(run.count, ", ".join(kind.value for kind in run.kinds)) for run in config.layer_groups]
    return {
        "model_parameters": config.parameter_count(),
        "layers": config.num_hidden_layers,
        "layer_pattern": " + ".join(f"{count} x ({kinds})" for count, kinds in runs),
        "window": config.attention_window_size if windowed else None,
        "axes": dict(sorted(sizes.items())),
        "tied_embeddings": config.tie_word_embeddings,
    }


def _texts(folder: Path) -> dict[str, Any]:
    """Return facts about the tokenizer and the chat template. If the tokenizer cannot be read, return the reason."""
    tokenizer: dict[str, Any] | None = None
    if (folder / TOKENIZER).exists():
        try:
            loaded = Tokenizer.load(inside(folder, TOKENIZER))
            tokenizer = {"rows": loaded.vocab_size, "fingerprint": loaded.fingerprint}
        except ValueError as error:
            tokenizer = {"problem": str(error)}
    template = TEMPLATE if (folder / TEMPLATE).is_file() else None
    settings = folder / "tokenizer_config.json"
    if template is None and settings.is_file():
        content = read_json_file(settings)
        if isinstance(content, dict) and content.get("chat_template"):
            template = settings.name
    return {"tokenizer": tokenizer, "chat_template": template}


def _checksums(path: Path, verify: bool) -> str:
    if not (path / MANIFEST).is_file():
        return "none: the checkpoint was written by an older version"
    if not verify:
        return "present, not compared (--verify)"
    damage = find_damage(path)
    return "all files match their checksums" if damage is None else f"damaged: {damage}"


def _group(config: ModelConfig, path: str) -> str:
    """Return the part of the network that a parameter belongs to."""
    parts = path.split("/")
    if parts[0] in ("embedding", "lm_head"):
        return parts[0]
    if "mixer" in parts:
        run, layer = (int(part.rpartition("_")[2]) for part in parts[:2])
        return "mamba mixers" if config.layer_groups[run].kinds[layer] is LayerKind.MAMBA else "attention mixers"
    return "mlps" if "mlp" in parts else "norms"


def _described_below(folder: Path) -> str:
    """Return a sentence that names folders inside this one that can be inspected."""
    configs = (checkpoint.CONFIG, PEFT_CONFIG, SHARDS_MANIFEST)
    found = [child.name for child in sorted(folder.iterdir()) if any((child / name).is_file() for name in configs)]
    return f". Inspect a folder in it: {', '.join(found[:5])}" if found else ""


def as_text(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the facts as lines of text."""
    lines = [f"{folder}: {facts['kind']}" + (f" ({facts['trained']})" if "trained" in facts else "")]

    def say(name: str, value: Any) -> None:
        lines.append(f"  {name:<15} {value}")

    if "parameters" in facts:
        (_, total), *groups = facts["parameters"].items()
        say("parameters", f"{total:,}: " + ", ".join(f"{size:,} {name}" for name, size in groups))
        dtypes = ", ".join(f"{size:,} {dtype}" for dtype, size in facts["dtypes"].items())
        say("stored", f"{dtypes}; {facts['bytes']:,} bytes")
    if "formats" in facts:
        formats = "; ".join(f"{count} matrices {form}" for form, count in facts["formats"].items())
        say("quantized", f"by {facts['method']}: {formats}; {facts['bytes']:,} bytes")
    for name in ("documents", "tokens", "shards"):
        if name in facts:
            say(name, f"{facts[name]:,}")
    if "layers" in facts:
        window = f", window {facts['window']:,}" if facts["window"] else ""
        say("layers", f"{facts['layers']}: {facts['layer_pattern']}{window}")
        say("axes", ", ".join(f"{name} {size:,}" for name, size in facts["axes"].items()))
    if "base" in facts:
        say("adapters", f"rank {facts['lora']['rank']}, alpha {facts['lora']['alpha']}, base {facts['base']}")
    if "tokenizer" in facts:
        say("tokenizer", _tokenizer_text(facts["tokenizer"]))
    if "chat_template" in facts:
        say("chat template", facts["chat_template"] or "none")
    if "forked_from" in facts:
        say("forked from", f"{facts['forked_from'].get('run')} at step {facts['forked_from'].get('step')}")
    if "steps" in facts:
        steps = facts["steps"] if len(facts["steps"]) <= 12 else [*facts["steps"][:5], "...", *facts["steps"][-5:]]
        say("steps", ", ".join(map(str, steps)) or "no finished checkpoint")
    if "checkpoint" in facts:
        say("checkpoint", f"{facts['checkpoint']}: {', '.join(facts['items'])}")
    if "checksums" in facts:
        say("checksums", facts["checksums"])
    return "\n".join(lines)


def _tokenizer_text(tokenizer: Mapping[str, Any] | None) -> str:
    if tokenizer is None:
        return "none"
    if "problem" in tokenizer:
        return f"unreadable: {tokenizer['problem']}"
    return f"{tokenizer.get('rows', tokenizer.get('vocab_size')):,} rows, fingerprint {tokenizer['fingerprint']}"
