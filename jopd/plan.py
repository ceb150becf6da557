"""`python -m jopd.plan [PRESET] [SETTINGS] --topology v5e:2x4 [--slices N] [--json]`: whether a
run fits a machine and how fast it could go there, before anyone pays for it.

The run's own programs are compiled ahead of time for the TPU slice, on any machine with a CPU and
`pip install jopd[tpu]`; no weight is read and nothing is run. On a machine with a GPU or TPU, and
without --topology, it is planned for that one. What does not fit is told with what to change, tried
by compiling.
"""

import json
import sys
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jopd import config as configs
from jopd.config import Config
from jopd.planning import advice, cost, machines, programs, shapes
from jopd.training import console
from jopd.training.accelerators import TPUS, Chip
from jopd.training.fit import check_divides
from jopd.training.mesh import make_mesh

# Of the collectives that each token waits for: activations are smaller, weights larger.
LARGE = 1 << 20
HEADER = ("phase", "peak", "of it temporary", "roofline", "FLOPs a device", "compiled in")


class Machine(NamedTuple):
    """What a run is planned for."""

    name: str
    chip: Chip
    devices: list[jax.Device]


def main(arguments: list[str] | None = None) -> None:
    configs.or_exit(run, sys.argv[1:] if arguments is None else list(arguments))


def run(arguments: list[str]) -> dict[str, Any]:
    """Prints the plan, as a table or as JSON, and returns it.

    Raises:
      ValueError: settings or a topology that can't be; no accelerator and no topology.
    """
    topology, slices = configs.take(arguments, "--topology"), configs.take(arguments, "--slices")
    as_json = "--json" in arguments
    rest = [argument for argument in arguments if argument != "--json"]
    if slices is not None and not slices.isdecimal():
        raise ValueError(f"slices={slices} must be a whole number")
    name, config = configs.parse(rest, program="python -m jopd.plan")
    # What is compiled for a machine that isn't here can't be read back from a cache.
    jax.config.update("jax_enable_compilation_cache", topology is None)
    machine = machine_of(topology, int(slices or 1))
    plan = {"preset": name, **of(config, machine)}
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan)
    return plan


def machine_of(topology: str | None, slices: int = 1) -> Machine:
    """The TPU slices of that name, or the accelerator that is here."""
    if topology is not None:
        chip = TPUS[machines.kind_of(topology)]
        name = topology if slices == 1 else f"{slices} × {topology}"
        return Machine(name, chip, machines.devices(topology, slices))
    if (found := machines.here()) is None:
        raise ValueError(
            "this machine has no accelerator to plan for: name a TPU slice, such as "
            "--topology v5e:2x4"
        )
    return Machine(found[0], found[1], jax.devices())


def of(config: Config, machine: Machine, *, advise: bool = True) -> dict[str, Any]:
    """The plan of a run as plain data: for each phase of a step its memory, its bound in time and
    what the decode loop waits for; and, where something doesn't fit, what to change.
    """
    mesh = make_mesh(config.mesh, machine.devices)
    check_divides(config, mesh)
    run = shapes.of(config, mesh)
    bounds = cost.of(run, machine.chip)
    phases = [
        {
            "phase": it.phase,
            **{f"{name}_bytes": size for name, size in it.memory._asdict().items()},
            "peak_bytes": it.memory.peak,
            "fits": it.memory.peak <= machine.chip.memory,
            "donated_bytes": it.donated,
            "compile_seconds": round(it.seconds, 1),
            **(
                {"flops": bound.flops, "read_bytes": bound.bytes, "seconds": bound.seconds}
                if (bound := bounds.get(it.phase))
                else {}
            ),
            **(
                {"in_loop": [each._asdict() for each in it.in_loop]}
                if it.in_loop is not None
                else {}
            ),
        }
        for it in programs.compiled(run)
    ]
    seconds = sum(bound.seconds for bound in bounds.values())
    tokens = config.rows * config.rollout.max_new_tokens
    plan = {
        "machine": machine.name,
        "devices": len(machine.devices),
        "memory_bytes": machine.chip.memory,
        "mesh": dict(mesh.shape),
        "phases": phases,
        "fits": all(phase["fits"] for phase in phases),
        "step_seconds_at_least": seconds,
        "tokens_a_second_a_device_at_most": tokens / seconds / len(machine.devices),
    }
    if advise and not plan["fits"]:
        worst = [phase["phase"] for phase in phases if not phase["fits"]]
        found = advice.first_that_fits(
            config, len(machine.devices), lambda changed: fits(changed, machine, tuple(worst))
        )
        plan["change"] = found and found.flags
    return plan


def fits(config: Config, machine: Machine, phases: tuple[str, ...]) -> bool:
    """Whether some phases of a run fit."""
    try:
        mesh: Mesh = make_mesh(config.mesh, machine.devices)
        check_divides(config, mesh)
    except ValueError:
        return False
    made = programs.compiled(shapes.of(config, mesh), phases)
    return all(it.memory.peak <= machine.chip.memory for it in made)


def show(plan: dict[str, Any]) -> None:
    """The plan for people."""
    memory = plan["memory_bytes"]
    size = lambda count: f"{count / 2**30:,.2f} GiB"
    rows = [
        (
            phase["phase"],
            size(phase["peak_bytes"]) + ("" if phase["fits"] else " !"),
            size(phase["temporary_bytes"]),
            f"{phase['seconds']:,.2f} s" if "seconds" in phase else "",
            f"{phase['flops'] / 1e12:,.1f} T" if "flops" in phase else "",
            f"{phase['compile_seconds']:,.0f} s",
        )
        for phase in plan["phases"]
    ]
    mesh = ", ".join(f"{name} {ways}" for name, ways in plan["mesh"].items())
    console.table(HEADER, rows, title=f"{plan['machine']}: {mesh}, {size(memory)} a device")
    resident = max(phase["resident_bytes"] for phase in plan["phases"])
    console.say(f"of each peak, {size(resident)} are the run's state and models, which stay")
    for phase in plan["phases"]:
        if "in_loop" in phase:
            console.say(f"{phase['phase']}, for every token: {said(phase['in_loop'])}")
    console.say(
        f"a step takes at least {plan['step_seconds_at_least']:,.2f} s at the device's published "
        f"rates, so at most {plan['tokens_a_second_a_device_at_most']:,.0f} tokens a second and "
        "device: a bound, with every row at its longest; nothing was run"
    )
    if plan["fits"]:
        console.say("it fits")
        return
    over = max(phase["peak_bytes"] for phase in plan["phases"]) - memory
    change = plan["change"]
    cure = f"it fits with {change}" if change else "none of the changes that were tried fits it"
    console.say(f"it does not fit, by {size(over)}: {cure}")


def said(collectives: list[dict[str, Any]]) -> str:
    """What each token waits for."""
    large = [it for it in collectives if it["bytes"] >= LARGE]
    if not large:
        total = sum(it["bytes"] for it in collectives)
        return f"no collective of 1 MiB or more ({len(collectives)} small ones, {total:,} bytes)"
    return ", ".join(f"{it['name']} of {it['bytes'] / 2**20:,.0f} MiB" for it in large[:5])


if __name__ == "__main__":
    main()
