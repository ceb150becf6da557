import pytest

from jopd.config import MeshConfig
from jopd.planning import machines
from jopd.training.mesh import make_mesh

pytest.importorskip("libtpu")


@pytest.mark.parametrize("name", ["v5e", "v5x:2x4", "v5e:8", "v5e-8", "v5e:2x4x2x2"])
def test_a_name_that_is_no_slice_is_refused_with_one_that_is(name):
    with pytest.raises(ValueError, match=f"topology={name} must be one of v4, v5e"):
        machines.kind_of(name)


@pytest.mark.parametrize("name, kind, count", [("v5e:2x4", "v5e", 8), ("v5p:2x2x2", "v5p", 8)])
def test_a_slice_has_as_many_devices_as_its_axes_make(name, kind, count):
    assert machines.kind_of(name) == kind and len(machines.devices(name)) == count


def test_two_slices_have_twice_as_many():
    devices = machines.devices("v5e:2x2", slices=2)
    assert len(devices) == 8 and {device.slice_index for device in devices} == {0, 1}


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="topology=v5e:3x7"):
        machines.devices("v5e:3x7")


@pytest.mark.parametrize(
    "topology, slices, shape",
    [
        ("v6e:8x8", 1, (1, 16, 4)),
        ("v5p:2x2x2", 1, (2, 2, 2)),
        ("v5e:2x2", 2, (2, 4, 1)),
        ("v5e:4x4", 2, (2, 8, 2)),
    ],
)
def test_a_mesh_may_split_an_axis_of_the_torus_and_spans_slices_by_data(topology, slices, shape):
    devices = machines.devices(topology, slices)
    mesh = make_mesh(MeshConfig(*shape), devices)
    assert mesh.devices.shape == shape and {*mesh.devices.flat} == {*devices}
    if slices > 1:
        assert [{it.slice_index for it in part.flat} for part in mesh.devices] == [{0}, {1}]


def test_data_that_does_not_divide_over_slices_is_refused():
    with pytest.raises(ValueError, match="mesh.data=1 does not divide over 2 slices"):
        make_mesh(MeshConfig(1, 8, 1), machines.devices("v5e:2x2", 2))
