"""Measure the comparison of training documents with evaluation items on the bundled corpus: planted items, clean pages and speed.

python experiments/evaluation/contamination.py --output experiments/evaluation/contamination.json
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import time
import unicodedata
from pathlib import Path

import numpy as np

from plamo2_jax.data.contamination import (
    ContaminationIndex,
    ContaminationReport,
    EvaluationItem,
    decontaminate,
    normalize,
)
from plamo2_jax.data.documents import Document
from plamo2_jax.data.sources import read_documents

FORMS = {
    "exact": lambda text: text,
    # Spaces between all characters, where a script has no spaces, and other spaces elsewhere.
    "re-spaced": lambda text: " ".join(text) if is_japanese(text) else "\n ".join(text.split()),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text),
    "decomposed": lambda text: unicodedata.normalize("NFKD", text),
    "upper case": str.upper,
}


def is_japanese(text: str) -> bool:
    """Return whether at least a fifth of the characters are kana or kanji."""
    return sum("ぁ" <= c <= "鿿" for c in text) >= 0.2 * len(text)


def windows(text: str, language: str) -> set:
    """Return the windows of a text by a plain search: 30 characters of Japanese or 13 words of English."""
    if language == "ja":
        kept = normalize(text).replace(" ", "")
        return {kept[i : i + 30] for i in range(len(kept) - 29)}
    words = normalize(text).split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def planted(train: list[Document], heldout: list[Document]) -> dict:
    """Plant sentences of held-out pages in training pages, in each form, and count those that are found."""
    rng = np.random.default_rng(0)
    lines = [line for document in heldout for line in document.text.splitlines() if 60 <= len(line) <= 400]
    items = [lines[i] for i in rng.choice(len(lines), 400, replace=False)]
    index = ContaminationIndex(EvaluationItem(str(i), (text,)) for i, text in enumerate(items))
    found = {}
    for name, form in FORMS.items():
        hits = 0
        for i, text in enumerate(items):
            page = train[int(rng.integers(len(train)))].text
            cut = int(rng.integers(len(page)))
            hits += i in {match.item for match in index.matches(f"{page[:cut]}\n{form(text)}\n{page[cut:]}")}
        found[name] = {"planted": len(items), "found": hits}
    return found


def clean(train: list[Document], heldout: list[Document]) -> dict:
    """Compare training pages with held-out pages of the same language. Count the flagged pages, and those of a plain search.

    A page that shares a window with an item does contain evaluation text, so the rate of false positives counts
    the flagged pages that share none.
    """
    result = {}
    for language in ("ja", "en"):
        items = [document for document in heldout if document.language == language]
        pages = [document for document in train if document.language == language]
        index = ContaminationIndex(EvaluationItem(document.id, (document.text,)) for document in items)
        wanted = set().union(*(windows(document.text, language) for document in items))
        counts = collections.Counter()
        for page in pages:
            matches, shares = index.matches(page.text), bool(windows(page.text, language) & wanted)
            counts["flagged"] += bool(matches)
            counts["share a window"] += shares
            counts["flagged without a shared window"] += bool(matches) and not shares
            counts["missed"] += shares and not matches
        result[language] = {"pages": len(pages), **counts}
    counts = collections.Counter()
    for found in result.values():
        counts.update(found)
    result["both"] = dict(counts)
    for found in result.values():
        found["flagged, %"] = round(100 * found["flagged"] / found["pages"], 3)
        found["false positives, %"] = round(100 * found["flagged without a shared window"] / found["pages"], 3)
    return result


def speed(train: list[Document], heldout: list[Document]) -> dict:
    """Measure the speed on the training pages, repeated to 50 MB."""
    index = ContaminationIndex(EvaluationItem(document.id, (document.text,)) for document in heldout)
    size = sum(len(document.text.encode()) for document in train)
    times = -(-50_000_000 // size)
    report, start = ContaminationReport(), time.perf_counter()
    for _ in range(times):
        for _ in decontaminate(train, index, report):
            pass
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    megabytes = times * size / 1e6
    return {"megabytes": megabytes, "seconds": seconds, "MB/s": megabytes / seconds, "peak memory MiB": peak}


PARTS = {"planted": planted, "clean": clean, "speed": speed}


def main() -> None:
    """Run the measurements and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="measurements to make; others are kept"
    )
    options = parser.parse_args()
    result = json.loads(options.output.read_bytes()) if options.output.exists() else {}
    train, heldout = (list(read_documents([f"bundled:all:{side}"])) for side in ("train", "heldout"))
    result |= {name: PARTS[name](train, heldout) for name in options.parts}
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
