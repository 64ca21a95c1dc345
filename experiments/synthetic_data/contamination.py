"""Measure the decontamination of synthetic records: planted evaluation items, and clean pages and records that are flagged.

python experiments/synthetic_data/contamination.py --output experiments/synthetic_data/contamination.json

A flagged page that shares a window with an item, by a plain search without hashes, is a true hit: the bundled corpus has pages with common
sections on both sides of its split. The record has both rates.
"""

from __future__ import annotations

import argparse
import json
import platform
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import plamo2_jax
from plamo2_jax.data.contamination import ContaminationConfig, ContaminationIndex, EvaluationItem, normalize
from plamo2_jax.data.documents import Document
from plamo2_jax.data.sources import read_documents
from plamo2_jax.synth.filters import filter_contaminated
from plamo2_jax.synth.record import Seed
from plamo2_jax.synth.rule_recipes import RULE_RECIPES
from plamo2_jax.synth.stage import StageReport

CONFIG = ContaminationConfig()
RECIPES = ("word_problems_ja", "word_problems_en_chat", "arithmetic_ja", "directory_ja_chat", "directory_en")
_HALF = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFF61, 0xFFA0)}


def is_japanese(text: str) -> bool:
    """Return whether at least a fifth of the characters are kana or kanji."""
    return sum("ぁ" <= c <= "鿿" for c in text) >= 0.2 * len(text)


def half_width(text: str) -> str:
    """Return a text with katakana, punctuation and voicing marks of half width, and ASCII for full-width letters."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    return "".join(_HALF.get(c, c) for c in plain)


FORMS = {
    "exact": lambda text: text,
    # Spaces between all characters, where a script has no spaces, and other spaces elsewhere.
    "re-spaced": lambda text: " ".join(text) if is_japanese(text) else "\n ".join(text.split()),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "half width": half_width,
    "upper case": str.upper,
    "lower case": str.lower,
    "decomposed": lambda text: unicodedata.normalize("NFKD", text),
}


def rule_records(count: int, seed: int) -> Iterator[dict]:
    """Yield records of recipes that need no model."""
    for name in RECIPES:
        recipe = RULE_RECIPES[name]()
        for number in range(count // len(RECIPES)):
            steps = recipe.requests(Seed(str(number), recipe.language, ""), 0, np.random.default_rng([seed, number]))
            try:
                next(steps)
            except StopIteration as made:
                for draft in made.value:
                    yield {"text": draft.text} if draft.text is not None else {"messages": draft.messages}


def evaluation_items(heldout: list[Document], rng: np.random.Generator) -> list[str]:
    """Return sentences of held-out pages, short ones that are compared as a whole, and word problems that no record has."""
    lines = sorted({line.strip() for document in heldout for line in document.text.splitlines()})
    long = [line for line in lines if 60 <= len(line) <= 400]
    short = [line for line in lines if 20 <= len(line) < 30 and len(normalize(line)) >= 16]
    problems = [one.get("text") or one["messages"][0]["content"] for one in rule_records(500, seed=1)]
    return [
        some[i] for some, n in ((long, 400), (short, 200), (problems, 200)) for i in rng.choice(len(some), n, False)
    ]


def planted(records: list[dict], items: list[str], rng: np.random.Generator) -> dict:
    """Plant every item in a record in each form, and count those that the filter refuses for this item."""
    index = ContaminationIndex((EvaluationItem(str(i), (text,)) for i, text in enumerate(items)), CONFIG)
    found = {}
    for name, form in FORMS.items():
        hits = refused = 0
        for i, text in enumerate(items):
            record = json.loads(json.dumps(records[int(rng.integers(len(records)))]))
            holder, key = (record, "text") if "text" in record else (record["messages"][-1], "content")
            cut = int(rng.integers(len(holder[key]) + 1))
            holder[key] = f"{holder[key][:cut]}\n{form(text)}\n{holder[key][cut:]}"
            hits += i in {match.item for match in index.matches(holder[key])}
            refused += not list(filter_contaminated([record], index, StageReport()))
        found[name] = {"planted": len(items), "item found": hits, "record refused": refused}
    return found | {"items too short to compare": int(index.too_short.sum())}


def windows(text: str, language: str) -> set:
    """Return the windows of a text by a plain search."""
    if language == "ja":
        kept = normalize(text).replace(" ", "")
        return {kept[i : i + CONFIG.window_characters] for i in range(len(kept) - CONFIG.window_characters + 1)}
    words = normalize(text).split()
    return {tuple(words[i : i + CONFIG.window_words]) for i in range(len(words) - CONFIG.window_words + 1)}


def clean(train: list[Document], heldout: list[Document]) -> dict:
    """Compare training pages with held-out pages of the same language; count flagged pages with and without a shared window."""
    result = {}
    for language in ("ja", "en"):
        items = [document for document in heldout if document.language == language]
        pages = [document for document in train if document.language == language]
        index = ContaminationIndex((EvaluationItem(one.id, (one.text,)) for one in items), CONFIG)
        wanted = set().union(*(windows(one.text, language) for one in items))
        flagged = [bool(index.matches(page.text)) for page in pages]
        shares = [bool(windows(page.text, language) & wanted) for page in pages]
        pairs = list(zip(flagged, shares, strict=True))
        result[language] = {
            "pages": len(pages),
            "flagged": sum(flagged),
            "flagged and share a window (true hits)": pairs.count((True, True)),
            "flagged without a shared window": pairs.count((True, False)),
            "share a window but are not flagged": pairs.count((False, True)),
        }
    total = sum(one["pages"] for one in result.values())
    for name, key in (("flagged", "flagged"), ("flagged without a shared window", "flagged without a shared window")):
        result[f"rate: {name}"] = round(sum(result[language][key] for language in ("ja", "en")) / total, 6)
    return result


def main() -> None:
    """Run the measurements and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=10_000, help="number of synthetic records")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    train, heldout = (list(read_documents([f"bundled:all:{side}"])) for side in ("train", "heldout"))
    records = list(rule_records(options.records, seed=0))
    # Half of the records that items are planted in are pages, as rephrasings are.
    hosts = [*records[:: max(1, len(records) // len(train))], *({"text": page.text} for page in train)]
    items = evaluation_items(heldout, rng)
    pages = ContaminationIndex((EvaluationItem(one.id, (one.text,)) for one in heldout), CONFIG)
    report = StageReport()
    kept = sum(1 for _ in filter_contaminated(records, pages, report))
    result = {
        "command": "python experiments/synthetic_data/contamination.py --output experiments/synthetic_data/contamination.json",
        "versions": {
            "plamo2-jax": plamo2_jax.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "planted": planted(hosts, items, rng),
        "clean pages": clean(train, heldout),
        "records of rules against held-out pages": {"records": len(records), "flagged": len(records) - kept},
    }
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
