"""Arrays in NumPy's formats that this process did not write itself, read in bounded memory and without unpickling.

A zip file of a few kilobytes can unfold to terabytes, and a NumPy header can claim any shape. Sizes are compared before anything is
read: what the zip directory says, what the array's header says, the size of the file, and a limit.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 256 << 20
"""Largest array that is read."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayInputError(ValueError):
    """A file holds no plain arrays, or too large ones; the message names the file and the array."""


def read_npz(
    path: Path, required: str, optional: Collection[str] = (), *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, as numpy.savez writes it. Other arrays in the file are not unpacked.

    Args:
        path: the file.
        required: name of the array that must be there.
        optional: names of arrays that are read where they are there.
        max_bytes: largest array.

    Returns:
        The arrays by name, read-only.

    Raises:
        ArrayInputError: the file is no .npz, or an array is missing, larger than `max_bytes`, not of numbers, or disagrees with its
            header.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():  # To open a pipe would wait for a writer.
        raise ArrayInputError(f"{path} is not a regular file")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                if len(found) != len(archive.infolist()):
                    raise ArrayInputError(f"{path} has two arrays of the same name")
                if required not in found:
                    listed = ", ".join(sorted(found)[:10])[:200] or "none"
                    raise ArrayInputError(f"{path} has no array {required}; it has {listed}")
                names = (required, *(name for name in optional if name in found))
                return {name: _read(path, archive, name, found[name], max_bytes) for name in names}
        except ArrayInputError:
            raise
        except Exception as error:  # zipfile, the decompressors and NumPy raise many kinds on damaged files
            raise ArrayInputError(
                f"{path} is not a readable .npz file of plain arrays, as numpy.savez writes them"
            ) from error


def map_npy(
    path: Path, dtype: Any, shape: tuple[int | None, ...], *, error: type[ValueError] = ArrayInputError
) -> np.ndarray:
    """Map a .npy file into memory.

    Args:
        path: the file, as numpy.save writes it.
        dtype: that it must have.
        shape: that it must have; None stands for any length.
        error: class of the error.

    Returns:
        The array, read-only.

    Raises:
        ValueError: (as `error`) the file is missing, no plain array, of another dtype or shape, or not as long as its header says.
    """
    try:
        if not path.is_file():
            raise error(f"{path} does not exist or is not a regular file")
        with path.open("rb") as file:
            found, fortran_order, stored = _READ_HEADER[np.lib.format.read_magic(file)](file)
            start, size = file.tell(), path.stat().st_size
    except (error, OSError):
        raise
    except Exception as problem:  # numpy parses the header as Python and raises many kinds
        raise error(f"{path} is not a readable .npy file of a plain array, as numpy.save writes it") from problem
    wanted = [length if expected is None else expected for expected, length in zip(shape, found, strict=False)]
    if stored != np.dtype(dtype) or fortran_order or len(found) != len(shape) or list(found) != wanted:
        expected = f"{np.dtype(dtype)} [{', '.join('any' if length is None else str(length) for length in shape)}]"
        raise error(f"{path} holds {str(stored)[:60]} {_shown(found)}; it must hold {expected}")
    if size - start != math.prod(found) * stored.itemsize:
        raise error(f"{path} has {size:,} bytes, too few or too many for {stored} {_shown(found)}")
    if 0 in found:
        return np.zeros(found, stored)  # An empty file cannot be mapped.
    return np.memmap(path, stored, "r", start, found)


def _read(path: Path, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo, max_bytes: int) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = _READ_HEADER[version](file)
        if dtype.hasobject or dtype.kind not in "biufc":
            raise ArrayInputError(
                f"{path} is not a readable .npz file of plain arrays: {name} has dtype {str(dtype)[:60]}, which is no number"
            )
        size = math.prod(shape) * dtype.itemsize
        described = f"{path}: {name} has shape {_shown(shape)} and dtype {dtype}"
        if any(length < 0 for length in shape) or size > max_bytes:
            raise ArrayInputError(f"{described}: arrays of at most {max_bytes >> 20} MiB are read")
        if size != member.file_size - file.tell():
            raise ArrayInputError(f"{described}, which is not the size of its data")
        data = file.read(size)
        if len(data) != size:
            raise ArrayInputError(f"{described}, but its data ends before that")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _shown(shape: tuple[int, ...]) -> str:
    text = str([*shape[:6]]) if len(shape) <= 6 else f"of {len(shape)} axes"
    return text if len(text) <= 100 else f"{text[:100]}..."
