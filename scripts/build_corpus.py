"""Rebuild the bundled corpus, or build more of the same kind from other packages.

    python scripts/build_corpus.py                                  # src/plamo2_jax/data/bundled/
    python scripts/build_corpus.py --extra lilypond manpages --out my_corpus

Needs a Debian or Ubuntu system (apt-get download, dpkg-deb; nothing is installed, no root) and this package; no parser
library. The same package versions give the same bytes. `manifest.json` records the versions. If the system's archive has newer versions,
text and hashes differ, and the script reports this.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from corpus_sources import BUNDLED, EXTRA, Source
from corpus_text import Pages, drop_empty_sections, drop_leaks, drop_repeats, drop_untranslated, render, tidy
from tqdm import tqdm

from plamo2_jax.data.clean import CleanConfig, CleanReport, clean_documents
from plamo2_jax.data.corpus import HELDOUT_FRACTION, split_of
from plamo2_jax.data.dedup import DedupConfig, DedupReport, deduplicate

BUNDLED_FOLDER = Path(__file__).resolve().parents[1] / "src/plamo2_jax/data/bundled"
COMMON_LICENSES = Path("/usr/share/common-licenses")


@dataclass(frozen=True)
class Options:
    """Build the bundled corpus, or with --extra another corpus in another folder.

    Attributes:
        out: Folder to write; left out, the folder bundled/ of the package (required with --extra).
        cache: Folder for downloaded packages, kept between runs.
        extra: Sources to build instead of the two bundled ones.
    """

    out: Path | None = None
    cache: Path = Path("build/corpus")
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.extra) - {source.name for source in EXTRA}
        if unknown:
            allowed = ", ".join(source.name for source in EXTRA)
            raise ValueError(f"extra names {', '.join(sorted(unknown))}: it must name some of {allowed}")
        if self.extra and self.out is None:
            raise ValueError("extra needs out, a folder to write to: the bundled corpus holds the bundled sources only")


def fetch(package: str, cache: Path) -> dict[str, str]:
    """Download and unpack one package into `cache`; its name, version and SHA-256."""
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob(f"{package}_*.deb"))
    if not found:
        command = ["apt-get", "-o", "APT::Sandbox::User=", "download", package]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
        found = sorted(cache.glob(f"{package}_*.deb"))
        if done.returncode or not found:
            raise OSError(f"{' '.join(command)} failed (try apt-get update): {done.stderr.strip()}")
    deb = found[-1]
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True).stdout
    if not (cache / package).is_dir():
        subprocess.run(["dpkg-deb", "-x", deb, cache / f"{package}.tmp"], check=True)
        os.replace(cache / f"{package}.tmp", cache / package)
    return {"package": package, "version": version.strip(), "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()}


def read_pages(source: Source, cache: Path) -> tuple[Pages, dict[tuple[str, str], dict[str, str]]]:
    """Blocks of every page of a source, and each page's metadata, both by (language, pair key)."""
    pages: Pages = {}
    meta = {}
    for language, groups in sorted(source.pages.items()):
        for group in groups:
            for key, path in tqdm(list(group.find(cache)), f"{source.name} {language}", unit="page"):
                if source.skip.search(key):
                    continue
                pair = f"{source.name}/{key}"
                pages[language, pair] = source.read(path)
                meta[language, pair] = {
                    "id": f"{source.name}/{language}/{key}",
                    "language": language,
                    "source": source.name,
                    "license": source.license,
                    "path": f"{group.package}:{path.relative_to(cache / group.package).as_posix()}",
                    "pair": pair,
                }
    titles = {page[0].text for page in pages.values() if page and page[0].kind == "heading"}
    return {at: tidy(page, titles, source.navigation) for at, page in pages.items()}, meta


def build(sources: list[Source], cache: Path) -> list[dict[str, str]]:
    """The finished documents, sorted by language (Japanese first) and id."""
    pages: Pages = {}
    meta: dict[tuple[str, str], dict[str, str]] = {}
    for source in sources:
        more_pages, more_meta = read_pages(source, cache)
        pages |= more_pages
        meta |= more_meta
    heldout = {pair for _, pair in pages if split_of(pair) == "heldout"}
    # Held-out pages come first wherever the first of several equal texts is the one that stays.
    order = sorted(pages, key=lambda at: (at[1] not in heldout, at[1], at[0]))
    pages, untranslated = drop_untranslated(pages)
    pages, repeated = drop_repeats(pages, order)
    pages, leaked = drop_leaks(pages, heldout)
    say(f"paragraphs dropped: untranslated {untranslated}, repeated {repeated}, shared with held-out {dict(leaked)}")
    texts = ({**meta[at], "text": render(drop_empty_sections(pages[at]))} for at in order)
    cleaned, deduped = CleanReport(), DedupReport()
    config = CleanConfig(min_chars=60)
    kept = list(clean_documents(texts, config, cleaned))
    kept = list(deduplicate(kept, DedupConfig(threshold=0.7), deduped, total=len(kept)))
    say(cleaned.summary())
    say(deduped.summary())
    for duplicate in deduped.near:
        say(f"  near-duplicate {duplicate.similarity:.2f}: {duplicate.id} of {duplicate.duplicate_of}")
    return sorted(kept, key=lambda d: (d["language"] != "ja", d["id"]))


def write(
    documents: list[dict[str, str]], sources: list[Source], packages: list[dict[str, str]], cache: Path, out: Path
) -> dict:
    """Write LANGUAGE.jsonl.xz, the licences, ATTRIBUTION.md and manifest.json into `out`; returns the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    files, languages = {}, {}
    for language in ("ja", "en"):
        mine = [d for d in documents if d["language"] == language]
        raw = "".join(json.dumps(d, ensure_ascii=False, sort_keys=True) + "\n" for d in mine).encode()
        packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
        put(out / f"{language}.jsonl.xz", packed)
        files[f"{language}.jsonl.xz"] = {
            "sha256": hashlib.sha256(packed).hexdigest(),
            "bytes": len(packed),
            "jsonl_sha256": hashlib.sha256(raw).hexdigest(),
            "jsonl_bytes": len(raw),
        }
        languages[language] = {
            split: {"documents": len(part), "text_bytes": sum(len(d["text"].encode()) for d in part)}
            for split in ("train", "heldout")
            for part in [[d for d in mine if split_of(d["pair"]) == split]]
        }
    licenses = {}
    for source in sources:
        name = f"LICENSE.{source.license}.txt"
        put(out / name, license_text(source, cache).encode())
        licenses[source.license] = name
    manifest = {
        "description": "Japanese and English documentation, page-aligned; built by scripts/build_corpus.py",
        "files": files,
        "languages": languages,
        "heldout_fraction": HELDOUT_FRACTION,
        "licenses": licenses,
        "packages": packages,
    }
    put(out / "ATTRIBUTION.md", attribution(sources, packages).encode())
    put(out / "manifest.json", (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return manifest


def license_text(source: Source, cache: Path) -> str:
    """The full text of a source's licence, from the system's common licences or the package's copyright file."""
    if source.license_text != "copyright":
        return (COMMON_LICENSES / source.license_text).read_text(encoding="utf-8")
    # A package may share its notice with a sibling by a link that dangles here.
    paths = [cache / package / "usr/share/doc" / package / "copyright" for package in source.packages()]
    notices = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    if not notices:
        raise OSError(f"no copyright file in any of the packages {', '.join(source.packages())}")
    paragraphs = notices[0].split(f"\nLicense: {source.license}\n")
    if len(paragraphs) == 1:
        return "\n\n".join(notices)
    # Debian's format indents the text by one space and writes an empty line as " .".
    lines = [line for line in paragraphs[-1].split("\n\n")[0].splitlines()]
    return "\n".join("" if line == " ." else line.removeprefix(" ") for line in lines).strip() + "\n"


def attribution(sources: list[Source], packages: list[dict[str, str]]) -> str:
    """Who wrote the text, under which licence it comes, and what was changed."""
    versions = {p["package"]: p["version"] for p in packages}
    lines = [
        "# Attribution",
        "",
        "The text in this folder is the work of others, under the licences named here, not under the licence of the",
        "programs around it. Changed from the originals: prose extracted from the pages; navigation, images, repeated",
        "and untranslated paragraphs, and near-duplicate pages removed; a licence holds for every page of its source.",
        "",
    ]
    for source in sources:
        debs = ", ".join(f"{name} {versions[name]}" for name in source.packages())
        lines += [
            f"## {source.title} (`{source.name}`)",
            "",
            f"- Authors: {source.authors}; {source.url}",
            f"- Licence: {source.license}, full text in `LICENSE.{source.license}.txt`",
            f"- Debian packages: {debs} (`apt-get source` gives their source form)",
            "",
        ]
    return "\n".join(lines)


def put(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary name in the same folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def say(text: str) -> None:
    """Report to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


def main() -> None:
    """Build what the command line asks for."""
    options = tyro.cli(Options, description=__doc__)
    sources = [s for s in EXTRA if s.name in options.extra] or list(BUNDLED)
    out = options.out or BUNDLED_FOLDER
    names = sorted({name for source in sources for name in source.packages()})
    packages = [fetch(name, options.cache) for name in tqdm(names, "packages")]
    pinned = out / "manifest.json"
    if pinned.is_file() and json.loads(pinned.read_text())["packages"] != packages:
        say("package versions differ from the existing manifest, so the bytes will differ")
    documents = build(sources, options.cache)
    manifest = write(documents, sources, packages, options.cache, out)
    say(json.dumps({"languages": manifest["languages"], "files": manifest["files"]}, indent=2))


if __name__ == "__main__":
    main()
