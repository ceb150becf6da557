"""A plan, from a run's settings to its table."""

import json
from typing import Any

from jax.sharding import Mesh

from jopd.config import Config
from jopd.planning import advice, cost, programs, shapes
from jopd.planning.machines import Machine
from jopd.training import console
from jopd.training.fit import check_divides
from jopd.training.mesh import make_mesh

# Of the collectives that each token waits for: activations are smaller, weights larger.
LARGE = 1 << 20
HEADER = ("phase", "peak", "of it temporary", "roofline", "FLOPs a device", "compiled in")


def run(name: str, config: Config, machine: Machine, *, as_json: bool) -> dict[str, Any]:
    """Prints the plan, as a table or as JSON, and returns it.

    Raises:
      ValueError: a mesh that the machine's devices don't fill.
    """
    plan = {"preset": name, **of(config, machine)}
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan)
    return plan


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
        slices = len({getattr(device, "slice_index", 0) for device in machine.devices})
        evaluating = bool({*programs.EVALUATIONS} & {*worst})
        found = advice.first_that_fits(
            advice.changes(config, len(machine.devices), slices, evaluating),
            lambda changed: fits(changed, machine, tuple(worst)),
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
