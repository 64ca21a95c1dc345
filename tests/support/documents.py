"""Commands in README.md and in docs/, as a reader would copy them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^( *)```(?:sh|bash|text)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Return README.md and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def block(name: str, page: Path) -> str:
    """Return the block that follows `<!-- name -->` in a page."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page.name} has no block {name}"
    return found.group(1)


def lines_of(text: str) -> list[str]:
    """Return the lines of a block of shell commands. A line that ends in a backslash is joined with the next."""
    return [line for line in re.sub(r"\\\n *", "", text).splitlines() if line.strip() and not line.startswith("#")]


def plamo2_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the page and the words after `plamo2` of every such command in a block of shell commands."""
    for page in pages():
        for _, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in lines_of(text):
                for words in commands_of(line):
                    while words and re.match(r"[A-Z_]+=", words[0]):
                        words = words[1:]
                    if words and words[0] in ("plamo2", ".venv/bin/plamo2"):
                        yield page.relative_to(ROOT).as_posix(), words[1:]


def commands_of(line: str) -> list[list[str]]:
    """Split a line of shell into the words of its commands, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands, redirected = [[]], False
    for word in lexer:
        if word in ("&&", "||", "|", ";", "&"):
            commands.append([])
        elif word.startswith((">", "<")):
            redirected = True
        elif redirected:
            redirected = False
        else:
            commands[-1].append(word)
    return commands
