"""The table of TPU slices against figures that are published for them."""

import pytest

from plamo2_jax.launch.slices import GENERATIONS, parse_slice
from plamo2_jax.plan.compiler import device_count


@pytest.mark.parametrize(
    ("name", "shape", "chips", "hosts"),
    [
        ("v4-8", "2x2x1", 4, 1),
        ("v4-128", "4x4x4", 64, 16),
        ("v5litepod-1", "1x1", 1, 1),
        ("v5litepod-16", "4x4", 16, 4),
        ("v5litepod-256", "16x16", 256, 64),
        ("v5p-8", "2x2x1", 4, 1),
        ("v5p-128", "4x4x4", 64, 16),
        ("v5p-12288", "16x16x24", 6144, 1536),
        ("v6e-256", "16x16", 256, 64),
        ("tpu7x-128", "4x4x4", 64, 16),
    ],
)
def test_published_slices(name, shape, chips, hosts):
    found = parse_slice(name)
    assert (found.accelerator, found.shape, found.chips, found.hosts) == (name, shape, chips, hosts)
    assert parse_slice(found.topology) == found
    assert found.devices == device_count(found.topology)


def test_every_slice_has_one_name_and_is_found_by_it_and_by_its_shape():
    for generation, each in GENERATIONS.items():
        slices = [parse_slice(f"{generation}:{shape}") for shape in each.shapes]
        assert len({found.accelerator for found in slices}) == len(slices)
        assert [parse_slice(found.accelerator) for found in slices] == slices


def test_v5e_may_be_written_short():
    assert parse_slice("v5e-16") == parse_slice("v5litepod-16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "such as v4-64"),
        ("v5p", "such as v4-64"),
        ("v5p-100", "this generation has v5p-8, v5p-16"),
        ("v6e:3x3", "this generation has v6e-1"),
    ],
)
def test_a_slice_that_is_not_offered_is_refused_with_those_that_are(name, message):
    with pytest.raises(ValueError, match=message):
        parse_slice(name)
