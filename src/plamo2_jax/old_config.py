"""The config.json of runs written before the task was a field of its own, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SFT = ("z_loss", "chat", "neftune_alpha", "lora", "samples")
_DPO = ("pairs", "preference", "reference", "reference_log_probs", "lora", "samples")


def modernize(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run in today's form: the fields of its task under `task`, with the task's `kind`.

    Args:
        config: the configuration, of either form. What is not the configuration of a run comes back as it is.
    """
    if "task" in config or not {"data", "steps", "optimizer"} <= config.keys():
        return dict(config)
    if "preference" in config:
        task = {"kind": "dpo"} | {name: config[name] for name in _DPO if name in config}
    elif "chat" in config:
        task = {"kind": "sft"} | {name: config[name] for name in _SFT if name in config}
    elif isinstance(config.get("distillation"), dict):
        task = {"kind": "distill", "z_loss": config.get("z_loss"), **config["distillation"]}
    else:
        task = {"kind": "pretrain", "z_loss": config.get("z_loss")}
    moved = {"distillation", "keep", *_SFT, *_DPO}
    renamed = {"max_to_keep": config["keep"]} if "keep" in config else {}
    return {name: value for name, value in config.items() if name not in moved} | renamed | {"task": task}
