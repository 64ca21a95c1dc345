"""Reading .npy and .npz files from untrusted sources, in bounded memory and without unpickling.

A zip file of a few kilobytes can expand to terabytes, and a NumPy header can claim any shape. Before data is read, the size in the zip
directory, the size in the array header and the file size are compared with each other and with a limit.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.errors import PlamoError

MAX_BYTES = 256 << 20
"""Default size limit of an array."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayInputError(PlamoError):
    """A file has no plain arrays, or an array is too large; the message names the file and the array."""


def read_npz(
    path: Path, required: str, optional: Collection[str] = (), *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Read arrays from an .npz file that numpy.savez wrote. Other arrays in the file are not unpacked.

    Args:
        required: Name of the array that must exist.
        optional: Names of arrays to read if they exist.
        max_bytes: Largest allowed size of an array, in bytes.

    Returns:
        The arrays by name, read-only.

    Raises:
        ArrayInputError: The file is not an .npz file, or an array is missing, larger than `max_bytes`, not numeric, or contradicts its
            header.
        OSError: The file cannot be read.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would block.
        raise ArrayInputError(f"{path} is not a regular file: it must be an .npz file")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                if len(found) != len(archive.infolist()):
                    raise ArrayInputError(f"{path} has two arrays with the same name: names must be unique")
                if required not in found:
                    listed = ", ".join(sorted(found)[:10])[:200] or "none"
                    raise ArrayInputError(f"{path} has no array {required}: its arrays are {listed}")
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
    """Map a .npy file that numpy.save wrote into memory, read-only.

    Args:
        dtype: Required dtype.
        shape: Required shape; None allows any length of an axis.

    Raises:
        error: The file is missing or not a plain array, has another dtype or shape, or its length contradicts its header.
    """
    try:
        if not path.is_file():
            raise error(f"{path} does not exist or is not a regular file")
        with path.open("rb") as file:
            found, fortran_order, stored = _READ_HEADER[np.lib.format.read_magic(file)](file)
            start, size = file.tell(), path.stat().st_size
    except (error, OSError):
        raise
    except Exception as problem:  # NumPy parses the header as Python and raises many kinds of errors
        raise error(f"{path} is not a readable .npy file of a plain array, as numpy.save writes it") from problem
    wanted = [length if expected is None else expected for expected, length in zip(shape, found, strict=False)]
    if stored != np.dtype(dtype) or fortran_order or len(found) != len(shape) or list(found) != wanted:
        expected = f"{np.dtype(dtype)} [{', '.join('any' if length is None else str(length) for length in shape)}]"
        raise error(f"{path} holds {str(stored)[:60]} {_shown(found)}: it must hold {expected}")
    if size - start != math.prod(found) * stored.itemsize:
        raise error(f"{path} has {size:,} bytes, which does not fit {stored} {_shown(found)}")
    if 0 in found:
        return np.zeros(found, stored)  # An empty file cannot be mapped.
    return np.memmap(path, stored, "r", start, found)


def _read(path: Path, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo, max_bytes: int) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = _READ_HEADER[version](file)
        if dtype.hasobject or dtype.kind not in "biufc":
            raise ArrayInputError(
                f"{path} is not a readable .npz file of plain arrays: {name} has dtype {str(dtype)[:60]}, which is not numeric"
            )
        size = math.prod(shape) * dtype.itemsize
        described = f"{path}: {name} has shape {_shown(shape)} and dtype {dtype}"
        if any(length < 0 for length in shape) or size > max_bytes:
            raise ArrayInputError(f"{described}: at most {max_bytes >> 20} MiB are allowed")
        if size != member.file_size - file.tell():
            raise ArrayInputError(f"{described}, which does not fit the size of its data")
        data = file.read(size)
        if len(data) != size:
            raise ArrayInputError(f"{described}, but its data is shorter")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _shown(shape: tuple[int, ...]) -> str:
    text = str([*shape[:6]]) if len(shape) <= 6 else f"of {len(shape)} axes"
    return text if len(text) <= 100 else f"{text[:100]}..."
