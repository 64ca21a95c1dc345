"""`plamo2 logits MODEL --input in.npz --output out.npz`: write the logits of given tokens, to compare implementations."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.cli.decode_mesh import DecodeMesh
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least

if TYPE_CHECKING:
    import numpy as np

    from plamo2_jax.model import Plamo2

# Positions per block of logits. For a vocabulary of 100,000, 256 positions are 100 MB.
_BLOCK = 256
_ONE_DEVICE = DecodeMesh()


def logits(
    model: Annotated[Path, tyro.conf.Positional],
    *,
    input: Path,
    output: Path,
    step: int | None = None,
    batch_size: int = 4,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: DecodeMesh = _ONE_DEVICE,
) -> None:
    """Write the logits of given tokens, to compare implementations.

    Writes an .npz with the array logits [b, t, v] float32: at each position the logits of the next token. Logits at padding (segment 0) are
    meaningless. Memory use depends on the batch size, not on the size of the file.

    Args:
        model: A run folder, RUN@STEP or RUN@ema, a folder in Hugging Face format, or a folder of adapters.
        input: An .npz with the array tokens [b, t] of integers and, if rows are packed or padded, segment_ids [b, t]: 0 for padding,
            1, 2, ... for documents.
        output: The .npz to write.
        step: Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest.
        batch_size: Number of rows per batch.
        dtype: Dtype of activations and matrices. Logits are always float32.
        mesh: Devices over which the model is sharded.
    """
    from plamo2_jax.engine.weights import load_weights

    require_at_least(1, batch_size=batch_size)
    if not output.parent.is_dir():
        raise PlamoError(
            f"--output {output}: the folder {output.parent} does not exist. Create it, or choose another file"
        )
    tokens, segment_ids = read_input(input)
    network, loaded = load_weights(model, step=step, dtype=dtype, mesh=mesh.make(), scan_layers=True)
    check_tokens(input, tokens, segment_ids, loaded.config.vocab_size)
    write_logits(output, network, loaded.params, tokens, segment_ids, batch_size)
    print(f"{output}: logits {[*tokens.shape, loaded.config.vocab_size]} float32")


def read_input(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read tokens and segment ids [b, t] from an .npz file. Without segment ids, all are 1.

    Raises:
        PlamoError: The file is not an .npz file, or an array is missing or has another shape or dtype.
    """
    import numpy as np

    from plamo2_jax.array_input import read_npz

    found = read_npz(path, "tokens", ("segment_ids",))
    tokens = found["tokens"]
    segment_ids = found.get("segment_ids", np.ones(tokens.shape, np.int32))
    for name, array in (("tokens", tokens), ("segment_ids", segment_ids)):
        if array.dtype.kind not in "iu":
            raise PlamoError(f"{path}: {name} must be integers, not {array.dtype}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise PlamoError(f"{path}: tokens must have two axes [b, t], neither empty, not shape {tokens.shape}")
    if segment_ids.shape != tokens.shape:
        raise PlamoError(
            f"{path}: segment_ids has shape {segment_ids.shape}: it must be {tokens.shape}, the shape of tokens"
        )
    return tokens, segment_ids


def check_tokens(path: Path, tokens: np.ndarray, segment_ids: np.ndarray, vocab_size: int) -> None:
    """Check that token ids are in the vocabulary and segment ids in range; raise PlamoError with row and column otherwise."""
    import numpy as np

    limits = (("tokens", tokens, vocab_size - 1), ("segment_ids", segment_ids, np.iinfo(np.int32).max))
    for name, array, largest in limits:
        wrong = np.argwhere((array < 0) | (array > largest))
        if len(wrong):
            row, column = wrong[0]
            raise PlamoError(
                f"{path}: {name}[{row}, {column}] is {array[row, column]}: it must be from 0 to {largest} "
                f"({len(wrong)} value(s) are out of range)"
            )


def write_logits(
    path: Path, model: Plamo2, params: dict, tokens: np.ndarray, segment_ids: np.ndarray, batch_size: int
) -> None:
    """Write the .npz file in blocks; the file appears when it is complete."""
    import jax
    import numpy as np

    from plamo2_jax.progress import tqdm
    from plamo2_jax.storage import new_file

    features = jax.jit(lambda params, *args: model.apply({"params": params}, *args, method="features")[0])
    project = jax.jit(lambda params, x: model.apply({"params": params}, x, method="logits"))
    b, t = tokens.shape
    shape = (b, t, model.config.vocab_size)
    with (
        new_file(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
        archive.open("logits.npy", "w", force_zip64=True) as file,
        tqdm(total=b * t, desc="logits", unit="token", unit_scale=True, delay=1) as bar,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, b, batch_size):
            rows = slice(start, start + batch_size)
            count = len(tokens[rows])
            # Padding rows after the last ones: every batch has one shape and compiles once.
            fill = ((0, batch_size - count), (0, 0))
            x = features(params, *(np.pad(array[rows].astype(np.int32), fill) for array in (tokens, segment_ids)))
            for row in range(count):
                for block in range(0, t, _BLOCK):
                    y = project(params, x[row : row + 1, block : block + _BLOCK])
                    file.write(np.ascontiguousarray(y, "<f4").data)
                    bar.update(y.shape[1])


def main(argv: list[str]) -> None:
    """Run the command."""
    call(logits, argv, "plamo2 logits")
