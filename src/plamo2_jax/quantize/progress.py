"""Finished layers of an interrupted quantization, in a folder beside the output: `OUT.progress`.

A layer is one safetensors file, written under a temporary name and renamed. `key.json` identifies the model, the options and the
calibration data; layers of another key are removed. The folder is removed when the output is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.model.quantized import QuantizedArray
from plamo2_jax.quantize.config import MatrixFormat, QuantizeConfig
from plamo2_jax.quantize.report import MatrixReport
from plamo2_jax.storage import write_whole

_KEY = "key.json"
# safetensors for NumPy knows neither int4 nor float8, so their bits are stored as bytes.
_AS_BYTES = {"int4": np.int8, "float8_e4m3fn": np.uint8}


class Progress:
    """The folder of finished layers.

    Args:
        folder: The folder. `begin` creates it.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def begin(
        self, config: QuantizeConfig, formats: Mapping[str, MatrixFormat], batches: Sequence[Batch], fingerprint: str
    ) -> None:
        """Create the folder, and remove layers of another quantization.

        Args:
            config: Method and its settings.
            formats: Format of each matrix.
            batches: Calibration batches.
            fingerprint: Fingerprint of the float model.

        Raises:
            PlamoError: The folder holds other files.
        """
        folder = self._folder
        digest = hashlib.blake2b(digest_size=16)
        for batch in batches:
            for name in ("tokens", "segment_ids", "positions"):
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
        key = {
            "options": dataclasses.asdict(config),
            "formats": {path: dataclasses.asdict(form) for path, form in formats.items()},
            "calibration": digest.hexdigest(),
            "model": fingerprint,
        }
        text = json.dumps(key, sort_keys=True)
        if folder.exists() and (not (folder / _KEY).is_file() or (folder / _KEY).read_text(encoding="utf-8") != text):
            if any(path.name != _KEY and path.suffix != ".safetensors" for path in folder.iterdir()):
                raise PlamoError(f"{folder} is not a folder of finished layers: rename it, or choose another output")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _KEY, text.encode())

    def store(self, index: int, leaves: Mapping[str, Any], reports: list[MatrixReport]) -> None:
        """Write the parameters of a finished layer."""
        arrays, quantized = {}, {}
        for path, leaf in leaves.items():
            if not isinstance(leaf, QuantizedArray):
                arrays[path] = np.asarray(leaf)
                continue
            dtype = np.dtype(leaf.values.dtype).name
            values = np.asarray(leaf.values)
            as_bytes = _AS_BYTES.get(dtype)
            if as_bytes is not None:
                values = values.astype(np.int8) if dtype == "int4" else values.view(np.uint8)
            arrays |= {f"{path}.values": values, f"{path}.scales": np.asarray(leaf.scales)}
            quantized[path] = {"dtype": dtype, "contracted": leaf.contracted, "activations": leaf.activations}
        about = {"quantized": quantized, "reports": [dataclasses.asdict(report) for report in reports]}
        content = save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, {"about": json.dumps(about)})
        write_whole(self._path(index), content)

    def load(self, index: int) -> tuple[dict[str, Any], list[MatrixReport]] | None:
        """Return the parameters of a layer and the reports of its matrices; None if the layer is not finished or its file is damaged."""
        if not self._path(index).is_file():
            return None
        try:
            with safe_open(self._path(index), framework="np") as file:
                about = parse_json(file.metadata()["about"], str(self._path(index)))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, PlamoError):
            return None
        leaves = {}
        for path, each in about["quantized"].items():
            values = arrays.pop(f"{path}.values")
            dtype = jnp.dtype(each["dtype"])
            values = values.astype(dtype) if each["dtype"] == "int4" else values.view(dtype)
            scales = jnp.asarray(arrays.pop(f"{path}.scales"))
            leaves[path] = QuantizedArray(
                jnp.asarray(values), scales, None, tuple(each["contracted"]), each["activations"]
            )
        leaves |= {path: jnp.asarray(array) for path, array in arrays.items()}
        return leaves, [MatrixReport(**report) for report in about["reports"]]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"layer_{index:05}.safetensors"
