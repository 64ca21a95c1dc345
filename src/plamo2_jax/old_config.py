"""Reading the config.json of older runs, which had no field `task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SFT = ("z_loss", "chat", "neftune_alpha", "lora", "samples")
_DPO = ("pairs", "preference", "reference", "reference_log_probs", "lora", "samples")


def modernize(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config.json in the current form: the fields of its task, and the task's `kind`, under the key `task`.

    A config.json in the current form, or of a folder that is not a training run, is returned unchanged.
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
