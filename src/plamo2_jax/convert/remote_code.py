"""Python files for an export: PLaMo 2 in plain PyTorch, for programs that load it with `trust_remote_code=True`.

The files are in the folder `torch_files`. They are data of this package, which never imports them.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

CONFIGURATION, MODELING, TOKENIZATION = NAMES = (
    "configuration_plamo2.py",
    "modeling_plamo2.py",
    "tokenization_plamo2.py",
)


def files() -> dict[str, bytes]:
    """Return the contents of the files by name."""
    folder = resources.files("plamo2_jax.convert") / "torch_files"
    return {name: (folder / name).read_bytes() for name in NAMES}


def config_map() -> dict[str, Any]:
    """Return the keys of config.json that name the files."""
    modeling = MODELING.removesuffix(".py")
    classes = {"AutoModel": f"{modeling}.Plamo2Model", "AutoModelForCausalLM": f"{modeling}.Plamo2ForCausalLM"}
    return {"auto_map": {"AutoConfig": f"{CONFIGURATION.removesuffix('.py')}.Plamo2Config", **classes}}


def tokenizer_map() -> dict[str, Any]:
    """Return the keys of tokenizer_config.json that name the exact tokenizer."""
    name = f"{TOKENIZATION.removesuffix('.py')}.Plamo2Tokenizer"
    return {"tokenizer_class": "Plamo2Tokenizer", "auto_map": {"AutoTokenizer": [name, None]}}
