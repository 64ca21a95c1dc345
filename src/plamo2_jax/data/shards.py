"""Tokenized text on disk: a folder of ArrayRecord shards with a manifest.

    FOLDER/manifest.json            counts, the fingerprint of the tokenizer, size and BLAKE2b-256 of each shard
    FOLDER/lengths.npy              [documents] uint32: number of tokens of each document, in order
    FOLDER/shard-00000.arrayrecord  documents, one per record; further shards follow in order

The folder may be in a bucket. Its files are then copied to a local cache before they are read (`data.cached_shards`).

A record is a 16-byte header and the ids, all little-endian:

    offset 0   uint32   0x32534450, the bytes "PDS2"
    offset 4   uint32   n, number of ids
    offset 8   uint64   UTF-8 bytes of the document's text
    offset 16  uint32   n ids; no beginning- or end-of-text id

Each record is stored in a group of its own, so that any document can be read separately.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plamo2_jax.array_input import map_npy
from plamo2_jax.data.cached_shards import CachedFolder, CachedRecords
from plamo2_jax.data.shard_cache import ShardCache
from plamo2_jax.data.streams import first_line
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import MAX_BYTES, parse_json, read_json_object
from plamo2_jax.model_files import file_inside, optional_file
from plamo2_jax.storage import address, is_remote, located
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import shown

FORMAT = "plamo2-shards-1"
MANIFEST, LENGTHS = "manifest.json", "lengths.npy"
SHARD_NAME = "shard-{:05d}.arrayrecord"
WRITER_OPTIONS = "group_size:1"
_MAGIC = 0x32534450
_HEADER = struct.Struct("<IIQ")
_COUNTS = ("documents", "tokens", "bytes")


class ShardError(PlamoError):
    """A folder of shards is missing, damaged or written with another tokenizer; the message names the file and what is expected."""


class TokenizedDocument(NamedTuple):
    """The ids of a document ([n] int32, without special tokens) and the number of UTF-8 bytes of its text."""

    ids: np.ndarray
    bytes: int


def encode_record(document: TokenizedDocument) -> bytes:
    """Return the record of a document."""
    return _HEADER.pack(_MAGIC, len(document.ids), document.bytes) + document.ids.astype("<u4").tobytes()


def decode_record(record: bytes) -> TokenizedDocument:
    """Return the document of a record.

    Raises:
        ShardError: The record does not have this format.
    """
    if len(record) < _HEADER.size:
        raise ShardError(f"a record has {len(record)} bytes: it must have at least {_HEADER.size}")
    magic, count, size = _HEADER.unpack_from(record)
    if magic != _MAGIC or len(record) != _HEADER.size + 4 * count:
        raise ShardError(
            f"a record of {len(record)} bytes starts with {record[:8].hex()}: it must start with {_MAGIC:08x} (little-endian) "
            "and its number of ids, four bytes each"
        )
    return TokenizedDocument(np.frombuffer(record, "<u4", offset=_HEADER.size).astype(np.int32), size)


class Shards:
    """Random access to the documents of a folder of shards: `len(shards)`, `shards[i]`. It can be pickled and used in several threads.

    Attributes:
        documents, tokens, bytes: Total numbers; tokens without special tokens, and the UTF-8 bytes of all texts.
        lengths: [documents] uint32, number of tokens of each document; memory-mapped.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], cached: CachedFolder | None = None):
        import grain.sources

        self.folder = folder
        self.manifest = manifest
        self.documents, self.tokens, self.bytes = (manifest[name] for name in _COUNTS)
        if cached is not None:
            # Once it is mapped, the copy may be removed from the cache.
            lengths = cached.fetch(LENGTHS)
            self.lengths = _load_lengths(lengths.path, manifest)
            self._records: CachedRecords | grain.sources.ArrayRecordDataSource = CachedRecords(
                cached, manifest["shards"]
            )
            return
        self.lengths = _load_lengths(file_inside(folder, LENGTHS, error=ShardError), manifest)
        paths = [str(folder / shard["name"]) for shard in manifest["shards"]]
        try:
            self._records = grain.sources.ArrayRecordDataSource(paths)
        except (RuntimeError, ValueError) as error:
            raise ShardError(f"the shards of {folder} cannot be opened: {first_line(error)}") from None
        if len(self._records) != self.documents:
            raise ShardError(
                f"{folder} has {len(self._records)} records, but {MANIFEST} lists {self.documents}: the folder is "
                "damaged. Copy it again, or write it again with plamo2 data prepare"
            )

    @property
    def fingerprint(self) -> str:
        """BLAKE2b of the counts and checksums in the manifest. Runs contain it, so it must not change for the same shards."""
        shards = [[shard["documents"], shard["size"], shard.get("blake2b")] for shard in self.manifest["shards"]]
        text = json.dumps([self.documents, self.tokens, shards])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.documents

    def __getitem__(self, index: int) -> TokenizedDocument:
        """Read document `index`. Raise ShardError if its record is damaged."""
        try:
            document = decode_record(self._records[index])
        except (RuntimeError, ShardError) as error:
            raise ShardError(f"{address(self.folder)}, document {index}: {first_line(error)}") from None
        if len(document.ids) != self.lengths[index]:
            raise ShardError(
                f"{address(self.folder)}, document {index} has {len(document.ids)} ids, but {LENGTHS} lists "
                f"{self.lengths[index]}: the folder is damaged. Copy it again, or write it again with plamo2 "
                "data prepare"
            )
        return document

    def __repr__(self) -> str:
        # Grain uses the source's repr in its messages and checks.
        return f"Shards({str(self.folder)!r}, documents={self.documents})"


def open_shards(folder: str | Path, tokenizer: Tokenizer | None = None, cache: ShardCache | None = None) -> Shards:
    """Open a folder of shards written by `write_shards`.

    Args:
        folder: Folder with a manifest, on this machine or in a bucket.
        tokenizer: Tokenizer that must have written the shards; None: any.
        cache: Local copies of shards in buckets; None: only folders on this machine can be opened.

    Raises:
        ShardError: The folder is missing, incomplete or damaged, was written with another tokenizer, or is in a bucket and there is no
            cache.
        PlamoError: The bucket cannot be read.
    """
    cached = None
    if is_remote(folder):
        if cache is None:
            raise ShardError(
                f"{address(folder)} is in a bucket: shards in a bucket need a local cache folder. Set "
                "data.cache (--data.cache FOLDER)"
            )
        folder = located(folder)
        cached = CachedFolder(cache, folder, MANIFEST, MAX_BYTES)
        manifest = parse_json(cached.manifest, address(folder / MANIFEST), error=ShardError)
        if not isinstance(manifest, dict):
            raise ShardError(f"{address(folder / MANIFEST)} must hold a JSON object, not {type(manifest).__name__}")
        _check_manifest(folder / MANIFEST, manifest)
    else:
        folder = Path(folder)
        manifest = read_manifest(folder)
    if tokenizer is not None and manifest["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise ShardError(
            f"{address(folder)} was tokenized with the tokenizer {manifest['tokenizer']['fingerprint'][:12]} "
            f"({manifest['tokenizer']['vocab_size']} rows), not with the given tokenizer {tokenizer.fingerprint[:12]} "
            f"({tokenizer.vocab_size} rows). Prepare the shards again, or use their tokenizer"
        )
    return Shards(folder, manifest, cached)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a folder of shards.

    Raises:
        ShardError: It is missing or damaged, or a listed shard is missing or has another size.
    """
    path = optional_file(folder, MANIFEST, error=ShardError)
    if path is None:
        raise ShardError(
            f"{folder} is not a folder of shards: it has no {MANIFEST}. Write shards with plamo2 data prepare"
        )
    manifest = read_json_object(path, error=ShardError)
    _check_manifest(path, manifest)
    for shard in manifest["shards"]:
        file = optional_file(folder, shard["name"], error=ShardError)
        if file is None:
            raise ShardError(
                f"{folder / shard['name']} is missing, but {MANIFEST} lists it: the folder is incomplete. Copy it again"
            )
        if file.stat().st_size != shard["size"]:
            raise ShardError(
                f"{file} has {file.stat().st_size} bytes, but {MANIFEST} lists {shard['size']}: the folder is "
                "damaged. Copy it again, or write it again with plamo2 data prepare"
            )
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    found = manifest.get("format")
    if found != FORMAT:
        raise ShardError(f"{path}: format is {shown(found)}: it must be {FORMAT!r}")
    tokenizer = manifest.get("tokenizer")
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("fingerprint"), str):
        raise ShardError(
            f"{path}: tokenizer is {shown(tokenizer)}: it must be an object with a fingerprint and vocab_size"
        )
    _check_counts(path, "tokenizer", tokenizer, ("vocab_size",))
    _check_counts(path, "the manifest", manifest, _COUNTS)
    shards = manifest.get("shards")
    if not isinstance(shards, list) or not shards or not all(isinstance(shard, dict) for shard in shards):
        raise ShardError(f"{path}: shards is {shown(shards)}: it must be a list of objects, not empty")
    for i, shard in enumerate(shards):
        # Only names from this module are allowed: other names could lead out of the folder.
        name, expected = shard.get("name"), SHARD_NAME.format(i)
        if name != expected:
            raise ShardError(f"{path}: shards[{i}].name is {shown(name)}: it must be {expected!r}")
        _check_counts(path, f"shards[{i}]", shard, ("documents", "size"))
        checksum = shard.get("blake2b")
        if checksum is not None and not (isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)):
            raise ShardError(f"{path}: shards[{i}].blake2b is {shown(checksum)}: it must be 64 hexadecimal digits")


def _check_counts(path: Path, what: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = values.get(name)
        if type(value) is not int or value < 0:
            raise ShardError(f"{path}: {name} of {what} is {shown(value)}: it must be a whole number, not negative")


def _load_lengths(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    lengths = map_npy(path, np.uint32, (manifest["documents"],), error=ShardError)
    tokens = int(lengths.sum(dtype=np.int64))
    if tokens != manifest["tokens"]:
        raise ShardError(
            f"{path} adds up to {tokens} tokens, but {MANIFEST} lists {manifest['tokens']}: the folder is damaged. "
            "Copy it again, or write it again with plamo2 data prepare"
        )
    return lengths
