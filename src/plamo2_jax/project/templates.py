"""The config files that come with the package, and project folders made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import plamo2_jax
from plamo2_jax.storage import new_folder, require_empty, write_whole


@dataclasses.dataclass(frozen=True)
class Template:
    """A set of config files for one purpose."""

    purpose: str
    """What the files are for, for messages."""
    files: tuple[str, ...]
    """Names of the config files."""
    command: str
    """Command that `make` runs in the project."""
    run: str
    """Run folder that it makes."""

    @property
    def config(self) -> str:
        """Path of the config file of the command."""
        return self.command.split()[-1]


TEMPLATES = {
    "start": Template(
        "train on your own text, then fine-tune",
        ("pretrain.py", "pipeline.py", "sft.py", "dpo.py", "preference_data.py", "iterate.py"),
        "plamo2 pipeline configs/pipeline.py",
        "runs/base",
    ),
    "demo": Template(
        "the demo: all stages from the tokenizer to DPO",
        (
            "demo.py",
            "demo_small.py",
            "demo_extend.py",
            "demo_sft.py",
            "demo_preference_data.py",
            "demo_dpo.py",
            "pipeline_demo.py",
            "synth_demo.yaml",
            "synth_demo_continue.yaml",
        ),
        "plamo2 pipeline configs/pipeline_demo.py",
        "runs/demo",
    ),
    "quickstart": Template(
        "the model of plamo2 quickstart",
        ("quickstart.py", "pipeline_quickstart.py"),
        "plamo2 pipeline configs/pipeline_quickstart.py",
        "runs/quickstart/model",
    ),
    "large": Template(
        "models with 1B to 31B parameters on TPU slices",
        (
            "pretrain_1b.py",
            "pretrain_8b.py",
            "pretrain_8b_32k.py",
            "pretrain_8b_128k.py",
            "pretrain_31b.py",
            "extend_32k.py",
        ),
        "plamo2 pretrain configs/pretrain_1b.py",
        "runs/pretrain_1b",
    ),
}

_BASE = {"sft.py": {"runs/demo": "runs/base"}}
"""Config file → names to replace. In the source tree, sft.py starts from the demo; in a project, from the model of pretrain.py."""


def config_folder() -> Path:
    """Return the folder of the config files: plamo2_jax/configs in an installation, configs/ in the source tree.

    setup.cfg installs configs/ as plamo2_jax.configs, so there is only one copy of the files.
    """
    installed = Path(plamo2_jax.__file__).parent / "configs"
    return installed if installed.is_dir() else installed.parents[2] / "configs"


def project_files(name: str) -> Mapping[str, str]:
    """Return the contents of the files of a project by path. `name` is a key of TEMPLATES."""
    template = TEMPLATES[name]
    found = {}
    for file in template.files:
        text = (config_folder() / file).read_text(encoding="utf-8")
        for old, new in _BASE.get(file, {}).items():
            text = text.replace(old, new)
        found[f"configs/{file}"] = text
    others = resources.files("plamo2_jax.project") / "files"
    makefile = (others / "Makefile").read_text(encoding="utf-8")
    found["Makefile"] = makefile.format(command=template.command, config=template.config, run=template.run)
    found[".gitignore"] = (others / "gitignore").read_text(encoding="utf-8")
    if name == "start":
        found["data/README.md"] = (others / "data.md").read_text(encoding="utf-8")
    return found


def write_project(folder: Path, name: str) -> list[str]:
    """Write a project folder and return the paths of its files.

    Args:
        folder: Folder to create. It may exist if it is empty.
        name: A key of TEMPLATES.

    Raises:
        PlamoError: The folder is not empty, or not on this machine.
    """
    files = project_files(name)
    require_empty(folder, replaced=False)  # It may be the current folder.
    if folder.exists():
        _write(folder, files)
    else:
        with new_folder(folder) as partial:
            _write(partial, files)
    return list(files)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / path, text.encode())
