"""Write the generated parts of README.md: the badges in docs/images/ and the diagram of the packages.

    python scripts/readme_parts.py

Badges are made from the metadata in setup.cfg and constraints.txt. The diagram is made from the import contract in setup.cfg, which
`make lint` checks.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
_MARK = "<!-- packages -->"
_WIDTH = 74
_CHARACTER = 6.2  # width of a character at 11 px, in px
_BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {value}">
<title>{name}: {value}</title>
<rect width="{width}" height="20" rx="3" fill="#555"/>
<path d="M{split} 0h{rest}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{split}z" fill="{color}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{left}" y="14" textLength="{name_width}">{name}</text><text x="{right}" y="14" textLength="{value_width}">{value}</text>
</g>
</svg>
"""


def _settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def badge(name: str, value: str, color: str) -> str:
    """Return a badge as SVG."""
    name_width, value_width = (round(len(text) * _CHARACTER) for text in (name, value))
    split, width = name_width + 10, name_width + value_width + 20
    left, right = split / 2, split + (width - split) / 2
    return _BADGE.format(
        name=name,
        value=value,
        color=color,
        split=split,
        width=width,
        rest=width - split - 3,
        left=left,
        right=right,
        name_width=name_width,
        value_width=value_width,
    )


def badges() -> dict[str, str]:
    """Return the badges by file name."""
    settings = _settings()
    versions = re.findall(r"Python :: (3\.\d+)", settings["metadata"]["classifiers"])
    pins = re.findall(r"^jax==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "badge_license.svg": badge("licence", settings["metadata"]["license"], "#2b6cb0"),
        "badge_python.svg": badge("Python", f"{versions[0]} to {versions[-1]}", "#2b6cb0"),
        "badge_jax.svg": badge("jax", f"{pins[0]} to {pins[-1]}", "#2b6cb0"),
    }


def packages() -> str:
    """Return the layers of the import contract as a diagram in text. Single modules are left out, except for api, config and checkpoint."""
    settings = _settings()
    layers = settings["importlinter:contract:layers"]["layers"].split("\n")
    rows = []
    for layer in filter(None, layers):
        names = [name.strip().removeprefix("plamo2_jax.") for name in layer.split("|")]
        folders = [
            name
            for name in names
            if (ROOT / "src" / "plamo2_jax" / name).is_dir() or name in ("api", "config", "checkpoint")
        ]
        if names == ["plamo2_kernels"]:
            folders = ["kernels"]
        if folders:
            rows.append("   ".join(folders))
    line = "─" * _WIDTH
    inside = "\n".join(f"│ {row:<{_WIDTH - 2}} │" for row in rows)
    return f"┌{line}┐\n{inside}\n└{line}┘"


def with_packages(readme: str) -> str:
    """Return README.md with the present diagram in the block after the mark."""
    return re.sub(
        rf"({_MARK}\n```text\n).*?(\n```)", lambda match: match[1] + packages() + match[2], readme, flags=re.DOTALL
    )


def main() -> None:
    """Write all parts."""
    IMAGES.mkdir(exist_ok=True)
    for name, text in badges().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(with_packages(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
