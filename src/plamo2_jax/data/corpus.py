"""The bundled bilingual corpus: Japanese and English documentation, a few MB compressed, in the package.

It contains LibreOffice Help (MPL-2.0) and The Debian Administrator's Handbook (CC-BY-SA-3.0), page-aligned between the two languages.
`scripts/build_corpus.py` rebuilds it. The licences of the texts are in the folder `bundled/`.

A document is a dict of strings:
    id: Unique id, "SOURCE/LANGUAGE/PATH".
    text: Paragraphs separated by one newline, with an empty line before a heading.
    language: "ja" or "en".
    source, license, path: Package, SPDX identifier, page in the package.
    pair: Key of the held-out split, equal for a page and its translation.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from plamo2_jax.errors import PlamoError

LANGUAGES = ("ja", "en")
SPLITS = ("all", "train", "heldout")
FIELDS = ("id", "text", "language", "source", "license", "path", "pair")
HELDOUT_FRACTION = 0.07


def bundled_folder() -> Traversable:
    """Return the folder of the package with the corpus, its manifest and its licences."""
    return resources.files("plamo2_jax.data") / "bundled"


def manifest() -> dict:
    """Return the manifest of the bundled corpus: hashes, sizes, counts, package versions and licences."""
    return json.loads((bundled_folder() / "manifest.json").read_text(encoding="utf-8"))


def split_of(pair: str) -> str:
    """Return the side of a pair key in the split: "train" or "heldout".

    The side depends only on the key, so a page and its translation are on the same side, and a rebuilt corpus keeps its split. A key is
    held out if its SHA-256, as a fraction of 1, is below `HELDOUT_FRACTION`.
    """
    digest = hashlib.sha256(pair.encode("utf-8")).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < HELDOUT_FRACTION * 2**64 else "train"


def documents(
    language: str | None = None, split: str = "all", folder: Traversable | None = None
) -> Iterator[dict[str, str]]:
    """Yield the documents of the bundled corpus in a fixed order: Japanese before English, each sorted by id.

    Args:
        language: "ja", "en" or None for both.
        split: "all", "train" or "heldout".
        folder: Folder of another corpus from `scripts/build_corpus.py --extra`; None: the bundled corpus.

    Raises:
        PlamoError: The language or split is unknown.
        FileNotFoundError: The folder holds no corpus.
    """
    if language is not None and language not in LANGUAGES:
        raise PlamoError(f"language={language!r} is not allowed: it must be None or one of {', '.join(LANGUAGES)}")
    if split not in SPLITS:
        raise PlamoError(f"split={split!r} is not allowed: it must be one of {', '.join(SPLITS)}")
    return _read(folder or bundled_folder(), LANGUAGES if language is None else (language,), split)


def _read(folder: Traversable, languages: tuple[str, ...], split: str) -> Iterator[dict[str, str]]:
    for language in languages:
        packed = (folder / f"{language}.jsonl.xz").read_bytes()
        for line in lzma.decompress(packed).splitlines():
            document = json.loads(line)
            if split in ("all", split_of(document["pair"])):
                yield document
