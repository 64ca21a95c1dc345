"""The bundled corpus as a TensorFlow Datasets builder, stored as ArrayRecord; needs no TensorFlow.

Importing this module registers the name:

    import tensorflow_datasets as tfds
    import plamo2_jax.data.tfds_builder

    source = tfds.data_source("plamo2_corpus/ja", split="train", data_dir="data")
    source[0]["text"].decode()

A data source has random access, so `grain.MapDataset.source` accepts it, as for any other text data set of TFDS. Texts are UTF-8 bytes.
Only `as_dataset` needs TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from plamo2_jax.data import corpus

_DESCRIPTION = """
Japanese and English documentation, page-aligned: LibreOffice Help (MPL-2.0) and The Debian Administrator's Handbook
(CC-BY-SA-3.0). The held-out split is chosen by document, with a page and its translation on the same side.
"""


class Plamo2Corpus(tfds.core.GeneratorBasedBuilder):
    """Data set "plamo2_corpus": configs "all" (default), "ja" and "en"; splits "train" and "heldout"."""

    # Otherwise TFDS would look this up with importlib_resources, a package it does not depend on.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 - TFDS reads a plain class attribute
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="all", description="Both languages"),
        tfds.core.BuilderConfig(name="ja", description="Japanese"),
        tfds.core.BuilderConfig(name="en", description="English"),
    ]

    def __init__(self, *, file_format: str | tfds.core.FileFormat | None = None, **kwargs) -> None:
        """Create a builder with ArrayRecord as the default format, because TFRecord would need TensorFlow."""
        super().__init__(file_format=file_format or tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Scalar(np.object_) for name in corpus.FIELDS}
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage="https://help.libreoffice.org/, https://debian-handbook.info/",
            license="; ".join(sorted(corpus.manifest()["licenses"])),
            # The order of the corpus is part of it: no shuffling when writing.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the text is in the package
        return {split: self._generate_examples(split) for split in ("train", "heldout")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        language = None if self.builder_config.name == "all" else self.builder_config.name
        for number, document in enumerate(corpus.documents(language, split)):
            yield number, {name: document[name] for name in corpus.FIELDS}
