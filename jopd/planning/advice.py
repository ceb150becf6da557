"""What to change of a run that does not fit: tried by compiling, cheapest first."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from jopd.config import Config


class Change(NamedTuple):
    """Settings as on the command line, and the run that they make."""

    flags: str
    config: Config


def changes(
    config: Config, devices: int, slices: int = 1, evaluating: bool = False
) -> Iterator[Change]:
    """One after another, each on top of those before it: first what costs least time.

    Args:
      slices: over which `data` goes.
      evaluating: whether it is an evaluation that does not fit.
    """
    flags: dict[str, str] = {}

    def changed(added: Mapping[str, object], **settings) -> Change:
        nonlocal config
        config = dataclasses.replace(config, **settings)
        flags.update({flag: str(value) for flag, value in added.items()})
        return Change(" ".join(f"{flag} {value}" for flag, value in flags.items()), config)

    ways = config.mesh.tensor if config.mesh.tensor > 0 else 1
    if config.mesh.fsdp != -1 and config.mesh.fsdp * ways < devices // slices:
        mesh = dataclasses.replace(config.mesh, data=slices, fsdp=-1, tensor=ways)
        added = {"--mesh.data": slices, "--mesh.fsdp": -1}
        of_tensor = {"--mesh.tensor": ways} if config.mesh.tensor != ways else {}
        yield changed(added | of_tensor, mesh=mesh)
    if config.student.compute.remat != "layer":
        compute = dataclasses.replace(config.student.compute, remat="layer")
        student = dataclasses.replace(config.student, compute=compute)
        yield changed({"--student.compute.remat": "layer"}, student=student)
    if config.student.compute.dtype != "bfloat16":
        compute = dataclasses.replace(config.student.compute, dtype="bfloat16")
        student = dataclasses.replace(config.student, compute=compute)
        yield changed({"--student.compute.dtype": "bfloat16"}, student=student)
    batch = config.evaluation.batch
    while evaluating and batch > devices // ways:
        batch = max(batch // 2, devices // ways)
        evaluation = dataclasses.replace(config.evaluation, batch=batch)
        yield changed({"--evaluation.batch": batch}, evaluation=evaluation)
    tokens = config.chunk_tokens or 8192
    while tokens > 256:
        tokens = max(tokens // 4, 256)
        yield changed({"--chunk-tokens": tokens}, chunk_tokens=tokens)
    rows = config.rows
    parts = config.micro_batches
    while rows % (parts * 2 * devices // ways) == 0 and rows // (parts * 2) >= devices // ways:
        parts *= 2
        yield changed({"--micro-batches": parts}, micro_batches=parts)
    while ways < min(devices, 8):
        ways *= 2
        mesh = dataclasses.replace(config.mesh, data=slices, fsdp=-1, tensor=ways)
        added = {"--mesh.data": slices, "--mesh.fsdp": -1, "--mesh.tensor": ways}
        yield changed(added, mesh=mesh)


def first_that_fits(those: Iterator[Change], fits: Callable[[Config], bool]) -> Change | None:
    """The fewest of the changes, in their order, with which a run fits; None where none does."""
    return next((it for it in those if fits(it.config)), None)
