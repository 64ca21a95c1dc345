"""Checkers of Markdown: code fences, headings, links, references. Lines are read as in CommonMark; there is no full parser."""

from __future__ import annotations

import itertools
import re

from plamo2_jax.checkers.checker import plain

_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})([^`~\n]*)$")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
# Beginnings of quotes and of list items, which may contain a heading.
_CONTAINERS = re.compile(r"(?: {0,3}(?:>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t]))[ \t]?)+")
_LINK = re.compile(r"(!?)\[([^\[\]\n]{0,1000})\]\(\s?<?([^()\s<>]{0,2000})>?(?:\s+[\"'][^\"'\n]{0,1000}[\"'])?\s?\)")
_DEFINITION = re.compile(r"^ {0,3}\[([^\]\n]{1,1000})\]:\s*(\S+)", re.MULTILINE)
_REFERENCE = re.compile(r"\[([^\[\]\n]{1,1000})\]\[([^\[\]\n]{0,1000})\]")
_ANCHOR = re.compile(r"\[[^\[\]\n]{0,1000}\]\(#([^)#\s]{1,1000})\)")
_SCHEME = re.compile("([a-z][a-z0-9+.-]{0,30}):", re.IGNORECASE)
_SCHEMES = ("http", "https", "mailto", "tel", "ftp")


def closed_fences(text: str) -> bool:
    """Whether every code fence is closed by one of the same character that is at least as long."""
    return not _fences(text)[1]


def _fences(text: str) -> tuple[list[str], list[str]]:
    """Return the lines outside code blocks, and the fences that stay open."""
    outside, stack = [], []
    for line in text.splitlines():
        match = _FENCE.match(line[:200])
        if match is None:
            if not stack:
                outside.append(line)
        elif stack and stack[-1][0] == match.group(1)[0] and len(match.group(1)) >= len(stack[-1]):
            stack.pop()
        else:
            stack.append(match.group(1))
    return outside, stack


def _headings(text: str) -> list[tuple[int, str]]:
    """Return level and title of each heading, also of those underlined with = or -."""
    found = []
    previous = ""
    for line in _fences(text)[0]:
        match = _HEADING.match(_CONTAINERS.sub("", line[:1000], count=1) if _CONTAINERS.match(line) else line[:1000])
        bar = line.strip()
        if match is not None:
            found.append((len(match.group(1)), (match.group(2) or "").rstrip("# \t")))
            previous = ""
            continue
        if previous and bar and (not bar.strip("=") or not bar.strip("-")):
            found.append((1 if bar[0] == "=" else 2, previous))
            bar = ""
        previous = "" if bar.startswith(("-", "*", ">", "|", "+")) else bar
    return found


def _slug(title: str) -> str:
    kept = "".join(c for c in title.strip().lower() if c.isalnum() or c in " -")
    return "-".join(kept.split()).strip("-")


def heading_levels(text: str) -> bool:
    levels = [level for level, _ in _headings(text)]
    return bool(levels) and all(after <= before + 1 for before, after in itertools.pairwise(levels))


def heading_titles(text: str) -> bool:
    found = _headings(text)
    slugs = [_slug(title) for _, title in found]
    titled = all(title for _, title in found)
    return titled and len(set(slugs)) == len(slugs) and sum(level == 1 for level, _ in found) == 1


def links_and_images(text: str) -> bool:
    found = _LINK.findall("\n".join(_fences(text)[0]))
    for image, label, target in found:
        scheme = _SCHEME.match(target)
        if not target or (image and not label.strip()):
            return False
        if scheme is not None and not image and scheme.group(1).lower() not in _SCHEMES:
            return False
    return any(image for image, _, _ in found) and any(not image for image, _, _ in found)


def reference_links(text: str) -> bool:
    """Whether all reference links and anchors of the page have one target."""
    targets: dict[str, str] = {}
    for name, target in _DEFINITION.findall(text):
        if targets.setdefault(name.strip().lower(), target) != target:
            return False
    for label, name in _REFERENCE.findall(text):
        if (name or label).strip().lower() not in targets:
            return False
    anchors = [anchor.lower() for anchor in _ANCHOR.findall(text)]
    slugs = {_slug(title) for _, title in _headings(text)} if anchors else set()
    return all(anchor in slugs for anchor in anchors)


CHECKERS = (
    plain(
        "closed_fences",
        "Every code fence is closed.",
        closed_fences,
        ja=(
            "コードブロックは必ず閉じてください。",
            "``` を開いたら閉じてください。",
            "Markdown の囲みが開いたまま終わらないようにしてください。",
        ),
        en=("Close every code block.", "Each ``` needs a closing ```.", "No fence of the Markdown may stay open."),
    ),
    plain(
        "heading_levels",
        "Markdown headings occur, and no level is skipped.",
        heading_levels,
        ja=(
            "Markdown の見出しを使い、レベルを飛ばさないでください。",
            "見出しは # から順に一段ずつ深くしてください。",
            "見出しを付け、その階層に抜けがないようにしてください。",
        ),
        en=(
            "Use Markdown headings without skipping a level.",
            "Deepen headings one level at a time.",
            "Write headings, and leave out no level between them.",
        ),
    ),
    plain(
        "heading_titles",
        "There is one heading of level 1, and no heading is empty or occurs twice.",
        heading_titles,
        ja=(
            "# の見出しを一つだけ置き、見出しを重複させないでください。",
            "見出しは空にせず、同じ題を二度使わず、最上位は一つにしてください。",
            "最上位の見出しがただ一つで、どの見出しの題も異なる Markdown にしてください。",
        ),
        en=(
            "Use one # heading, and no heading twice.",
            "Headings are not empty and all different, with one at the top level.",
            "Exactly one top-level heading, and a unique title for each heading.",
        ),
    ),
    plain(
        "links_and_images",
        "Links and images with alternative text occur in Markdown, with targets of common schemes.",
        links_and_images,
        ja=(
            "Markdown のリンクと画像を一つ以上入れてください。",
            "[文字](URL) と ![説明](URL) の両方を使ってください。",
            "代替テキスト付きの画像とリンクを Markdown で含めてください。",
        ),
        en=(
            "Include a Markdown link and an image.",
            "Use both [text](URL) and ![text](URL).",
            "A link and an image with alternative text must occur in Markdown.",
        ),
    ),
    plain(
        "reference_links",
        "Every Markdown reference link and every anchor of the page has one target.",
        reference_links,
        ja=(
            "参照リンクには必ず定義を書いてください。",
            "[文字][名前] を使うときは [名前]: URL も書いてください。",
            "未定義の参照や、存在しない見出しへのリンクがない Markdown にしてください。",
        ),
        en=(
            "Define every reference link.",
            "If you use [text][name], also write [name]: URL.",
            "No reference or anchor of the Markdown may lack a target.",
        ),
    ),
)
