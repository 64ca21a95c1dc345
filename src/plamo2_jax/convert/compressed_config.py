"""Reading `quantization_config` of a compressed-tensors checkpoint: known keys are read, and all others raise an error that names the
key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from plamo2_jax.convert.compressed_tensors import FORMATS, QUANTIZATION, Scheme
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.validation import shown

# Keys that say something about the values only if they are set.
_MUST_BE_EMPTY = ("kv_cache_scheme", "sparsity_config", "transform_config")
_HARMLESS = ("version", "global_compression_ratio", "quant_method", "ignore", "config_groups", "format")
_WEIGHTS_HARMLESS = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
# The patterns of this project's own exports. Patterns of a file are not executed: a hostile one could run for ever.
_SUFFIX = re.compile(r"re:\.\*(\\\.)?([A-Za-z0-9_]+(?:\\\.[A-Za-z0-9_]+)*)\$?")


@dataclasses.dataclass(frozen=True)
class Groups:
    """The schemes of a checkpoint, and the layers to which each applies."""

    where: str
    ignored: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], Scheme], ...]

    def scheme_of(self, module: str) -> Scheme | None:
        """Return the scheme of a linear layer, or None if it is not quantized.

        As in vLLM, `ignore` comes first, then targets that name the layer or match its name, then the target Linear.
        """
        if any(target == "Linear" or _matches(target, module) for target in self.ignored):
            return None
        named = (scheme for targets, scheme in self.groups if any(_matches(target, module) for target in targets))
        every = (scheme for targets, scheme in self.groups if "Linear" in targets)
        return next(named, None) or next(every, None)


def read_groups(config: Mapping[str, Any], where: str) -> Groups:
    """Read the description of the quantized layers.

    Args:
        config: The object of config.json.
        where: Name of the file in messages.

    Raises:
        ConvertError: A key, format or pattern is not supported. The message names it.
    """
    found, where = config[QUANTIZATION], f"{where}: {QUANTIZATION}"
    for key, value in found.items():
        if key in _MUST_BE_EMPTY and not value:
            continue
        if key == "quantization_status" and value == "compressed":
            continue
        if key not in _HARMLESS:
            raise ConvertError(
                f"{where}.{key[:60]}={shown(value)} is not supported: remove it if it has no effect on the weights"
            )
    if found.get("format") not in FORMATS:
        raise ConvertError(
            f"{where}.format={shown(found.get('format'))} is not supported: it must be one of {', '.join(FORMATS)}"
        )
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not 0 < len(groups) <= 1024:
        raise ConvertError(f"{where}.config_groups must be an object with 1 to 1024 groups")
    ignored = _targets(f"{where}.ignore", found.get("ignore") or [])
    read = tuple(_group(f"{where}.config_groups.{name[:60]}", group) for name, group in groups.items())
    return Groups(where, ignored, read)


def _group(where: str, group: Any) -> tuple[tuple[str, ...], Scheme]:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise ConvertError(f"{where} must be an object with the key weights")
    known = ("targets", "weights", "input_activations", "output_activations", "format")
    if unknown := sorted(group.keys() - set(known)):
        raise ConvertError(f"{where}.{unknown[0][:60]} is not supported: the keys are {', '.join(known)}")
    if group.get("output_activations"):
        raise ConvertError(f"{where}.output_activations is not supported: it must be null")
    weights = _only(f"{where}.weights", group["weights"], dynamic=(False,), actorder=(None, "weight", "static"))
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise ConvertError(
            f"{where}.weights: type {shown(kind)} of {shown(bits)} bits is not supported: it must be int of 4 or 8 bits, or float of 8"
        )
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("group", "channel") or (strategy == "group") != (type(size) is int and size > 0):
        raise ConvertError(
            f"{where}.weights: strategy {shown(strategy)} with group_size {shown(size)} is not supported: it must be group with a positive "
            "size, or channel with null"
        )
    symmetric = weights.get("symmetric", True)
    if type(symmetric) is not bool or (kind == "float" and not symmetric):
        raise ConvertError(f"{where}.weights.symmetric={shown(symmetric)} is not supported for this type")
    scheme = Scheme(kind, bits, size if strategy == "group" else None, symmetric, _activations(where, group))
    if group.get("format", scheme.format) not in (None, scheme.format):
        raise ConvertError(
            f"{where}.format={shown(group['format'])} is not supported: for these weights it must be {scheme.format}"
        )
    return _targets(f"{where}.targets", group.get("targets")), scheme


def _activations(where: str, group: Mapping[str, Any]) -> Any:
    found = group.get("input_activations")
    if found is None:
        return None
    where = f"{where}.input_activations"
    if not isinstance(found, dict):
        raise ConvertError(f"{where} must be an object or null")
    rules = {"num_bits": (8,), "symmetric": (True,), "dynamic": (True,), "strategy": ("token",), "group_size": (None,)}
    kind = _only(where, found, **rules, actorder=(None,)).get("type", "int")
    if kind not in ("int", "float"):
        raise ConvertError(f"{where}.type={shown(kind)} is not supported: it must be int or float")
    return "int8" if kind == "int" else "float8"


def _only(where: str, found: Mapping[str, Any], **rules: tuple[Any, ...]) -> Mapping[str, Any]:
    """Check the keys of an object of quantization arguments. Each key of `rules` has one of its values, or is absent."""
    known = {*rules, *_WEIGHTS_HARMLESS, "num_bits", "type", "symmetric", "strategy", "group_size"}
    for key, value in found.items():
        if key in rules and not any(
            value is allowed or (value == allowed and value is not True) for allowed in rules[key]
        ):
            allowed = " or ".join("null" if each is None else str(each).lower() for each in rules[key])
            raise ConvertError(f"{where}.{key}={shown(value)} is not supported: it must be {allowed}")
        if key not in known and value is not None:
            raise ConvertError(f"{where}.{key[:60]}={shown(value)} is not supported")
    return found


def _targets(where: str, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) and len(each) <= 255 for each in found):
        raise ConvertError(f"{where} must be a list of names of at most 255 characters")
    for each in found:
        if each.startswith("re:") and not _SUFFIX.fullmatch(each):
            raise ConvertError(
                f"{where}: pattern {shown(each)} is not supported: patterns must be like re:.*out_proj, or give the names of the layers"
            )
    return tuple(found)


def _matches(target: str, module: str) -> bool:
    """Return whether a target is the name of a module, or a pattern that matches it. The pattern is not run."""
    if not (pattern := _SUFFIX.fullmatch(target)):
        return target == module
    return module.endswith(f"{'.' if pattern[1] else ''}{pattern[2]}".replace("\\", ""))
