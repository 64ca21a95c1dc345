"""A tiny model, and calibration rows for it."""

import flax.traverse_util
import pytest

from plamo2_jax.engine.weights import unstack
from plamo2_jax.model import Plamo2
from plamo2_jax.quantize.calibration import read_calibration
from support.models import make_params, tiny
from support.tokenizers import byte_tokenizer

CONFIG = tiny()


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def params():
    return make_params(CONFIG)


@pytest.fixture
def leaves(params):
    """The float parameters by path, without a scan over layers."""
    return dict(flax.traverse_util.flatten_dict(unstack(Plamo2(CONFIG), params), sep="/"))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "text.jsonl"
    lines = [f'{{"text": "Record {i}: {i * i} squares and {"many " * (i % 7)}words."}}' for i in range(60)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def batches(text):
    return read_calibration([str(text)], byte_tokenizer(), rows=8, sequence_length=48, batch_size=4, seed=0)
