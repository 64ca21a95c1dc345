"""Sizes of meshes: what fits, what is refused and how that is said."""

import jax
import numpy as np
import pytest

from plamo2_jax.sharding.mesh import AXES, MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (1, 8, 1, 1)),
        ({"data": 2}, (2, 4, 1, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 1, 2)),
        ({"fsdp": 1, "tensor": -1}, (1, 1, 1, 8)),
        ({"data": 2, "fsdp": 2, "sequence": 2}, (2, 2, 2, 1)),
    ],
)
def test_an_open_axis_takes_what_the_others_leave(fields, shape):
    mesh = make_mesh(MeshConfig(**fields))
    assert mesh.axis_names == AXES == ("data", "fsdp", "sequence", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor": 0}, r"MeshConfig\.tensor=0 is not allowed: it must be at least 1, or -1"),
        ({"data": -1}, r"MeshConfig\.data=-1 and fsdp=-1 are not allowed: only one axis may be -1"),
        ({"data": 3, "slices": 2}, r"MeshConfig\.data=3 is not allowed: it must be a multiple of slices=2"),
        ({"slices": 0}, r"MeshConfig\.slices=0 is not allowed: it must be at least 1"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor": 3}, r"fsdp=-1 is not allowed: data=1 × sequence=1 × tensor=3 = 3 must divide the 8 devices"),
        ({"fsdp": 2, "tensor": 2}, r"data=1 × fsdp=2 × sequence=1 × tensor=2 = 4 must be the number of devices, 8"),
        ({"data": -1, "fsdp": 8, "slices": 2}, r"data=-1 gives 1 for 8 devices: it must be a multiple of slices=2"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_spelled_out(fields, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**fields))


class Device:
    """A device of a pod of slices, as far as meshes look at one."""

    platform, device_kind, process_index, core_on_chip = "tpu", "simulated", 0, 0

    def __init__(self, number, slice_index, coords):
        self.id, self.slice_index, self.coords = number, slice_index, coords


def pod(slice_of):
    """Two slices of 2 x 2; the slice of device i is slice_of(i)."""
    places = [iter([(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]) for _ in range(2)]
    return [Device(number, slice_of(number), next(places[slice_of(number)])) for number in range(8)]


def test_data_spans_slices_and_nothing_else_does():
    # Devices of two slices come in turns: only their slice_index tells them apart.
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, slices=2), pod(lambda number: number % 2))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert mesh.devices.shape == (4, 2, 1, 1)
    assert (slices == slices[:, :1]).all()
    assert slices[:, 0, 0, 0].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_devices_that_know_no_slices_are_cut_in_their_order():
    mesh = make_mesh(MeshConfig(data=2, slices=2))
    assert mesh.devices.reshape(2, 4).tolist() == [jax.devices()[:4], jax.devices()[4:]]


def test_another_number_of_slices_is_refused():
    with pytest.raises(ValueError, match=r"MeshConfig\.slices=4 is not allowed: the 8 devices form 2 slice\(s\)"):
        make_mesh(MeshConfig(data=4, slices=4), pod(lambda number: number // 4))


@pytest.mark.parametrize(
    ("fields", "rows", "usable"),
    [({}, 8, 8), ({}, 2, 2), ({}, 3, 1), ({}, 12, 4), ({"tensor": 2}, 2, 4), ({"data": 2}, 2, 2), ({"fsdp": 2}, 2, 8)],
)
def test_rows_limit_the_devices_only_along_an_open_axis(fields, rows, usable):
    config = MeshConfig(**fields) if fields != {"fsdp": 2} else MeshConfig(fsdp=2, tensor=-1)
    assert config.usable_devices(8, rows) == usable


def test_rows_that_explicit_sizes_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"data=1 and fsdp=8 are not allowed with 4 rows"):
        MeshConfig(fsdp=8).usable_devices(8, 4)
