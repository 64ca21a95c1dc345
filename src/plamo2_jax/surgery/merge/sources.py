"""Sources of a merge, read tensor by tensor: folders in Hugging Face format and checkpoints of run folders.

Both kinds return tensors of the public layout, so a merge does not depend on how a model is stored.
"""

from __future__ import annotations

import abc
import math
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import BLOCK_BYTES, blocks
from plamo2_jax.convert.compressed_read import require_float
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import StoredTensor, check_tensors, find_tensors
from plamo2_jax.convert.finite import is_finite
from plamo2_jax.convert.layout import PublicTensor, public_tensors
from plamo2_jax.convert.load import is_run_folder, read_tokenizer
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import common_dtype, read_public_config
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class MergeError(PlamoError):
    """Models cannot be merged; the message names them and the reason."""


class Source(abc.ABC):
    """A model on disk.

    Attributes:
        name: Name of the model in messages.
        tokenizer: Tokenizer in the model's folder, or None.
        dtype: Smallest dtype that holds all tensors exactly.
    """

    def __init__(self, name: str, config: ModelConfig, tokenizer: Tokenizer | None, dtype: np.dtype):
        self.name, self.config, self.tokenizer, self.dtype = name, config, tokenizer, dtype

    def read(self, tensor: PublicTensor) -> np.ndarray:
        """Return the tensor in its public shape as a new float32 array.

        Raises:
            PlamoError: The tensor holds NaN or infinity, or cannot be read.
        """
        values = self._read(tensor)
        if not is_finite(values):
            raise MergeError(f"{self.name}: tensor {tensor.name} holds NaN or infinity: merged tensors must be finite")
        return values

    @abc.abstractmethod
    def _read(self, tensor: PublicTensor) -> np.ndarray:
        """Return the stored tensor as a float32 array."""


class PublicSource(Source):
    """A folder in Hugging Face format."""

    def __init__(self, folder: Path):
        config = read_public_config(folder)
        require_float(folder)
        wanted = public_tensors(config)
        self._stored = find_tensors(folder)
        check_tensors(folder, self._stored, wanted, config.tie_word_embeddings)
        dtype = common_dtype(self._stored[tensor.name].dtype for tensor in wanted)
        super().__init__(str(folder), config, read_tokenizer(folder, config), dtype)

    def _read(self, tensor: PublicTensor) -> np.ndarray:
        # Reading instead of mapping keeps file pages out of this process's memory.
        return _read(self._stored[tensor.name]).reshape(tensor.shape)


class RunSource(Source):
    """A checkpoint of a run folder, read array by array with TensorStore."""

    def __init__(self, folder: Path, step: int | None, ema: bool):
        item = checkpoint.EMA if ema else checkpoint.PARAMS
        checkpoint.require_model(folder)
        self._path = checkpoint.item_folder(folder, step, item)
        root = self._path.parent
        config = checkpoint.read_model_config(folder)
        leaves = jax.tree.leaves(checkpoint.check_params(folder, abstract_params(Plamo2(config)), step, item))
        checkpoint.verify_files(root, item)
        sizes = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
        # A chunk may hold all periods of a parameter. The cache keeps the last chunk, so it is decoded once.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": int(1.1 * max(sizes)) + (1 << 20)}})
        self._open: dict[str, ts.TensorStore] = {}
        dtype = common_dtype(np.dtype(leaf.dtype) for leaf in leaves)
        name = f"{folder}@{root.name}" + (",ema" if ema else "")
        super().__init__(name, config, read_tokenizer(folder, config), dtype)

    def _read(self, tensor: PublicTensor) -> np.ndarray:
        target = np.empty(tensor.size, np.float32)
        start = 0
        for part in tensor.parts:
            store = self._store(part.path)
            public = (store if part.period is None else store[part.period]).transpose(part.inverse)
            view = target[start : start + part.size].reshape(part.view)
            for rows in blocks(view):
                view[rows] = checkpoint.reading(self._path, public[rows].read().result)
            start += part.size
        return target.reshape(tensor.shape)

    def _store(self, path: str) -> ts.TensorStore:
        if path not in self._open:
            base = {"driver": "ocdbt", "base": f"file://{self._path}/", "path": path.replace("/", ".") + "/"}
            spec = {"driver": "zarr", "kvstore": base, "recheck_cached_data": False}
            self._open[path] = checkpoint.reading(
                self._path, lambda: ts.open(spec, open=True, read=True, context=self._context).result()
            )
        return self._open[path]


def open_source(name: str) -> Source:
    """Open a model by its name (`convert.names.ModelName`).

    Raises:
        PlamoError: There is no such model, it is damaged, or it has no such step or moving average.
    """
    parsed = ModelName.parse(name)
    if is_run_folder(parsed.folder):
        return RunSource(parsed.folder, parsed.step, parsed.ema)
    if parsed.step is not None or parsed.ema:
        raise ConvertError(
            f"{parsed.folder} is in Hugging Face format, which has no steps. Remove the @ and the text after it"
        )
    return PublicSource(parsed.folder)


def _read(stored: StoredTensor) -> np.ndarray:
    result = np.empty(stored.size, np.float32)
    count = max(1, BLOCK_BYTES // stored.dtype.itemsize)
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for start in range(0, stored.size, count):
            part = result[start : start + count]
            block = part if stored.dtype == np.float32 else np.empty(part.size, stored.dtype)
            view = memoryview(block.view(np.uint8))
            while len(view):
                if not (got := file.readinto(view)):
                    raise MergeError(f"{stored.file} is shorter than its header says. Copy or download it again")
                view = view[got:]
            if block is not part:
                part[...] = block
    return result
