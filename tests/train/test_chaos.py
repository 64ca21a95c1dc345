"""The short form of experiments/chaos: random kills of a tiny run. (tests/train/test_integrity.py has the five damages.)"""

import dataclasses
import random
import runpy
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "experiments" / "chaos" / "run.py"


def test_kills_at_random_times_change_no_bit(uninterrupted, tmp_path, monkeypatch):
    chaos = runpy.run_path(str(RUN))
    whole, _ = uninterrupted
    config = dataclasses.replace(whole, output=tmp_path, log_every=1, heldout={})
    # 2 kills: one while it starts, one while it steps and saves.
    for longest in (6.0, 30.0):
        costs = chaos["kill_at_random"](config, tmp_path, 1, longest, random.Random(1))
        assert costs[0]["steps_lost"] <= config.checkpoint_every
    chaos["finish"](config, tmp_path)
    assert chaos["same_bits"](config, whole)


@pytest.mark.parametrize("damage", ["truncate", "flip_a_byte", "delete_a_file", "empty", "half_written"])
def test_the_campaign_does_all_five_damages(damage):
    assert damage in {function.__name__ for function in runpy.run_path(str(RUN))["DAMAGES"]}
