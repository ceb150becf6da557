"""TPU slices by name, as devices to compile for.

v5e:2x4, v5p:4x4x4, v6e:8x8, tpu7x:2x2x1      the chips along each axis of a slice's torus
"""

import dataclasses
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from jopd.training import accelerators
from jopd.training.accelerators import GPUS, TPUS, Chip

# What libtpu wants to be told of a machine that it isn't on; the shape comes with the name.
_ACCELERATORS = {
    "v4": "v4-8",
    "v5e": "v5litepod-8",
    "v5p": "v5p-128",
    "v6e": "v6e-8",
    "tpu7x": "tpu7x-8",
}


class Machine(NamedTuple):
    """What a run is planned for."""

    name: str
    chip: Chip
    devices: list[jax.Device]


def named(topology: str | None, slices: int = 1) -> Machine:
    """The TPU slices of that name, or the accelerator that is here.

    Raises:
      ValueError: no such slice, no libtpu, or neither a name nor an accelerator.
    """
    if topology is not None:
        name = topology if slices == 1 else f"{slices} × {topology}"
        return Machine(name, TPUS[kind_of(topology)], devices(topology, slices))
    if (found := here()) is None:
        raise ValueError(
            "this machine has no accelerator to plan for: name a TPU slice, such as "
            "--topology v5e:2x4"
        )
    return Machine(*found, jax.devices())


def kind_of(topology: str) -> str:
    """The kind of chip in a topology's name.

    Raises:
      ValueError: the name has another form, or the kind is not known.
    """
    match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", topology)
    if match is None or match[1] not in TPUS:
        raise ValueError(
            f"topology={topology} must be one of {', '.join(TPUS)} and the chips along each axis "
            "of a slice, such as v5e:2x4 or v5p:4x4x4"
        )
    return match[1]


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of so many slices, to compile for.

    Raises:
      ValueError: no such slice, or no libtpu.
    """
    kind = kind_of(topology)
    # The compiler asks no metadata server, and goes beside others that compile.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": _ACCELERATORS[kind],
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices
        )
    except Exception as error:  # of several kinds, by what of libtpu is missing or wrong
        lacks = "libtpu" in str(error) and "not" in str(error)
        cure = "pip install jopd[tpu]" if lacks else "a slice of this kind has another shape"
        raise ValueError(f"topology={topology}: {str(error).splitlines()[0]} ({cure})") from None
    return list(found.devices)


def here() -> tuple[str, Chip] | None:
    """What the accelerator of this machine is called and has, as far as it says; None on a CPU."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    known = accelerators.published(device.device_kind)
    # An unknown card: its rates are those of an H100, its memory what it says.
    chip = known.chip if known else GPUS["H100"]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return device.device_kind, dataclasses.replace(chip, memory=memory or chip.memory)
