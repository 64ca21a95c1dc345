"""Benchmark data that this package carries, in `eval/data`. Each folder has the licence and a notice of the source."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

from plamo2_jax.json_input import parse_json

FOLDER = Path(__file__).parent / "data"


def read_lines(name: str) -> tuple[list[dict[str, Any]], str]:
    """Read a bundled file of JSON lines that is compressed with xz.

    Args:
        name: Path below `eval/data`, with `.xz`.

    Returns:
        The records, and the SHA-256 of the uncompressed file.
    """
    data = lzma.decompress((FOLDER / name).read_bytes())
    return [json.loads(line) for line in data.decode().splitlines()], hashlib.sha256(data).hexdigest()


def read_json(name: str) -> tuple[Any, str]:
    """Read a bundled JSON file.

    Returns:
        The value, and the SHA-256 of the file.
    """
    data = (FOLDER / name).read_bytes()
    return parse_json(data, name), hashlib.sha256(data).hexdigest()
