"""TRL's losses, computed here and now, are those in tests/golden/trl_losses.json, which tests/align/test_dpo.py compares ours with."""

import json

import numpy as np
import pytest

from support import trl_losses

pytestmark = pytest.mark.peer


def test_the_stored_figures_are_trls():
    pytest.importorskip("torch", reason="torch is not installed (make peers installs it)")
    pytest.importorskip("trl", reason="trl is not installed (make peers installs it)")
    stored = json.loads(trl_losses.GOLDEN.read_text(encoding="utf-8"))
    for ours, theirs in zip(stored, trl_losses.golden(), strict=True):
        np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-6)
        np.testing.assert_allclose(ours["gradient"], theirs["gradient"], rtol=1e-6)
