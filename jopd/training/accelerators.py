"""What an accelerator has, as its maker publishes it."""

import dataclasses
import re
from typing import NamedTuple

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of the kind, as its maker's published figures have it.

    Attributes:
      memory: bytes of HBM that a program may use.
      flops: a second, bfloat16 with float32 sums, of dense matrices.
      bandwidth: of the HBM, bytes a second.
    """

    memory: float
    flops: float
    bandwidth: float


class Known(NamedTuple):
    """A chip and what it is called here."""

    name: str
    chip: Chip

    @property
    def peak(self) -> str:
        """In words: what a utilisation is a share of."""
        return f"{self.chip.flops / 1e12:,.0f} TFLOP/s a device ({self.name}, bfloat16, published)"


GIB = 2.0**30
TPUS = {
    "v4": Chip(32 * GIB, 275e12, 1228e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9),
    "tpu7x": Chip(94.75 * GIB, 1153e12, 3690e9),  # half a chip, which has two devices
}
# As JAX calls their devices.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
# After NVIDIA's data sheets, whose figures with sparsity are halved. The words of a name stand in
# the device's kind, such as "NVIDIA A100-SXM4-80GB"; of several names the first holds.
GPUS = {
    "B200": Chip(180e9, 2250e12, 8000e9),
    "H200 NVL": Chip(141e9, 835e12, 4800e9),
    "H200": Chip(141e9, 989e12, 4800e9),
    "H100 PCIe": Chip(80e9, 756e12, 2000e9),
    "H100 NVL": Chip(94e9, 835e12, 3900e9),
    "H100": Chip(80e9, 989e12, 3350e9),  # SXM, which its kind doesn't say
    "A100 80GB PCIe": Chip(80e9, 312e12, 1935e9),
    "A100 80GB": Chip(80e9, 312e12, 2039e9),
    "A100": Chip(40e9, 312e12, 1555e9),
    "L40S": Chip(48e9, 362e12, 864e9),
    "L4": Chip(24e9, 121e12, 300e9),
    "A10": Chip(24e9, 125e12, 600e9),
}


def published(kind: str) -> Known | None:
    """What a device of this `jax.Device.device_kind` has; None of one that isn't listed here, a CPU
    among them.
    """
    if kind in _TPU_KINDS:
        name = _TPU_KINDS[kind]
        return Known(name, TPUS[name])
    words = lambda text: {*re.findall(r"\w+", text.lower())}
    if "NVIDIA" not in kind or "mig" in words(kind):  # a part of a card
        return None
    name = next((name for name in GPUS if words(name) <= words(kind)), None)
    return Known(name, GPUS[name]) if name else None


def here() -> Known | None:
    """Of the devices of this run."""
    return published(jax.devices()[0].device_kind)
