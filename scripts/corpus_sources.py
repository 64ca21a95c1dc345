"""Where the corpus comes from: Debian packages of documentation, how their pages are found, read and licensed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from corpus_html import Block, Rules, by_class, by_id, extract_blocks, parse_html


@dataclass(frozen=True)
class Pages:
    """The pages of one language of a source.

    Attributes:
        package: Debian package that holds them.
        folder: folder inside the package.
        pattern: glob under the folder.
        key: page key, shared with the other language, from the path under the folder.
    """

    package: str
    folder: str
    pattern: str = "**/*.html"
    key: Callable[[str], str] = lambda path: path.removesuffix(".html")

    def find(self, unpacked: Path) -> Iterator[tuple[str, Path]]:
        """(key, file) of every page, sorted by key."""
        root = unpacked / self.package / self.folder
        found = {self.key(path.relative_to(root).as_posix()): path for path in root.glob(self.pattern)}
        yield from sorted(found.items())


@dataclass(frozen=True)
class Source:
    """One body of documentation in Japanese and English.

    Attributes:
        name: short name; first part of every document id and pair key.
        title, authors: for the attribution.
        license: SPDX identifier given to every document.
        pages: language to where its pages lie.
        read: blocks of one page, from its file.
        skip: keys that match are not read: menus, keyboard tables, legal notices, indexes.
        license_text: where the full licence text is: a file of /usr/share/common-licenses, or "copyright" (a paragraph of
            the package's own copyright file).
    """

    name: str
    title: str
    authors: str
    license: str
    pages: dict[str, tuple[Pages, ...]]
    read: Callable[[Path], list[Block]]
    skip: re.Pattern[str]
    license_text: str = "copyright"
    navigation: frozenset[str] = field(default_factory=frozenset)

    def packages(self) -> list[str]:
        """Names of the Debian packages, without repeats, sorted."""
        return sorted({pages.package for group in self.pages.values() for pages in group})


def html_reader(rules: Rules) -> Callable[[Path], list[Block]]:
    """A reader of HTML files by these rules."""
    return lambda path: extract_blocks(parse_html(path.read_text(encoding="utf-8")), rules)


_LIBREOFFICE = html_reader(
    Rules(
        root=by_id("DisplayArea"),
        drop_classes=frozenset(
            ["howtoget", "relatedtopics", "noteicon", "MAC", "WIN", "UNIX", "genericimage", "screenshot"]
        ),
        code_classes=frozenset(["code", "bascode", "pycode", "smathcode", "codeintable"]),
        alternatives=frozenset({"switch", "switchinline"}),
    )
)
_NUMBER = re.compile(r"^(?:\d+|[A-F])(?:\.\d+)+\.? |^第 \d+ 章 |^Chapter \d+\. |^付録 [A-F] |^Appendix [A-F]\. ")


def _publican(path: Path) -> list[Block]:
    """Blocks of a Publican (DocBook) page, without the chapter numbers in its headings."""
    rules = Rules(
        root=by_class("section", "chapter", "preface", "appendix"),
        drop_classes=frozenset(["docnav", "toc", "indexterm", "mediaobject", "footnotes"]),
        heading_classes=frozenset({"title"}),
    )
    blocks = html_reader(rules)(path)
    return [Block(b.kind, _NUMBER.sub("", b.text)) if b.kind == "heading" else b for b in blocks]


def _libreoffice_pages(language: str) -> tuple[Pages, ...]:
    folder = {"ja": "ja", "en": "en-US"}[language]
    return (Pages(f"libreoffice-help-{folder.lower()}", f"usr/share/libreoffice/help/{folder}/text"),)


def _handbook_pages(language: str) -> tuple[Pages, ...]:
    folder = {"ja": "ja-JP", "en": "en-US"}[language]
    return (Pages("debian-handbook", f"usr/share/doc/debian-handbook/html/{folder}", "*.html"),)


BUNDLED = (
    Source(
        name="libreoffice-help",
        title="LibreOffice Help 7.4",
        authors="Oracle and/or its affiliates, and LibreOffice contributors and/or their affiliates",
        license="MPL-2.0",
        pages={language: _libreoffice_pages(language) for language in ("ja", "en")},
        read=_LIBREOFFICE,
        # shared/00/000004xx, 000405xx, MODULE/00/: lists of menu paths. 04/: keyboard tables. 05/: about this help.
        skip=re.compile(
            r"^shared/00/(?:000000(?:04|99)|000004\d\d|000405\d\d|edit_menu|icon_alt)$|^(?!shared)[a-z]+/00/|/04/|^shared/05/"
        ),
        license_text="MPL-2.0",
        navigation=frozenset({"関連項目", "関連トピック", "Related Topics", "See also"}),
    ),
    Source(
        name="debian-handbook",
        title="The Debian Administrator's Handbook (Debian 11)",
        authors="Raphaël Hertzog, Roland Mas, Freexian SARL, and their translators",
        license="CC-BY-SA-3.0",
        pages={language: _handbook_pages(language) for language in ("ja", "en")},
        read=_publican,
        skip=re.compile(r"^index$"),
    ),
)

EXTRA: tuple[Source, ...] = ()
