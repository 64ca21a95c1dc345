"""Models shared by the tests of surgery."""

import pytest
from surgery_material import CONFIGS, logits, make_params


@pytest.fixture(scope="session")
def originals():
    """Parameters and logits of both models, by name."""
    return {name: (config, params := make_params(config), logits(config, params)) for name, config in CONFIGS.items()}
