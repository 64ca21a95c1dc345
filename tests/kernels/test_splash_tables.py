"""All shards of a row compute the same number of blocks of splash attention, and the plan counts this number."""

import numpy as np
import pytest

from plamo2_kernels.attention import splash

BLOCK = 128


def tables(kernel):
    """The tables of the kernels for the output and for the gradients of the queries and the keys. Other entries than 0 are computed."""
    return [
        np.asarray(info.block_mask)[0] for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    ]


@pytest.mark.parametrize(
    ("t", "s", "window"),
    [(8, 8, None), (8, 8, 2), (8, 8, 0.5), (2, 4, 2), (3, 5, 2), (4, 7, 3)],
)
def test_the_plan_counts_the_blocks_of_a_row_or_a_window(t, s, window):
    """t, s and window in blocks; the keys of a window are those of the shard and those before it."""
    t, s = t * BLOCK, s * BLOCK
    forward, dq, dkv = tables(splash._kernel(t, s, window and int(window * BLOCK), BLOCK, True))
    assert forward.shape == dq.shape
    expected = splash.computed_blocks(forward.shape[1], t, s, BLOCK)
    assert {np.count_nonzero(table) for table in (forward, dq, dkv)} == {expected}


@pytest.mark.parametrize(("piece", "shards"), [(1, 2), (2, 4), (4, 3)])
def test_shards_of_a_row_compute_the_same_number_of_blocks(piece, shards):
    t = 2 * piece * BLOCK
    forward, *others = tables(splash._kernel_of_pieces(piece * BLOCK, shards, shards * t, BLOCK, True))
    expected = splash.computed_blocks(forward.shape[1], t, shards * t, BLOCK)
    for table in (forward, *others):
        assert {np.count_nonzero(of_shard) for of_shard in np.split(table, shards)} == {expected}


def test_tables_of_long_rows_are_made_without_the_mask(monkeypatch):
    """There are 128 × 128 blocks. Only blocks on the diagonal are computed token by token."""
    computed = []
    whole = splash.masks.CausalMask.__getitem__
    monkeypatch.setattr(splash.masks.CausalMask, "__getitem__", lambda *args: computed.append(1) or whole(*args))
    splash._kernel_of_pieces.__wrapped__(512, 16, 2 * 16 * 512, BLOCK, True)
    # Each of the three kernels' tables reads each block twice.
    assert len(computed) <= 6 * 2 * 16 * 4
