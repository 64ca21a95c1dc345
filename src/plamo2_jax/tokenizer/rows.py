"""Rows of a PLaMo `tokenizer.jsonl`: reading, checking and writing.

The file has one row per line; the line number (from 0) is the token id. A row is a JSON list `[token, score, type, ...]`. Published files
have four more fields, which every known implementation ignores and which are kept unchanged here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from plamo2_jax.errors import PlamoError

NORMAL, UNKNOWN, CONTROL, BYTE = TYPES = ("NORMAL", "UNKNOWN", "CONTROL", "BYTE")

MAX_SCORE = 200_000.0  # 1e4 * score is an integer cost; within int32 no text that fits in memory overflows an int64 sum


@dataclass(frozen=True)
class Vocabulary:
    """The token, score and type of every row, by column.

    Attributes:
        tokens: Token strings by id; a BYTE row is spelled `<0xXX>`.
        scores: [v] float64, log probabilities as written in the file.
        types: `NORMAL`, `UNKNOWN`, `CONTROL` or `BYTE` by id.
        byte_ids: [256] int32, id of the BYTE row of each byte value.
    """

    tokens: list[str]
    scores: np.ndarray
    types: list[str]
    byte_ids: np.ndarray

    @property
    def costs(self) -> np.ndarray:
        """[v] int64, the encoder's cost of each row: -10,000 times the score, rounded."""
        return -np.rint(1e4 * self.scores).astype(np.int64)


def parse_rows(data: bytes, source: str) -> Vocabulary:
    """Parse and check the bytes of a `tokenizer.jsonl`.

    Args:
        data: Content of the file, UTF-8.
        source: Name of the file in error messages.

    Raises:
        PlamoError: A row is malformed, a token or a byte occurs twice, or a byte has no row. The message names the line (from 1).
    """
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    tokens: list[str] = []
    scores: list[float] = []
    types: list[str] = []
    first_line: dict[str, int] = {}
    byte_ids = np.full(256, -1, np.int32)
    for number, line in enumerate(lines, start=1):
        try:
            token, score, kind = _parse_row(line)
            if token in first_line:
                raise PlamoError(f"the token {token!r} is already in line {first_line[token]}: tokens must be unique")
            if kind == BYTE:
                value = _byte_value(token)
                if byte_ids[value] >= 0:
                    raise PlamoError(
                        f"the byte {value:#04x} is already in line {byte_ids[value] + 1}: bytes must be unique"
                    )
                byte_ids[value] = number - 1
        except ValueError as error:
            raise PlamoError(f"{source}, line {number}: {error}") from None
        first_line[token] = number
        tokens.append(token)
        scores.append(score)
        types.append(kind)
    if (byte_ids < 0).any():
        absent = ", ".join(f"<0x{value:02X}>" for value in np.flatnonzero(byte_ids < 0)[:4])
        raise PlamoError(
            f"{source}, up to line {len(lines)} (the last): {int((byte_ids < 0).sum())} of the 256 BYTE rows are missing,"
            f" first {absent}: all are needed to encode any text"
        )
    return Vocabulary(tokens, np.array(scores, np.float64), types, byte_ids)


def format_rows(rows: Iterable[Sequence]) -> bytes:
    """Return the bytes of a `tokenizer.jsonl` with `rows`, each `[token, score, type, ...]`, in the published format."""
    return "".join(json.dumps(list(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _parse_row(line: bytes) -> tuple[str, float, str]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise PlamoError(f"not UTF-8 (byte {error.start} of the line)") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise PlamoError(f"not JSON ({error})") from None
    if not isinstance(row, list) or len(row) < 3:
        raise PlamoError(f"a row must be a list [token, score, type, ...], not {str(row)[:60]}")
    token, score, kind = row[:3]
    if not isinstance(token, str) or not token:
        raise PlamoError(f"the token must be a non-empty string, not {repr(token)[:60]}")
    if not token.isascii():
        try:
            token.encode()
        except UnicodeEncodeError:
            raise PlamoError(f"the token {repr(token)[:60]} holds a lone surrogate, which is not text") from None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise PlamoError(f"the score of {repr(token)[:60]} must be a number, not {repr(score)[:60]}")
    if not abs(score) <= MAX_SCORE:  # also catches NaN
        shown = score if isinstance(score, float) and not math.isfinite(score) else "out of range"
        raise PlamoError(f"the score of {repr(token)[:60]} is {shown}: it must be finite and within ±{MAX_SCORE:g}")
    if kind not in TYPES:
        raise PlamoError(f"the type of {repr(token)[:60]} is {repr(kind)[:60]}: it must be one of {', '.join(TYPES)}")
    return token, float(score), kind


def _byte_value(token: str) -> int:
    digits = re.fullmatch("<0x([0-9a-fA-F]{2})>", token)
    if not digits:
        raise PlamoError(f"a BYTE row must be spelled <0x00> to <0xFF>, not {repr(token)[:60]}")
    return int(digits[1], 16)
