"""Sources of the corpus: Debian packages of documentation, with the location, parser and licence of their pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from corpus_html import Block, Rules, by_class, by_id, extract_blocks, parse_html
from corpus_man import read_man


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
        title, authors, url: for the attribution.
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
    url: str
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
_NUMBER = re.compile(r"^(?:\d+|[A-F])(?:\.\d+)*\. |^第 ?\d+ ?章 ?|^Chapter \d+\. |^付録 ?[A-F]\.? ?|^Appendix [A-F]\. ")


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
        url="https://help.libreoffice.org/",
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
        url="https://debian-handbook.info/",
        license="CC-BY-SA-3.0",
        pages={language: _handbook_pages(language) for language in ("ja", "en")},
        read=_publican,
        skip=re.compile(r"^index$"),
    ),
)


def _docbook(path: Path) -> list[Block]:
    """Blocks of a page made with the DocBook style sheets, without the numbers in its headings."""
    roots = ("book", "chapter", "preface", "appendix", "glossary", "section", "sect1", "sect2", "sect3", "article")
    rules = Rules(
        root=by_class(*roots),
        drop_classes=frozenset(
            ["toc", "indexterm", "mediaobject", "navheader", "navfooter", "revhistory", "legalnotice"]
        ),
        heading_classes=frozenset({"title"}),
    )
    blocks = html_reader(rules)(path)
    return [Block(b.kind, _NUMBER.sub("", b.text)) if b.kind == "heading" else b for b in blocks]


_LILYPOND = html_reader(
    Rules(
        root=by_id("main"),
        drop_classes=frozenset(["nav_table", "contents", "shortcontents", "menu", "index-cp", "footnote"]),
        drop_ids=frozenset(["footer", "languages", "tocframe", "nav"]),
    )
)


def _without(*endings: str) -> Callable[[str], str]:
    """A page key: the path without its language and format endings."""
    return lambda path: re.sub("(?:" + "|".join(map(re.escape, endings)) + ")+$", "", path)


def _same_folder(package: str, folder: str, pattern: str, *endings: str) -> dict[str, tuple[Pages, ...]]:
    """Pages of both languages where {language} in the three strings is all that differs."""
    return {
        language: (
            Pages(
                package.format(language=language),
                folder.format(language=language),
                pattern.format(language=language),
                _without(*endings),
            ),
        )
        for language in ("ja", "en")
    }


EXTRA = (
    Source(
        name="lilypond",
        title="LilyPond documentation",
        authors="the authors of LilyPond and their translators",
        url="https://lilypond.org/",
        license="GFDL-1.3-or-later",
        pages={
            "ja": (
                Pages(
                    "lilypond-doc-html-ja",
                    "usr/share/doc/lilypond/html/Documentation",
                    "*/*.ja.html",
                    _without(".ja.html"),
                ),
            ),
            "en": (
                Pages("lilypond-doc-html", "usr/share/doc/lilypond/html/Documentation", "*/*.html", _without(".html")),
            ),
        },
        read=_LILYPOND,
        # internals/ and contributor/ are not translated; the first is generated from the program.
        skip=re.compile(
            r"^(?:internals|contributor)/|(?:index|index_toc|all|big-page|fdl|gpl)$|gnu-free-documentation"
        ),
        license_text="GFDL-1.3",
    ),
    Source(
        name="gimp-help",
        title="GIMP Help",
        authors="the GIMP Documentation Team",
        url="https://docs.gimp.org/",
        license="GFDL-1.2-or-later",
        pages=_same_folder("gimp-help-{language}", "usr/share/gimp/2.0/help/{language}", "*.html", ".html"),
        read=_docbook,
        skip=re.compile(r"^(?:index|gfdl|legalnotice|bibliography|glossary-index)"),
        license_text="GFDL-1.2",
    ),
    Source(
        name="debian-reference",
        title="Debian Reference",
        authors="Osamu Aoki and translators",
        url="https://www.debian.org/doc/manuals/debian-reference/",
        license="GPL-2.0-or-later",
        pages=_same_folder(
            "debian-reference-{language}",
            "usr/share/debian-reference",
            "*.{language}.html",
            ".html",
            ".en",
            ".ja",
        ),
        read=_docbook,
        skip=re.compile(r"^index$"),
        license_text="GPL-2",
    ),
    Source(
        name="installation-guide",
        title="Debian GNU/Linux Installation Guide",
        authors="the Debian Installer team and translators",
        url="https://www.debian.org/releases/stable/installmanual",
        license="GPL-2.0-only",
        pages=_same_folder(
            "installation-guide-amd64", "usr/share/doc/installation-guide-amd64/{language}", "*.html", ".html"
        ),
        read=_docbook,
        skip=re.compile(r"^(?:index|apf)"),
        license_text="GPL-2",
    ),
    Source(
        name="manpages",
        title="Linux manual pages and their Japanese translation by the JM Project",
        authors="the authors named in each page; translations by the JM Project",
        url="https://www.kernel.org/doc/man-pages/",
        license="LicenseRef-manpages",  # varies by page; the packages' notices are bundled as its text
        pages={
            "ja": tuple(
                Pages(name, "usr/share/man/ja", "man*/*.gz", _without(".gz"))
                for name in ("manpages-ja", "manpages-ja-dev")
            ),
            "en": tuple(
                Pages(name, "usr/share/man", "man*/*.gz", _without(".gz")) for name in ("manpages", "manpages-dev")
            ),
        },
        read=read_man,
        skip=re.compile(r"^man7/(?:ascii|iso_8859|koi8|cp1251|armscii)"),
    ),
)
