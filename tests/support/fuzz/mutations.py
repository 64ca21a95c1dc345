"""Damage done to a file or a folder: bytes, JSON values, lines, compression, links, and what is no file at all.

A mutation is a pure function of the file's bytes and a random generator, so that a case is named by its seed.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**63, 10**30, 10**400, float("nan"), float("inf"),
    "", " ", "a", "0", "null", "../outside/secret.txt", "/etc/passwd", "\ud83d", "\x00", "x" * 70_000, "(a+)+$", "吾輩",
    [], [[]], [None], [1, 2, 3], ["a", "a"], {}, {"a": 1}, {"": None}, {"self": 1},
)  # fmt: skip
"""Values that stand in for any value of a JSON file."""
_ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\ud800",
    b"NaN",
    b"{{",
    b"{%",
)


def mutate(folder: Path, name: str, seed: int, outside: Path) -> str:
    """Damage one file of a folder in place; returns a word for how.

    Args:
        folder: a copy of the sound folder.
        name: the file, relative to it.
        seed: decides what is done.
        outside: a folder that no reader may touch; links and names may point into it.
    """
    rng = random.Random(seed)
    path = folder / name
    kind = rng.choices(("bytes", "structure", "lines", "file", "link"), (4, 6 if _is_json(path) else 0, 1, 0.5, 0.5))[0]
    if kind == "bytes":
        path.write_bytes(_mutate_packed(path.read_bytes(), rng, _mutate_bytes))
    elif kind == "structure":
        path.write_bytes(_mutate_packed(path.read_bytes(), rng, _mutate_json))
    elif kind == "lines":
        path.write_bytes(_mutate_packed(path.read_bytes(), rng, _mutate_lines))
    elif kind == "file":
        kind = _replace_file(path, rng)
    else:
        kind = _replace_by_link(path, rng, outside)
    return kind


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".json", ".jsonl")) or path.name in ("_METADATA", "_sharding")


def _mutate_packed(data: bytes, rng: random.Random, change: Any) -> bytes:
    """Change compressed data inside, mostly: damage of the compression alone is noticed by its checksum."""
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.8:
        return gzip.compress(change(gzip.decompress(data), rng), 1)
    return change(data, rng)


def _mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        at = rng.randrange(len(changed) + 1)
        operation = rng.randrange(7)
        if operation == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif operation == 1:
            changed[at:at] = rng.choice(_ODD_BYTES)
        elif operation == 2:
            del changed[at : at + rng.choice((1, 2, 8, 100))]
        elif operation == 3:
            del changed[at:]
        elif operation == 4:
            changed[at:at] = changed[at : at + rng.choice((1, 8, 64, 1000))] * rng.choice((1, 2, 50))
        elif operation == 5:
            changed[at : at + 8] = rng.choice((b"\x00" * 8, b"\xff" * 8, (1 << 62).to_bytes(8, "little")))
        else:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    return bytes(changed)


def _mutate_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    operation = rng.randrange(7)
    at = rng.randrange(len(lines))
    if operation == 0:
        lines[at] = b""
    elif operation == 1:
        lines.insert(at, rng.choice(lines))
    elif operation == 2:
        rng.shuffle(lines)
    elif operation == 3:
        lines[at] = b"[" * 50_000
    elif operation == 4:
        lines[at] = b'{"text": "' + b"a" * rng.choice((100, 3_000_000)) + b'"}'
    elif operation == 5:
        lines[at] = b"9" * 6000
    else:
        del lines[at]
    return b"\n".join(lines)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change one value somewhere in one JSON value of a file; of JSON lines, in one line."""
    lines = data.split(b"\n")
    whole = _parse(data)
    if whole is not None:
        return _dump(_change(whole, rng), rng)
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled:
        return b"{}"
    at = rng.choice(filled)
    value = _parse(lines[at])
    lines[at] = _dump(_change(value, rng), rng) if value is not None else b"{}"
    return b"\n".join(lines)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _dump(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=True)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]  # every key twice
    return text.encode()


def _change(value: Any, rng: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []

    def walk(parent: Any) -> None:
        children = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in children:
            places.append((parent, key))
            walk(child)

    walk(value)
    if not places or rng.random() < 0.03:
        return _odd(rng)
    parent, key = rng.choice(places)
    operation = rng.randrange(10)
    if operation < 6:
        parent[key] = _odd(rng)
    elif operation == 6 and isinstance(parent, dict):
        del parent[key]
    elif operation == 7 and isinstance(parent, dict):
        parent[rng.choice(("self", "role", "text", "", "\ud83d", f"{key}_", f"{key}".upper()))] = parent.pop(key)
    elif operation == 8:
        other, place = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    else:
        number = parent[key]
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        parent[key] = (
            rng.choice((-number, number * 2, number + 1, number * 1e6, str(number))) if is_number else [parent[key]]
        )
    return value


def _odd(rng: random.Random) -> Any:
    if rng.random() < 0.03:
        deep: Any = 1
        for _ in range(rng.choice((50, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice(ODD_VALUES)


def _replace_file(path: Path, rng: random.Random) -> str:
    path.unlink()
    kind = rng.choice(("missing", "folder", "empty", "pipe", "sparse"))
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(5 << 28)
    return kind


def _replace_by_link(path: Path, rng: random.Random, outside: Path) -> str:
    kind = rng.choice(("link out", "link loop", "link inside", "dangling link"))
    if kind == "link out":
        shutil.copyfile(path, outside / "secret.txt")  # It would be read without complaint.
        os.utime(outside / "secret.txt", (0, 1))
        path.unlink()
        path.symlink_to(outside / "secret.txt")
    elif kind == "link inside":
        path.rename(path.with_name(f"{path.name}.moved"))
        path.symlink_to(f"{path.name}.moved")
    else:
        path.unlink()
        path.symlink_to(path.name if kind == "link loop" else "nothing")
    return kind
