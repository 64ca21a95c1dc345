"""Write the pages of the documentation site into build/docs_pages, from which mkdocs.yml builds the site (`make docs`).

    python scripts/docs_pages.py [--without-api] [--root FOLDER]

* Pages of docs/ are copied. README.md becomes the start page, and the pages about the project and the reports of experiments become pages
  of the site. Links between them are rewritten.
* The API reference (scripts/api_reference.py) and the error index (scripts/error_index.py) are written from the sources.
* A link to a file of the repository that is no page of the site becomes plain text.

The exit status is 1 if a link leads to a file that does not exist, or if a page of docs/ is missing in the navigation.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
from pathlib import Path

import api_reference
import error_index
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Pages from outside docs/, by their path in the repository.
PROJECT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# Code is left alone; it is matched first.
_LINK = re.compile(r"```.*?```|`[^`\n]+`(?!\]\()|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", re.DOTALL)


def copied() -> dict[str, str]:
    """Return the pages that are copied, with rewritten links: the path in the repository, and the path in the site."""
    found = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))}
    pages = {source: source.removeprefix("docs/") for source in found}
    pages |= {source: target for source, target in PROJECT.items() if (ROOT / source).exists()}
    for path in sorted((ROOT / "experiments").glob("*/*.md")):
        if path.stem not in ("notes", "speed_notes"):
            name = "index" if path.stem == "README" else path.stem
            pages[path.relative_to(ROOT).as_posix()] = f"experiments/{path.parent.name}/{name}.md"
    return pages


def experiments() -> str:
    """Return the page that lists the reports of experiments by their titles."""
    lines = ["# Experiments\n", "Each report states a question, the command, the machine, and the measured results.\n"]
    for path in sorted((ROOT / "experiments").glob("*/README.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"* [{title}]({path.parent.name}/index.md)")
    return "\n".join(lines) + "\n"


def generated(with_api: bool = True) -> dict[str, str]:
    """Return the pages that are written from the sources, by their path in the site."""
    api = api_reference.pages() if with_api else {"api/index.md": "# API reference\n\nThis build leaves it out.\n"}
    return {**api, "error_index.md": error_index.page(), "experiments/index.md": experiments()}


class Links:
    """Links of copied pages, rewritten for the site.

    Attributes:
        broken: messages about links that lead nowhere.
        images: pictures to copy: the path in the repository, and the path in the site.
    """

    def __init__(self, pages: dict[str, str], more: set[str]):
        self._pages, self._more = pages, more
        self.broken: list[str] = []
        self.images: dict[str, str] = {}

    def rewrite(self, source: str) -> str:
        """Return a page with its links rewritten.

        Args:
            source: the path of the page in the repository.
        """
        text = (ROOT / source).read_text(encoding="utf-8")
        return _LINK.sub(lambda match: self._link(match, source), text)

    def _link(self, match: re.Match[str], source: str) -> str:
        mark, text, address = match.groups()
        if address is None or re.match(r"[a-z]+:|#", address):
            return match.group()
        path, hash_mark, anchor = address.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if f"{target}/README.md" in self._pages:
            target = f"{target}/README.md"
        if mark and (ROOT / target).is_file():
            inside = self.images[target] = target.removeprefix("docs/")
        elif target in self._pages:
            inside = self._pages[target]
        elif (inside := target.removeprefix("docs/")) in self._more:
            pass
        elif (ROOT / target).exists():
            return text
        else:
            self.broken.append(f"{source}: {address} does not exist")
            return text
        here = posixpath.dirname(self._pages[source]) or "."
        return f"{mark}[{text}]({posixpath.relpath(inside, here)}{hash_mark}{anchor})"


def missing_in_navigation() -> list[str]:
    """Return a message for each page of docs/ that mkdocs.yml does not list, and for each listed page that does not exist."""

    def listed(items: list) -> set[str]:
        found = set()
        for item in items:
            value = next(iter(item.values())) if isinstance(item, dict) else item
            found |= listed(value) if isinstance(value, list) else {value}
        return found

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    names = listed(yaml.safe_load(text)["nav"])
    pages = {target for source, target in copied().items() if not source.startswith("experiments/")}
    return [
        *(f"mkdocs.yml does not list {page}" for page in sorted(pages - names)),
        *(f"mkdocs.yml lists {name}, which does not exist" for name in sorted(names - pages - generated(False).keys())),
    ]


def write(build: Path, with_api: bool = True) -> list[str]:
    """Write all pages into the folder `build`/docs_pages, and return the problems of links and navigation."""
    folder = build / "docs_pages"
    shutil.rmtree(folder, ignore_errors=True)
    pages, more = copied(), generated(with_api)
    links = Links(pages, set(more))
    texts = {target: links.rewrite(source) for source, target in pages.items()} | more
    for target, text in texts.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(text, encoding="utf-8")
    styles = {"docs/site.css": "site.css"}
    for source, target in (links.images | styles).items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, folder / target)
    # The folder of plamo2_kernels is called kernels/.
    link = build / "docs_sources" / "plamo2_kernels"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT / "kernels", target_is_directory=True)
    return links.broken + missing_in_navigation()


def main() -> int:
    """Write the pages; return 1 if something is wrong with links or navigation."""
    parser = argparse.ArgumentParser(description="Write the pages of the documentation site.")
    parser.add_argument(
        "--without-api", action="store_true", help="leave the API reference out, which takes most of the time"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="folder in which build/ is written (default: the repository)"
    )
    options = parser.parse_args()
    problems = write(options.root / "build", with_api=not options.without_api)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
